from __future__ import annotations

import io

import numpy as np
import pytest
import torch
from PIL import Image

from serve_app.images import resize, to_png


def encoded(image: Image.Image, format_: str = "PNG", **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, format_, **options)
    return buffer.getvalue()


def grey(*rows: list[int], dtype: type = np.uint8) -> Image.Image:
    return Image.fromarray(np.array(rows, dtype=dtype))


def test_eight_bit_values_survive_the_way_to_png_and_back() -> None:
    pixels = torch.arange(256, dtype=torch.float32).reshape(16, 16, 1).expand(16, 16, 3) / 255
    read = np.array(Image.open(io.BytesIO(to_png(pixels, {}, 4))))
    assert torch.equal(torch.from_numpy(read) / 255, pixels)


def test_fractions_are_cut_off_and_values_outside_are_clipped() -> None:
    image = torch.tensor([[[-1.0, 0.999, 2.0]]])
    assert Image.open(io.BytesIO(to_png(image, {}, 4))).getpixel((0, 0)) == (0, 254, 255)


def test_text_travels_in_png_chunks() -> None:
    text = {"prompt": '{"1": {}}', "workflow": "[1, 2]"}
    assert Image.open(io.BytesIO(to_png(torch.zeros(2, 2, 3), text, 1))).text == text  # type: ignore[attr-defined]


@pytest.mark.parametrize("method", ["nearest-exact", "bilinear", "area", "bicubic", "bislerp", "lanczos"])
@pytest.mark.parametrize("channels", [1, 3, 4, 16])
def test_a_flat_image_stays_flat_at_any_size(method: str, channels: int) -> None:
    out = resize(torch.full((2, 6, 9, channels), 0.2), 5, 13, method)
    assert out.shape == (2, 13, 5, channels)
    assert torch.allclose(out, torch.tensor(0.2), atol=1 / 255 if method == "lanczos" else 1e-6)


def test_a_centre_crop_keeps_the_middle_of_the_longer_side() -> None:
    columns = torch.arange(8.0).reshape(1, 1, 8, 1).expand(1, 4, 8, 1)
    assert resize(columns, 4, 4, "nearest-exact", "center")[0, 0, :, 0].tolist() == [2, 3, 4, 5]
    assert resize(columns.transpose(1, 2), 4, 4, "nearest-exact", "center")[0, :, 0, 0].tolist() == [2, 3, 4, 5]


def test_bislerp_turns_between_two_directions_and_keeps_their_length() -> None:
    row = torch.tensor([[1.0, 0.0], [0.0, 1.0]]).reshape(1, 1, 2, 2)
    out = resize(row, 4, 1, "bislerp")[0, 0]
    angles = torch.atan2(out[:, 1], out[:, 0])
    assert torch.allclose(angles, torch.tensor([0.0, 0.25, 0.75, 1.0]) * torch.pi / 2, atol=1e-6)
    assert torch.allclose(out.norm(dim=1), torch.ones(4), atol=1e-6)
