"""From a network's output to D(x, sigma), and what inpainting changes around it."""

from __future__ import annotations

import torch

from serve_app.sampling.denoiser import EPS
from serve_app.sampling.evaluation import Evaluation
from serve_app.sampling.inpaint import Inpainting, latent_mask


def test_a_perfect_eps_network_denoises_every_row_at_its_own_level():
    clean, eps = torch.randn(3, 4, 2, 2), torch.randn(3, 4, 2, 2)
    sigma = torch.tensor([0.1, 2.0, 14.0])
    x = clean + eps * sigma.view(3, 1, 1, 1)
    torch.testing.assert_close(EPS.denoised(x, eps, sigma), clean, rtol=1e-4, atol=1e-5)


def test_an_eps_networks_input_has_unit_variance_at_every_level():
    sigma = torch.tensor([0.1, 2.0, 14.0])
    clean, eps = torch.randn(2, 3, 4, 64, 64, generator=torch.Generator().manual_seed(0))
    fed = EPS.scale_input(clean + eps * sigma.view(3, 1, 1, 1), sigma)
    torch.testing.assert_close(fed.var(dim=(1, 2, 3)), torch.ones(3), rtol=0.05, atol=0)


def test_a_mask_of_pixels_becomes_one_value_a_latent_for_every_latent_of_the_batch():
    mask = torch.zeros(2, 32, 32)
    mask[0, :16], mask[1, :, :16] = 1, 1
    scaled = latent_mask(mask, torch.zeros(3, 4, 4, 4))
    assert scaled.shape == (3, 1, 4, 4)
    assert torch.equal(scaled[0, 0, :, 0], torch.tensor([1.0, 1, 0, 0]))
    assert torch.equal(scaled[1, 0, 0, :], torch.tensor([1.0, 1, 0, 0]))
    assert torch.equal(scaled[2], scaled[0])


def test_a_mask_without_a_batch_serves_a_whole_batch():
    assert latent_mask(torch.ones(8, 8), torch.zeros(2, 4, 4, 4)).shape == (2, 1, 4, 4)


def test_inpainting_blends_by_the_mask_before_and_after_the_network():
    latents, noise, x = torch.full((1, 4, 1, 2), 3.0), torch.full((1, 4, 1, 2), 2.0), torch.zeros(1, 4, 1, 2)
    inpainting = Inpainting(torch.tensor([[[[0.25, 1.0]]]]), latents, noise)
    held = inpainting.hold(Evaluation(x, 5.0, 3))
    assert held.x[0, 0, 0].tolist() == [0.75 * (3 + 2 * 5), 0.0]
    assert (held.sigma, held.step) == (5.0, 3)
    assert inpainting.restore(torch.ones_like(x))[0, 0, 0].tolist() == [0.25 + 0.75 * 3, 1.0]
