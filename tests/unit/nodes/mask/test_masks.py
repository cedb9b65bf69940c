"""The nodes for masks and morphology, on pictures whose answers can be counted."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from serve_app.errors import NodeError
from serve_app.execution.files import NodeFiles
from serve_app.nodes.mask.masks import (
    feather_mask,
    image_color_to_mask,
    image_to_mask,
    load_image_mask,
    mask_composite,
    mask_preview,
    mask_to_image,
)
from serve_app.nodes.mask.morphology import grow_mask, morphology
from serve_app.store.files.reserved import Contents
from serve_app.store.files.store import AREAS, FileRef
from serve_app.store.files.volume import Volume


@pytest.fixture
def volume(tmp_path: Path) -> Volume:
    return Volume({area: tmp_path / area for area in AREAS})


@pytest.fixture
def files(volume: Volume) -> NodeFiles:
    async def reserve(key: str, at_least: int, contents: Contents) -> tuple[int, bool]:
        return at_least, False

    return NodeFiles(volume, "job", "node", reserve)


def upload(volume: Volume, image: Image.Image, **options: Any) -> None:
    buffer = io.BytesIO()
    image.save(buffer, "PNG", **options)
    volume.write(FileRef("input", "", "a.png"), buffer.getvalue())


@pytest.mark.parametrize(("channel", "index"), [("red", 0), ("green", 1), ("blue", 2), ("alpha", 3)])
async def test_a_channel_of_a_file_is_loaded_as_a_mask(
    volume: Volume, files: NodeFiles, channel: str, index: int
) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (5, 7, 4), dtype=np.uint8)
    upload(volume, Image.fromarray(pixels))
    mask = await load_image_mask("a.png", channel, files)
    values = torch.from_numpy(pixels[..., index]) / 255
    assert mask.shape == (1, 5, 7)
    torch.testing.assert_close(mask[0], 1 - values if channel == "alpha" else values, rtol=0, atol=1e-7)


async def test_a_file_without_alpha_masks_nothing(volume: Volume, files: NodeFiles) -> None:
    upload(volume, Image.new("RGB", (7, 5), (255, 0, 51)))
    alpha = await load_image_mask("a.png", "alpha", files)
    blue = await load_image_mask("a.png", "blue", files)
    assert torch.equal(alpha, torch.zeros(1, 64, 64))
    assert torch.equal(blue, torch.full((1, 5, 7), 0.2))


async def test_a_picture_taken_upright_is_masked_upright(volume: Volume, files: NodeFiles) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # stored turned by 90 degrees
    upload(volume, Image.new("RGB", (7, 5)), exif=exif)
    mask = await load_image_mask("a.png", "red", files)
    assert mask.shape == (1, 7, 5)


async def test_a_file_that_is_no_image_is_refused(volume: Volume, files: NodeFiles) -> None:
    volume.write(FileRef("input", "", "a.png"), b"text")
    with pytest.raises(NodeError, match="is no image that can be read"):
        await load_image_mask("a.png", "red", files)


async def test_a_preview_shows_every_mask_as_grey(volume: Volume, files: NodeFiles) -> None:
    masks = torch.stack([torch.zeros(3, 4), torch.full((3, 4), 0.5)])
    shown = await mask_preview([masks], [{}], [None], [files])
    greys = []
    for item in shown["ui"]["images"]:
        assert item["type"] == "temp"
        with volume.open(FileRef("temp", item["subfolder"], item["filename"])) as file:
            greys.append(Image.open(io.BytesIO(file.read())).getpixel((3, 2)))
    assert greys == [(0, 0, 0), (127, 127, 127)]
    assert shown["ui"]["animated"] == (False,)


def test_a_colour_is_found_as_it_rounds_to_eight_bits() -> None:
    image = torch.tensor([[[[1.0, 0.5, 0.0], [1.0, 0.498, -3.0], [2.0, 0.5, 0.0], [0.99, 0.5, 0.0]]]])
    assert image_color_to_mask(image, 0xFF8000).tolist() == [[[1, 0, 1, 0]]]


def test_a_channel_that_an_image_lacks_is_named() -> None:
    with pytest.raises(NodeError, match="channel is 'alpha', and the image has 3 channels"):
        image_to_mask(torch.zeros(1, 2, 2, 3), "alpha")


def test_a_mask_becomes_an_image_and_its_channel_a_mask_again() -> None:
    mask = torch.rand(2, 3, 4)
    image = mask_to_image(mask)
    assert torch.equal(image_to_mask(image, "green"), mask)


@pytest.mark.parametrize(("x", "y"), [(9, 0), (0, 7), (50, 50)])
def test_a_mask_laid_outside_another_changes_nothing(x: int, y: int) -> None:
    below = torch.rand(1, 7, 9)
    assert torch.equal(mask_composite(below, torch.ones(3, 2, 2), x, y, "add"), below)


def test_several_masks_are_laid_over_as_many_and_no_more() -> None:
    above = torch.stack([torch.full((1, 1), value) for value in (0.25, 0.5, 0.75)])
    out = mask_composite(torch.zeros(2, 1, 2), above, 1, 0, "add")
    assert out.tolist() == [[[0, 0.25]], [[0, 0.5]]]


def test_edges_fade_in_over_the_given_number_of_pixels() -> None:
    out = feather_mask(torch.ones(1, 1, 8), left=4, top=0, right=0, bottom=0)
    assert out[0, 0].tolist() == [0.25, 0.5, 0.75, 1, 1, 1, 1, 1]


def test_a_side_below_zero_which_a_link_may_bring_fades_nothing() -> None:
    out = feather_mask(torch.ones(1, 2, 4), left=-3, top=0, right=2, bottom=-1)
    assert out[0].tolist() == [[1, 1, 1, 0.5]] * 2


@pytest.mark.parametrize("tapered", [True, False])
@pytest.mark.parametrize("expand", [1, 3, 30])
def test_a_point_grows_to_all_within_the_given_number_of_steps(expand: int, tapered: bool) -> None:
    mask = torch.zeros(1, 9, 13)
    mask[0, 2, 5] = 0.75
    out = grow_mask(mask, expand, tapered)
    rows, columns = (torch.arange(9) - 2).abs()[:, None], (torch.arange(13) - 5).abs()
    steps = rows + columns if tapered else torch.maximum(rows, columns)
    assert torch.equal(out[0], (steps <= expand) * 0.75)
    assert torch.equal(grow_mask(1 - mask, -expand, tapered), 1 - out)


@pytest.mark.parametrize("size", [3, 4, 9, 40])
def test_opening_takes_away_and_closing_adds_and_once_is_enough(size: int) -> None:
    image = torch.rand(2, 11, 14, 3)
    opened = morphology(image, "open", size)
    closed = morphology(image, "close", size)
    assert (opened <= image).all()
    assert (closed >= image).all()
    assert torch.equal(morphology(opened, "open", size), opened)
    assert torch.equal(morphology(closed, "close", size), closed)


@pytest.mark.parametrize("size", [3, 4, 7])
def test_erosion_takes_the_smallest_of_a_square(size: int) -> None:
    image = torch.rand(1, 8, 9, 1)
    eroded = morphology(image, "erode", size)
    start = size // 2
    expected = [
        [image[0, max(0, i - start) : i - start + size, max(0, j - start) : j - start + size].min() for j in range(9)]
        for i in range(8)
    ]
    assert torch.equal(eroded[0, ..., 0], torch.tensor(expected))
