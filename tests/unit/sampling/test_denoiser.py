"""From a network's output to D(x, sigma), and what inpainting changes around it."""

from __future__ import annotations

import pytest
import torch

from serve_app.errors import NodeError
from serve_app.recipe.training import ContinuousEdm, Discrete, Flow, FluxFlow
from serve_app.sampling.denoiser import EPS, X0, Edm, ImgToImg, Lcm, V, Velocity, trained
from serve_app.sampling.latents.inpaint import Inpainting, latent_mask
from serve_app.sampling.lazy_sum import value
from serve_app.sampling.samplers.evaluation import Evaluation
from serve_app.sampling.schedules.levels import FlowLevels, TableLevels


def denoised(prediction, x, output, sigma):
    """Return D(x, sigma) of a network's output, as its prediction has it."""
    scaling = prediction.scaling(sigma)
    return x * scaling.c_skip + output * scaling.c_out


@pytest.mark.parametrize("sigma", [0.1, 2.0, 14.0])
def test_a_perfect_eps_network_denoises_at_every_level(sigma):
    clean, eps = torch.randn(2, 3, 4, 2, 2)
    torch.testing.assert_close(denoised(EPS, clean + eps * sigma, eps, sigma), clean, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("prediction", [EPS, V(), X0])
@pytest.mark.parametrize("sigma", [0.1, 2.0, 14.0])
def test_a_networks_input_has_unit_variance_at_every_level(prediction, sigma):
    clean, eps = torch.randn(2, 4, 64, 64, generator=torch.Generator().manual_seed(0))
    fed = (clean + eps * sigma) * prediction.scaling(sigma).c_in
    assert float(fed.var()) == pytest.approx(1, rel=0.05)


@pytest.mark.parametrize("sigma", [0.1, 2.0, 14.0])
def test_a_perfect_v_network_denoises_at_every_level(sigma):
    clean, eps = torch.randn(2, 3, 4, 2, 2, generator=torch.Generator().manual_seed(0))
    v = (eps - sigma * clean) / (1 + sigma**2) ** 0.5
    torch.testing.assert_close(denoised(V(), clean + sigma * eps, v, sigma), clean, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("sigma", [0.1, 2.0, 14.0])
def test_an_edm_network_that_is_zero_leaves_the_best_linear_guess_and_else_adds_to_it(sigma):
    x = torch.randn(3, 4, 2, 2)
    guess = x * 0.25 / (sigma**2 + 0.25)
    torch.testing.assert_close(denoised(Edm(0.5), x, torch.zeros_like(x), sigma), guess)
    assert Edm(0.5).scaling(sigma).c_out == -V(0.5).scaling(sigma).c_out > 0


def test_a_network_of_images_is_taken_at_its_word():
    assert X0.scaling(3.0)[1:] == ImgToImg.scaling(3.0)[1:] == (0.0, 1.0)
    assert ImgToImg.scaling(3.0).c_in == 1.0


def test_a_consistency_model_is_nearly_a_noise_prediction_on_levels_of_every_twentieth_timestep():
    levels, prediction = trained(Discrete("lcm"))
    assert isinstance(prediction, Lcm)
    assert levels.timestep(levels.sigmas).tolist() == list(range(19, 1000, 20))
    sigma = float(levels.sigmas[-1])
    assert prediction.scaling(sigma) == pytest.approx(EPS.scaling(sigma), rel=1e-3)


@pytest.mark.parametrize("sigma", [0.1, 0.5, 1.0])
def test_a_perfect_velocity_denoises_at_every_level(sigma):
    levels, prediction = trained(Flow(3.0))
    assert isinstance(prediction, Velocity)
    clean, drawn = torch.randn(2, 3, 16, 2, 2, generator=torch.Generator().manual_seed(0))
    x = levels.noised(clean, drawn, sigma)
    assert prediction.scaling(sigma).c_in == 1.0
    torch.testing.assert_close(denoised(prediction, x, drawn - clean, sigma), clean)


def test_the_two_flows_have_tables_of_their_own_and_one_prediction():
    (flow, of_flow), (flux, of_flux) = trained(Flow(3.0)), trained(FluxFlow(1.15))
    assert (len(flow.sigmas), len(flux.sigmas)) == (1000, 10000)
    assert type(of_flow) is type(of_flux) is Velocity


def test_a_network_from_image_to_image_on_levels_is_given_the_latents_alone_and_ends_with_their_inverse():
    levels, prediction = trained(Discrete("img_to_img_flow"))
    latents, output = torch.full((1, 4, 2, 2), 0.25), torch.full((1, 4, 2, 2), 0.75)
    x = levels.start(latents, torch.ones_like(latents), levels.sigma_max)
    assert torch.equal(x, latents)
    assert torch.equal(denoised(prediction, x, output, levels.sigma_max), output)
    assert torch.equal(levels.unnoised(output, 0.0), latents)


def test_training_to_zero_signal_reaches_far_above_the_usual_levels_and_keeps_the_lowest():
    usual, _ = trained(Discrete("v_prediction"))
    rescaled, _ = trained(Discrete("v_prediction", zsnr=True))
    assert rescaled.sigma_max == pytest.approx(4518.8, abs=0.1)
    assert rescaled.sigma_min == pytest.approx(usual.sigma_min, rel=1e-6)


@pytest.mark.parametrize(
    ("training", "message"),
    [
        (Discrete("flow"), "'flow' is not supported; supported are lcm, img_to_img_flow, eps, v_prediction, x0, img"),
        (
            ContinuousEdm("cosmos_rflow", 80.0, 0.002),
            "'cosmos_rflow' is not supported; supported are v_prediction, edm",
        ),
        (Flow(0.0), "shift 0 and multiplier 1000 of a flow must be above 0"),
        (ContinuousEdm("edm", 80.0, 0.0), "sigma_min 0.0 and sigma_max 80.0 leave no levels"),
    ],
)
def test_training_that_is_unknown_is_refused_with_what_is_known(training, message):
    with pytest.raises(NodeError, match=message):
        trained(training)


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


def test_for_latents_in_time_a_batch_of_masks_is_a_mask_in_time():
    mask = torch.zeros(2, 32, 32)
    mask[1] = 1
    scaled = latent_mask(mask, torch.zeros(3, 16, 2, 4, 4))
    assert scaled.shape == (3, 1, 2, 4, 4)
    assert torch.equal(scaled[:, :, 0], torch.zeros(3, 1, 4, 4))
    assert torch.equal(scaled[:, :, 1], torch.ones(3, 1, 4, 4))
    assert latent_mask(torch.ones(8, 8), torch.zeros(1, 16, 3, 4, 4)).shape == (1, 1, 3, 4, 4)


def test_inpainting_blends_by_the_mask_before_and_after_the_network():
    latents, noise, x = torch.full((1, 4, 1, 2), 3.0), torch.full((1, 4, 1, 2), 2.0), torch.zeros(1, 4, 1, 2)
    inpainting = Inpainting(torch.tensor([[[[0.25, 1.0]]]]), latents, noise, TableLevels())
    held = inpainting.hold(Evaluation(x, 5.0, 3))
    assert held.latents[0, 0, 0].tolist() == [0.75 * (3 + 2 * 5), 0.0]
    assert (held.sigma, held.step) == (5.0, 3)
    assert value(inpainting.restore(torch.ones_like(x), 5.0))[0, 0, 0].tolist() == [0.25 + 0.75 * 3, 1.0]


def test_what_a_flow_keeps_is_mixed_with_noise_before_the_network():
    latents, noise, x = torch.full((1, 4, 1, 2), 3.0), torch.full((1, 4, 1, 2), 2.0), torch.zeros(1, 4, 1, 2)
    inpainting = Inpainting(torch.tensor([[[[0.25, 1.0]]]]), latents, noise, FlowLevels(1.0, 1.0))
    held = inpainting.hold(Evaluation(x, 0.5, 3))
    assert held.latents[0, 0, 0].tolist() == [0.75 * (0.5 * 3 + 0.5 * 2), 0.0]
