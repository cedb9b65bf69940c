from __future__ import annotations

import io

import numpy as np
import pytest
import torch
from PIL import Image

from serve_app.errors import NodeError
from serve_app.images import from_bytes, mask_from_bytes, resize, to_png
from serve_app.limits import SizeLimits


def encoded(image: Image.Image, format_: str = "PNG", **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, format_, **options)
    return buffer.getvalue()


def grey(*rows: list[int], dtype: type = np.uint8) -> Image.Image:
    return Image.fromarray(np.array(rows, dtype=dtype))


def test_eight_bit_values_survive_the_way_to_png_and_back() -> None:
    pixels = torch.arange(256, dtype=torch.float32).reshape(16, 16, 1).expand(16, 16, 3) / 255
    images, _ = from_bytes(to_png(pixels, {}, 4))
    assert torch.equal(images[0], pixels)


def test_fractions_are_cut_off_and_values_outside_are_clipped() -> None:
    image = torch.tensor([[[-1.0, 0.999, 2.0]]])
    assert Image.open(io.BytesIO(to_png(image, {}, 4))).getpixel((0, 0)) == (0, 254, 255)


def test_text_travels_in_png_chunks() -> None:
    text = {"prompt": '{"1": {}}', "workflow": "[1, 2]"}
    assert Image.open(io.BytesIO(to_png(torch.zeros(2, 2, 3), text, 1))).text == text  # type: ignore[attr-defined]


def test_an_image_without_alpha_has_an_empty_mask_of_64_by_64() -> None:
    images, masks = from_bytes(encoded(Image.new("RGB", (5, 3), (255, 0, 51))))
    assert images.shape == (1, 3, 5, 3)
    assert torch.allclose(images[0, 0, 0], torch.tensor([1.0, 0.0, 0.2]))
    assert masks.shape == (1, 64, 64)
    assert not masks.any()


def test_the_mask_is_one_minus_alpha() -> None:
    _, masks = from_bytes(encoded(Image.new("RGBA", (4, 2), (10, 20, 30, 51))))
    assert torch.allclose(masks, torch.full((1, 2, 4), 0.8))


def test_a_transparent_palette_colour_is_masked() -> None:
    image = Image.new("P", (2, 1))
    image.putpalette([255, 0, 0, 0, 255, 0])
    image.putpixel((1, 0), 1)
    _, masks = from_bytes(encoded(image, transparency=0))
    assert masks[0, 0].tolist() == [1.0, 0.0]


def test_the_orientation_a_camera_noted_is_applied() -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    images, _ = from_bytes(encoded(Image.new("RGB", (6, 2)), "JPEG", exif=exif))
    assert images.shape == (1, 6, 2, 3)


def test_every_frame_of_an_animation_is_an_image() -> None:
    frames = [Image.new("RGB", (4, 4), (level, 0, 0)) for level in (0, 100, 200)]
    images, masks = from_bytes(encoded(frames[0], "WEBP", save_all=True, append_images=frames[1:], lossless=True))
    assert images.shape == (3, 4, 4, 3)
    assert masks.shape == (3, 64, 64)
    assert (images[:, 0, 0, 0] * 255).round().tolist() == [0, 100, 200]


def test_sixteen_bit_grey_is_scaled() -> None:
    images, _ = from_bytes(encoded(grey([0, 128 * 255, 65535], dtype=np.uint16)))
    assert (images[0, 0, :, 0] * 255).tolist() == [0, 128, 255]


@pytest.mark.parametrize("data", [b"", b"no image", encoded(Image.new("RGB", (64, 64)))[:60]])
def test_data_no_decoder_reads_is_a_node_error(data: bytes) -> None:
    with pytest.raises(NodeError, match="no image that can be read"):
        from_bytes(data)


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


def test_a_file_whose_frames_would_fill_the_memory_is_refused_before_one_is_decoded() -> None:
    frames = [Image.new("P", (400, 400), i % 7) for i in range(20)]
    gif = encoded(frames[0], "GIF", save_all=True, append_images=frames[1:], optimize=False)
    frame_bytes = 400 * 400 * 12
    count = Image.open(io.BytesIO(gif)).n_frames  # type: ignore[attr-defined]
    with pytest.raises(NodeError, match=f"{count} frames of 400×400 pixels.* limits.value_bytes"):
        from_bytes(gif, SizeLimits(value_bytes=count * frame_bytes - 1))
    images, _ = from_bytes(gif, SizeLimits(value_bytes=count * frame_bytes))
    assert len(images) == count


@pytest.mark.parametrize("kind", ["PNG", "WEBP", "GIF"])
def test_an_image_of_too_many_pixels_is_refused_by_what_its_head_says(kind: str) -> None:
    data = encoded(Image.new("L", (100, 100)), kind)
    with pytest.raises(NodeError, match=r"100×100 pixels; limits.image_pixels .* allows 9,999"):
        from_bytes(data, SizeLimits(image_pixels=9_999))
    with pytest.raises(NodeError, match="100×100"):
        mask_from_bytes(data, "red", SizeLimits(image_pixels=9_999))
