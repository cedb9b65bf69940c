import pytest
import torch
from safetensors.torch import save_file

from serve_app.models.families import AutoencoderKL
from serve_app.models.files.checkpoint import Checkpoint
from serve_app.models.vae import Vae
from tests.unit.models.sample import random_tensors

ARCHITECTURE = AutoencoderKL((32, 32, 32, 64), 1, 4, 3, True)


@pytest.fixture(scope="module")
def vae(tmp_path_factory):
    path = tmp_path_factory.mktemp("vae") / "vae.safetensors"
    save_file(random_tensors(ARCHITECTURE, torch.float32), path)
    family, network = Checkpoint(path).load("vae")
    assert isinstance(family, AutoencoderKL)
    return Vae(family, network)


def noise(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def test_images_are_eight_times_the_latents_with_channels_last_between_zero_and_one(vae):
    images = vae.decode(5 * noise(2, 4, 3, 5))
    assert images.shape == (2, 24, 40, 3)
    assert images.min() == 0.0
    assert images.max() == 1.0


def test_latents_are_the_mean_not_a_draw(vae):
    images = torch.rand(1, 16, 16, 3)
    assert torch.equal(vae.encode(images), vae.encode(images))


def test_what_is_over_a_multiple_of_eight_is_cut_from_both_sides(vae):
    images = torch.rand(1, 21, 27, 3)
    assert torch.equal(vae.encode(images), vae.encode(images[:, 2:18, 1:25]))


def test_an_alpha_channel_is_ignored(vae):
    images = torch.rand(1, 16, 16, 4)
    assert torch.equal(vae.encode(images), vae.encode(images[..., :3]))


def test_a_batch_in_slices_is_what_it_is_at_once(vae):
    latents, images = noise(3, 4, 2, 2), torch.rand(3, 16, 16, 3)
    at_once = vae.decode(latents), vae.encode(images)
    in_slices = vae.decode(latents, slice_pixels=2 * 16 * 16), vae.encode(images, slice_pixels=2 * 16 * 16)
    torch.testing.assert_close(in_slices, at_once, rtol=1e-4, atol=1e-4)


def test_an_inference_sized_batch_is_cut_into_slices_of_whole_latents(vae, monkeypatch):
    seen = []
    decode = vae.network.decode
    monkeypatch.setattr(vae.network, "decode", lambda z, **rest: seen.append(len(z)) or decode(z, **rest))
    vae.decode(noise(3, 4, 2, 2), slice_pixels=16 * 16)
    vae.decode(noise(1, 4, 4, 4), slice_pixels=16 * 16)
    assert seen == [1, 1, 1, 1]


def test_a_cpu_is_given_no_more_than_keeps_it_busy(vae, monkeypatch):
    seen = []
    decode = vae.network.decode
    monkeypatch.setattr(vae.network, "decode", lambda z, **rest: seen.append(len(z)) or decode(z, **rest))
    vae.decode(noise(5, 4, 8, 8))
    vae.decode(noise(2, 4, 16, 16))
    assert seen == [4, 1, 1, 1]


def test_of_latents_of_a_video_the_first_is_decoded(vae):
    latents = noise(2, 4, 3, 2, 2)
    assert torch.equal(vae.decode(latents), vae.decode(latents[:, :, 0]))
