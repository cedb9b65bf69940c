"""Animated files, saved by the nodes on a real volume and read back by Pillow."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image, ImageSequence

from serve_app.execution.files import NodeFiles
from serve_app.nodes.registry import BUILTIN
from serve_app.store.files.reserved import Contents
from serve_app.store.files.store import AREAS, FileRef
from serve_app.store.files.volume import Volume

PROMPT = {"1": {"class_type": "SaveAnimatedPNG"}}
EXTRA = {"workflow": {"nodes": [1]}, "more": "ü"}


@pytest.fixture
def volume(tmp_path: Path) -> Volume:
    return Volume({area: tmp_path / area for area in AREAS})


def files(volume: Volume) -> NodeFiles:
    async def reserve(key: str, at_least: int, contents: Contents) -> tuple[int, bool]:
        return at_least, False

    return NodeFiles(volume, "job", "1", reserve)


def frames(count: int, height: int = 6, width: int = 9) -> torch.Tensor:
    values = np.random.default_rng(count).integers(0, 256, (count, height, width, 3))
    return torch.from_numpy(values).float() / 255


async def save(volume: Volume, class_type: str, images: list[torch.Tensor], **inputs: list[Any]) -> dict[str, Any]:
    defaults: dict[str, list[Any]] = {"filename_prefix": ["x"], "fps": [6.0]}
    if class_type == "SaveAnimatedWEBP":
        defaults |= {"lossless": [True], "quality": [80], "method": ["fastest"]}
    else:
        defaults |= {"compress_level": [4]}
    node = BUILTIN[class_type]()
    hidden: dict[str, Any] = {"prompt": [PROMPT], "extra_pnginfo": [EXTRA], "store": [files(volume)]}
    shown = await node.save_images(images=images, **(defaults | inputs), **hidden)
    ui: dict[str, Any] = shown["ui"]
    return ui


def opened(volume: Volume, item: dict[str, str]) -> Image.Image:
    with volume.open(FileRef("output", item["subfolder"], item["filename"])) as file:
        return Image.open(io.BytesIO(file.read()))


@pytest.mark.parametrize(("class_type", "suffix"), [("SaveAnimatedWEBP", "webp"), ("SaveAnimatedPNG", "png")])
async def test_a_batch_becomes_one_file_with_every_frame_as_it_was(
    volume: Volume, class_type: str, suffix: str
) -> None:
    images = frames(3)
    ui = await save(volume, class_type, [images], filename_prefix=["sub/%width%x%height%"], fps=[8.0])
    assert ui["animated"] == (True,)
    assert ui["images"] == [{"filename": f"9x6_00001_.{suffix}", "subfolder": "sub", "type": "output"}]
    file = opened(volume, ui["images"][0])
    read = [np.array(frame.convert("RGB")) for frame in ImageSequence.Iterator(file)]
    assert file.info["duration"] == 125
    assert np.array_equal(np.stack(read), (images * 255).numpy().astype(np.uint8))


async def test_lists_of_batches_are_files_with_counters_of_their_own(volume: Volume) -> None:
    ui = await save(volume, "SaveAnimatedPNG", [frames(2), frames(4)], compress_level=[9])
    assert [item["filename"] for item in ui["images"]] == ["x_00001_.png", "x_00002_.png"]
    assert ui["animated"] == (True, True)
    assert [opened(volume, item).n_frames for item in ui["images"]] == [2, 4]  # type: ignore[attr-defined]


async def test_a_webp_of_one_frame_is_not_animated(volume: Volume) -> None:
    ui = await save(volume, "SaveAnimatedWEBP", [frames(1)])
    assert "animated" not in ui


async def test_a_webp_carries_its_workflow_as_the_cameras_make_and_model(volume: Volume) -> None:
    ui = await save(volume, "SaveAnimatedWEBP", [frames(2)])
    exif = opened(volume, ui["images"][0]).getexif()
    assert exif[0x0110] == f"prompt:{json.dumps(PROMPT)}"
    assert exif[0x010F] == f"workflow:{json.dumps(EXTRA['workflow'])}"
    assert exif[0x010E] == f"more:{json.dumps(EXTRA['more'])}"


async def test_an_animated_png_carries_its_workflow_behind_the_pixels(volume: Volume) -> None:
    ui = await save(volume, "SaveAnimatedPNG", [frames(2)])
    with volume.open(FileRef("output", "", ui["images"][0]["filename"])) as file:
        data = file.read()
    for key, value in {"prompt": PROMPT, **EXTRA}.items():
        chunk = b"comf" + key.encode() + b"\0" + json.dumps(value).encode()
        assert data.index(chunk) > data.index(b"IDAT")


async def test_a_lossy_webp_is_smaller_at_lower_quality(volume: Volume) -> None:
    sizes = []
    for quality in (90, 10):
        ui = await save(volume, "SaveAnimatedWEBP", [frames(2, 64, 64)], lossless=[False], quality=[quality])
        sizes.append(volume.stat(FileRef("output", "", ui["images"][0]["filename"])).size)
    assert sizes[1] < sizes[0]
