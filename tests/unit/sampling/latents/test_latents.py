"""Between an autoencoder's latents and those that backbones sample."""

from __future__ import annotations

import pytest
import torch

from serve_app.errors import NodeError
from serve_app.sampling.latents.latents import LatentFormat

ONE = LatentFormat(16, scale=0.3611, shift=0.1159)
COARSE = LatentFormat(128, factor=16)
EACH = LatentFormat(3, scale=(0.5, 0.25, 2.0), shift=(1.0, -1.0, 0.0), frames=4)


def test_one_scale_and_shift_serve_all_channels():
    latents = torch.full((2, 16, 2, 2), 1.1159)
    torch.testing.assert_close(ONE.to_model(latents), torch.full_like(latents, 0.3611))


def test_a_mean_and_deviation_a_channel_are_those_of_its_own_channel_in_images_and_in_video():
    for shape in ((2, 3, 4, 4), (2, 3, 5, 4, 4)):
        x = EACH.to_model(torch.ones(shape))
        assert [set(x[:, channel].flatten().tolist()) for channel in range(3)] == [{0.0}, {0.5}, {2.0}]


@pytest.mark.parametrize("latent_format", [ONE, EACH])
def test_what_goes_in_comes_out(latent_format):
    latents = torch.randn(2, latent_format.channels, 4, 6, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(latent_format.from_model(latent_format.to_model(latents)), latents)


def test_without_a_shift_latents_are_multiplied_and_divided_to_the_bit():
    latents, scaled = torch.randn(1, 4, 8, 8), LatentFormat(4, scale=0.18215)
    assert torch.equal(scaled.to_model(latents), latents * 0.18215)
    assert torch.equal(scaled.from_model(latents), latents / 0.18215)


@pytest.mark.parametrize(
    ("latent_format", "shape", "says"),
    [
        (ONE, (1, 4, 8, 8), r"\(1,4,8,8\); this model samples latents \(batch,16,height,width\)"),
        (ONE, (1, 16, 1, 8, 8), r"\(1,16,1,8,8\)"),
        (EACH, (1, 4, 1, 8, 8), r"samples latents \(batch,3,time,height,width\)"),
        (ONE, (16, 8, 8), r"\(16,8,8\)"),
    ],
)
def test_latents_of_another_kind_are_refused_with_what_is_sampled(latent_format, shape, says):
    with pytest.raises(NodeError, match=says):
        latent_format.accept(torch.ones(shape))


@pytest.mark.parametrize(
    ("latent_format", "shape", "factor", "accepted"),
    [
        (ONE, (2, 4, 8, 6), None, (2, 16, 8, 6)),
        (ONE, (2, 16, 8, 6), 8, (2, 16, 8, 6)),
        (ONE, (1, 128, 4, 3), 16, (1, 16, 8, 6)),
        (COARSE, (1, 4, 9, 6), 8, (1, 128, 4, 3)),
        (COARSE, (1, 4, 11, 1), 8, (1, 128, 6, 1)),
        (EACH, (2, 4, 8, 6), 8, (2, 3, 1, 8, 6)),
        (EACH, (2, 16, 5, 8, 6), None, (2, 3, 5, 8, 6)),
    ],
)
def test_empty_latents_become_those_of_the_same_image(latent_format, shape, factor, accepted):
    empty = latent_format.accept(torch.zeros(shape), factor)
    assert empty.shape == accepted
    assert not empty.any()


def test_latents_of_an_image_get_an_axis_of_time_and_keep_their_size():
    latents = torch.randn(2, 3, 8, 6)
    accepted = EACH.accept(latents, 16)
    assert isinstance(accepted, torch.Tensor)
    assert torch.equal(accepted, latents[:, :, None])
    assert EACH.accept(accepted) is accepted
