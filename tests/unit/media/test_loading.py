"""Image files as tensors, by a decoder's process; their pixels beside ComfyUI's are in tests/parity."""

from __future__ import annotations

import io
from functools import partial

import numpy as np
import pytest
import torch
from PIL import EpsImagePlugin, Image

from serve_app.config.limits import SizeLimits
from serve_app.errors import NodeError
from serve_app.execution.executing import Executing
from serve_app.execution.size import allow
from serve_app.media import frames, loading
from serve_app.media.decoder import DecoderLimits
from tests.parity.file_cases import FILES

WHAT = "the file 'x.png'"


def encoded(image: Image.Image, format_: str = "PNG", **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, format_, **options)
    return buffer.getvalue()


def load(data: bytes, name: str = "", **limits: int) -> tuple[torch.Tensor, torch.Tensor]:
    return loading.images(data, WHAT, DecoderLimits(SizeLimits(**limits)), allow, name)


@pytest.fixture
def limit(monkeypatch: pytest.MonkeyPatch) -> None:
    call = Executing("job", "1", limits=SizeLimits(value_bytes=1_000_000))
    monkeypatch.setattr("serve_app.execution.size.executing", lambda: call)


def test_an_image_without_alpha_has_an_empty_mask_of_64_by_64() -> None:
    images, masks = load(encoded(Image.new("RGB", (5, 3), (255, 0, 51))))
    assert images.shape == (1, 3, 5, 3)
    assert torch.allclose(images[0, 0, 0], torch.tensor([1.0, 0.0, 0.2]))
    assert masks.shape == (1, 64, 64)
    assert not masks.any()


def test_the_mask_is_one_minus_alpha() -> None:
    _, masks = load(encoded(Image.new("RGBA", (4, 2), (10, 20, 30, 51))))
    assert torch.allclose(masks, torch.full((1, 2, 4), 0.8))


def test_every_frame_of_an_animation_is_an_image() -> None:
    levels = [Image.new("RGB", (4, 4), (level, 0, 0)) for level in (0, 100, 200)]
    images, masks = load(encoded(levels[0], "WEBP", save_all=True, append_images=levels[1:], lossless=True))
    assert images.shape == (3, 4, 4, 3)
    assert masks.shape == (3, 64, 64)
    assert (images[:, 0, 0, 0] * 255).round().tolist() == [0, 100, 200]


@pytest.mark.parametrize("name", FILES)
def test_pixels_are_the_same_whatever_process_decodes_them(name: str) -> None:
    data = FILES[name]()
    here = np.concatenate(list(frames.decode_frames(data, name, 10_000, name))).astype(np.float32)
    images, masks = load(data, name)
    scale = 255 if np.max(here) > 1 else 1
    assert torch.equal(images, torch.from_numpy(here[..., :3]) / scale)
    if here.shape[-1] == 4:
        assert torch.equal(masks, 1 - torch.from_numpy(here[..., 3]) / scale)


@pytest.mark.parametrize("data", [b"", b"no image", encoded(Image.new("RGB", (64, 64)))[:40]])
def test_what_no_decoder_reads_is_an_error_that_names_the_file(data: bytes) -> None:
    with pytest.raises(NodeError, match=r"the file 'x\.png' is no image that can be read"):
        load(data)


@pytest.mark.parametrize(
    "task", [load, lambda data: loading.load_picture(data, WHAT, DecoderLimits(SizeLimits()), allow)]
)
def test_a_format_that_is_run_by_another_program_is_not_opened(task: partial[object]) -> None:
    postscript = encoded(Image.new("RGB", (4, 4)), "EPS")
    assert Image.open(io.BytesIO(postscript)).format == EpsImagePlugin.EpsImageFile.format, "Pillow alone opens it"
    with pytest.raises(NodeError, match="is no image that can be read: its format is none of"):
        task(postscript)


@pytest.mark.usefixtures("limit")
@pytest.mark.parametrize("transparent", [False, True])
def test_frames_are_counted_with_their_masks_before_they_fill_the_memory(transparent: bool) -> None:
    mode = "RGBA" if transparent else "RGB"
    levels = [Image.new(mode, (1, 1), (level, 0, 0, 9)[: len(mode)]) for level in range(100)]
    data = encoded(levels[0], "WEBP", save_all=True, append_images=levels[1:], lossless=True)
    if transparent:
        assert load(data)[1].shape == (100, 1, 1)
        return
    with pytest.raises(NodeError, match=r"100×4099: 1,639,600 bytes; limits\.value_bytes .* allows 1,000,000"):
        load(data)


@pytest.mark.usefixtures("limit")
def test_a_frame_is_refused_before_memory_is_taken_for_it() -> None:
    with pytest.raises(NodeError, match=r"1×300×300×3: 1,080,000 bytes; limits\.value_bytes"):
        load(encoded(Image.new("RGB", (300, 300))))


@pytest.mark.parametrize("kind", ["PNG", "WEBP", "GIF", "AVIF"])
def test_an_image_of_too_many_pixels_is_refused_by_what_its_head_says(kind: str) -> None:
    data = encoded(Image.new("L", (100, 100)), kind)
    with pytest.raises(NodeError, match=r"100×100 pixels; limits\.image_pixels .* allows 9,999"):
        load(data, image_pixels=9_999)
