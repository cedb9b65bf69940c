"""Files of images as ComfyUI loads them: LoadImage, LoadImageMask and data sets."""

from __future__ import annotations

import pytest
import torch

from serve_app.execution.size import allow, bounds
from serve_app.media import loading
from serve_app.nodes.mask.masks import load_image_mask
from tests.parity.figures import Figures
from tests.parity.file_cases import BY_CHANNEL, CHANNELS, FILES

FIGURES = Figures("files")
THEIRS = {name.rpartition("|")[0] for name in FIGURES.names if name.endswith("|images")}


class Stored:
    """A store of one file."""

    def __init__(self, data: bytes) -> None:
        self.data = data

    async def read(self, name: str) -> bytes:
        return self.data


def theirs(name: str) -> torch.Tensor:
    array = FIGURES[name]
    return array / 255 if array.dtype == torch.uint8 else array


def file(name: str) -> bytes:
    return FIGURES[f"{name}|file"].numpy().tobytes()


def test_comfyui_loads_nearly_all_of_them() -> None:
    assert set(FILES) - THEIRS == {"ico.ico"}


@pytest.mark.parametrize("name", sorted(THEIRS))
def test_a_file_is_loaded_as_comfyui_loads_it(name: str) -> None:
    images, mask = loading.images(file(name), name, bounds(), allow, name)
    torch.testing.assert_close(images, theirs(f"{name}|images"), rtol=0, atol=1e-6)
    torch.testing.assert_close(mask, theirs(f"{name}|mask"), rtol=0, atol=1e-6)


@pytest.mark.parametrize("name", BY_CHANNEL)
@pytest.mark.parametrize("channel", CHANNELS)
async def test_a_channel_is_loaded_as_comfyui_loads_it(name: str, channel: str) -> None:
    mask = await load_image_mask(name, channel, Stored(file(name)))  # type: ignore[arg-type]
    torch.testing.assert_close(mask, theirs(f"{name}|{channel}"), rtol=0, atol=1e-6)


@pytest.mark.parametrize("name", [name.removesuffix("|set") for name in FIGURES.names if name.endswith("|set")])
def test_an_image_of_a_data_set_is_as_in_comfyui(name: str) -> None:
    image = loading.load_picture(file(name), name, bounds(), allow)
    torch.testing.assert_close(image, theirs(f"{name}|set"), rtol=0, atol=0)
