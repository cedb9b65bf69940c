"""The image nodes where a figure of ComfyUI's cannot show what they promise: files, errors, and what edges are."""

from __future__ import annotations

import contextvars
import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from serve_app.errors import NodeError
from serve_app.execution.executing import Executing, enter
from serve_app.execution.files import NodeFiles
from serve_app.nodes.image import match_size
from serve_app.nodes.registry import BUILTIN
from serve_app.store.files.reserved import Contents
from serve_app.store.files.store import AREAS, Area, FileRef
from serve_app.store.files.volume import Volume


async def never(key: str, at_least: int, contents: Contents) -> tuple[int, bool]:
    raise AssertionError("nothing is saved")


def stored(tmp_path: Path, area: Area, subfolder: str = "") -> tuple[NodeFiles, torch.Tensor]:
    """Return files with a.png in an area, and its image."""
    volume = Volume({area: tmp_path / area for area in AREAS})
    pixels = np.random.default_rng(0).integers(0, 256, (5, 7, 4), dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    volume.write(FileRef(area, subfolder, "a.png"), buffer.getvalue())
    return NodeFiles(volume, "job", "1", never), torch.from_numpy(pixels).float() / 255


async def test_an_image_that_another_job_saved_is_loaded_with_its_mask(tmp_path: Path) -> None:
    files, image = stored(tmp_path, "output", "sub")
    images, masks = await BUILTIN["LoadImageOutput"]().load_image("sub/a.png [output]", files)
    assert torch.equal(images[0], image[..., :3])
    assert torch.equal(masks[0], 1 - image[..., 3])


async def test_a_webcam_picture_is_loaded_from_where_the_browser_put_it(tmp_path: Path) -> None:
    files, image = stored(tmp_path, "temp", "webcam")
    (images,) = await BUILTIN["WebcamCapture"]().load_capture("webcam/a.png [temp]", 0, 0, True, files)
    assert torch.equal(images[0], image[..., :3])


def run(class_type: str, **inputs: Any) -> Any:
    node = BUILTIN[class_type]()
    return getattr(node, BUILTIN[class_type].FUNCTION)(**inputs)[0]  # type: ignore[attr-defined]


def test_noise_of_one_seed_is_the_same_and_of_another_is_not() -> None:
    grey = torch.full((1, 8, 8, 3), 0.5)
    first, again, other = (run("ImageAddNoise", image=grey, seed=seed, strength=0.1) for seed in (1, 1, 2))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_a_stitch_without_a_second_image_is_the_first() -> None:
    image = torch.rand(1, 2, 3, 3)
    inputs = {"direction": "up", "match_image_size": True, "spacing_width": 2, "spacing_color": "red"}
    assert run("ImageStitch", image1=image, **inputs) is image


def test_an_opaque_image_blends_into_one_with_alpha() -> None:
    clear, white = torch.zeros(1, 2, 2, 4), torch.ones(1, 2, 2, 3)
    assert torch.equal(
        run("ImageBlend", image1=clear, image2=white, blend_factor=0.25, blend_mode="normal"), clear + 0.25
    )


def test_a_blur_that_reaches_over_the_image_is_an_error_that_says_both_sizes() -> None:
    with pytest.raises(NodeError, match="a radius of 5 reaches over an image of 9×4"):
        run("ImageBlur", image=torch.zeros(1, 4, 9, 3), blur_radius=5, sigma=1.0)


def test_blurring_and_sharpening_leave_an_even_image_as_it_is() -> None:
    even = torch.full((1, 9, 9, 3), 0.3)
    torch.testing.assert_close(run("ImageBlur", image=even, blur_radius=3, sigma=0.7), even)
    torch.testing.assert_close(run("ImageSharpen", image=even, sharpen_radius=3, sigma=0.7, alpha=2.0), even)


@pytest.mark.parametrize("dither", ["none", "floyd-steinberg", "bayer-16"])
def test_few_colours_are_no_more_than_were_asked_for(dither: str) -> None:
    few = run("ImageQuantize", image=torch.rand(1, 20, 20, 4), colors=5, dither=dither)
    assert few.shape == (1, 20, 20, 3)
    assert len(few.reshape(-1, 3).unique(dim=0)) <= 5


def half_black(low: float = 0.0, high: float = 1.0) -> torch.Tensor:
    image = torch.full((1, 12, 12, 3), low)
    image[:, :, 6:] = high
    return image


def test_the_edge_of_a_step_is_one_pixel_wide_and_lies_before_it() -> None:
    edges = run("Canny", image=half_black(), low_threshold=0.4, high_threshold=0.8)
    assert edges.shape == (1, 12, 12, 3)
    assert edges[0, :, 5].bool().all()
    assert edges.sum() == 12 * 3


def test_a_weak_edge_is_one_only_where_it_touches_a_strong_one() -> None:
    weak = half_black(0.0, 0.2).repeat(1, 4, 1, 1)
    assert not run("Canny", image=weak, low_threshold=0.4, high_threshold=0.8).any()
    fading = weak * torch.linspace(5, 1, 48).reshape(1, 48, 1, 1)
    edges = run("Canny", image=fading, low_threshold=0.4, high_threshold=0.8)
    # Rounding decides which side of the step is the stronger one.
    assert edges[0, :, 5:7].bool().any(1).all()


def test_a_low_threshold_above_the_high_one_is_an_error() -> None:
    with pytest.raises(NodeError, match=r"low_threshold 0\.9 is above high_threshold 0\.5"):
        run("Canny", image=half_black(), low_threshold=0.9, high_threshold=0.5)


@pytest.mark.parametrize("method", ["bilinear", "lanczos"])
def test_a_batch_that_is_resized_stops_between_its_parts_and_is_the_same_in_parts(
    method: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    images = torch.rand(5, 6, 4, 3, generator=torch.Generator().manual_seed(1))
    whole = match_size.resize(images, 8, 9, method, "center")
    monkeypatch.setattr(match_size, "AT_ONCE", 2 * 9 * 8 * 3)
    assert torch.equal(match_size.resize(images, 8, 9, method, "center"), whole)

    def unwanted() -> None:
        call = Executing("job", "1")
        call.stopped.set()
        enter(call)
        match_size.resize(images, 8, 9, method)

    with pytest.raises(NodeError, match="waited for no more"):
        contextvars.copy_context().run(unwanted)


def test_of_two_batches_one_without_alpha_becomes_opaque() -> None:
    (joined,) = BUILTIN["ImageBatch"]().batch(torch.zeros(1, 2, 2, 3), torch.zeros(1, 2, 2, 4))
    assert joined[..., 3].tolist() == [[[1.0, 1.0]] * 2, [[0.0, 0.0]] * 2]
