"""Pictures of latents, against the linear map they are."""

from __future__ import annotations

import io

import numpy as np
import pytest
import torch
from PIL import Image

from serve_app.engine.preview import in_eight_bits, picture
from serve_app.images import to_preview
from serve_app.sampling.latents import latent_formats as formats
from serve_app.sampling.latents.latents import LatentFormat


@pytest.mark.parametrize(
    ("latent_format", "channel", "expected"),
    [
        # (1 + the map's row + its offset) / 2 * 255, cut off, for a latent of one channel; the rows as published.
        (formats.SD, 0, (172, 156, 168)),
        (formats.SD, 3, (100, 94, 35)),
        (formats.SDXL, 1, (109, 124, 140)),
    ],
)
def test_a_latent_of_one_channel_has_the_colour_of_its_row(latent_format, channel, expected):
    latents = torch.zeros(2, 4, 3, 5)
    latents[0, channel] = 1.0
    shown = picture(latents, latent_format)
    assert shown is not None
    assert shown.shape == (3, 5, 3)
    assert tuple(in_eight_bits(shown)[1, 2].tolist()) == expected


def test_a_cell_of_several_places_shows_each_of_them():
    latents = torch.zeros(1, 128, 3, 5)
    latents[0, 4 * 8 + 1, 1, 2] = 10.0
    shown = picture(latents, formats.FLUX2)
    grey = tuple(int((1 + offset) / 2 * 255) for offset in (-0.0329, -0.0718, -0.0851))
    assert shown is not None
    assert shown.shape == (6, 10, 3)
    shades = in_eight_bits(shown)
    others = [place for place in [(2, 4), (2, 5), (3, 4), (3, 5)] if tuple(shades[place].tolist()) != grey]
    assert others == [(2, 5)]


def test_the_preview_of_a_video_is_its_first_latent_frame():
    latents = torch.zeros(2, 16, 3, 4, 6)
    latents[:, :, 1:] = 1.0
    latents[1] = 1.0
    still = torch.zeros(1, 16, 1, 4, 6)
    moving, unmoved = picture(latents, formats.WAN), picture(still, formats.WAN)
    assert moving is not None
    assert unmoved is not None
    assert torch.equal(moving, unmoved)


def test_colours_end_at_black_and_white():
    latents = torch.full((1, 4, 1, 1), 100.0)
    shown = picture(latents, formats.SDXL)
    assert shown is not None
    assert set(in_eight_bits(shown).flatten().tolist()) == {0, 255}


def test_latents_without_a_map_have_no_picture():
    assert picture(torch.zeros(1, 16, 2, 2), LatentFormat(16)) is None


@pytest.mark.parametrize(("size", "shown"), [((64, 32), (512, 256)), ((2048, 1024), (512, 256))])
def test_a_preview_is_a_jpeg_whose_longer_side_is_512(size, shown):
    for made in (Image.new("RGBA", size), np.zeros((size[1], size[0], 3), np.uint8)):
        image = Image.open(io.BytesIO(to_preview(made)))
        assert (image.format, image.size) == ("JPEG", shown)
