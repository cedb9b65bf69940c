"""Noise levels: the table, those between two, and what latents at a level are."""

from __future__ import annotations

import math

import pytest
import torch

from serve_app.errors import NodeError
from serve_app.sampling.schedules.levels import AngleLevels, EdmLevels, FlowLevels, FluxLevels, TableLevels, single

LEVELS = TableLevels()
KINDS = {"table": LEVELS, "edm": EdmLevels(80.0, 0.002), "angle": AngleLevels(500.0, 0.03)}

FLOWS: dict[str, FlowLevels | FluxLevels] = {
    "flow": FlowLevels(3.0, 1000.0),
    "unshifted": FlowLevels(1.0, 1.0),
    "flux": FluxLevels(1.15),
}


def test_the_table_runs_from_stable_diffusions_lowest_to_its_highest_level():
    assert LEVELS.sigmas.shape == (1000,)
    assert (LEVELS.sigmas.diff() > 0).all()
    assert math.isclose(LEVELS.sigma_min, 0.0291672, rel_tol=1e-5)
    assert math.isclose(LEVELS.sigma_max, 14.614642, rel_tol=1e-5)


def test_a_table_of_even_betas_is_pixarts():
    """ComfyUI's, with the numbers that it has for PixArt."""
    sigmas = TableLevels(even=True).sigmas[[0, 1, 250, 500, 998, 999]]
    comfyuis = torch.tensor([0.0100005, 0.01483092, 0.95803374, 3.44296718, 155.82519531, 157.40728760])
    torch.testing.assert_close(sigmas, comfyuis, rtol=1e-6, atol=0)


def test_the_timestep_of_a_level_is_its_place_in_the_table():
    assert LEVELS.timestep(LEVELS.sigmas).tolist() == list(range(1000))


def test_a_level_between_two_timesteps_takes_the_nearer_one_in_log_space():
    low, high = LEVELS.sigmas[500].log(), LEVELS.sigmas[501].log()
    between = torch.stack([low + 0.49 * (high - low), low + 0.51 * (high - low)]).exp()
    assert LEVELS.timestep(between).tolist() == [500, 501]


def test_levels_beyond_the_table_take_its_ends():
    assert LEVELS.timestep(torch.tensor([[0.0, 1e-4], [100.0, 14.7]])).tolist() == [[0, 0], [999, 999]]


def test_the_level_of_a_timestep_between_two_is_their_geometric_mean():
    mean = (LEVELS.sigmas[10] * LEVELS.sigmas[11]).sqrt()
    torch.testing.assert_close(LEVELS.sigma(torch.tensor([10.5])), mean[None])
    torch.testing.assert_close(LEVELS.sigma(torch.tensor([-1.0, 2000.0])), LEVELS.sigmas[[0, -1]])


def test_progress_counts_timesteps_from_the_top():
    assert LEVELS.at_progress(0.5) == float(LEVELS.sigma(torch.tensor(499.5)))
    assert LEVELS.at_progress(0.0) == math.inf
    assert LEVELS.at_progress(1.0) == 0.0


@pytest.mark.parametrize("levels", KINDS.values(), ids=KINDS)
def test_every_kind_gives_back_the_level_whose_timestep_it_is_asked_for(levels):
    some = levels.sigmas[[0, 300, 700, -1]]
    torch.testing.assert_close(levels.sigma(levels.timestep(some)), some, rtol=1e-4, atol=0)


@pytest.mark.parametrize("levels", KINDS.values(), ids=KINDS)
def test_progress_goes_from_above_every_level_down_to_zero(levels):
    reached = [levels.at_progress(share) for share in (0.0, 0.001, 0.3, 0.7, 0.999, 1.0)]
    assert reached[0] == math.inf
    assert reached[-1] == 0.0
    assert reached == sorted(reached, reverse=True)
    assert levels.sigma_min <= reached[-2] < reached[1] <= levels.sigma_max


@pytest.mark.parametrize("levels", KINDS.values(), ids=KINDS)
def test_noised_latents_have_the_levels_variance_and_the_whole_signals_from_the_top(levels):
    latents, noise, top = torch.ones(1, 1, 2, 2), torch.full((1, 1, 2, 2), 2.0), levels.sigma_max
    torch.testing.assert_close(levels.noised(latents, noise, 3.0), latents + 6.0)
    torch.testing.assert_close(levels.start(latents, noise, top / 2), levels.noised(latents, noise, top / 2))
    for sigma in (top * (1 - 5e-6), top, top * 2):
        expected = latents + 2 * math.sqrt(1 + sigma**2)
        torch.testing.assert_close(levels.start(latents, noise, sigma), expected, rtol=1e-6, atol=0)
    below = top * (1 - 1e-4)
    torch.testing.assert_close(levels.start(latents, noise, below), levels.noised(latents, noise, below))


@pytest.mark.parametrize("levels", KINDS.values(), ids=KINDS)
def test_what_a_run_leaves_noise_in_are_its_latents_as_they_are(levels):
    x = torch.randn(1, 4, 2, 2)
    assert torch.equal(levels.unnoised(x, 3.0), x)
    assert levels.log_snr(math.e) == -1.0


def test_a_level_of_a_table_equals_itself_once_it_has_been_a_python_float():
    assert all(single(float(level)) == level for level in LEVELS.sigmas[::100])


@pytest.mark.parametrize("levels", FLOWS.values(), ids=FLOWS)
def test_levels_of_a_flow_rise_to_noise_alone(levels):
    assert (levels.sigmas.diff() > 0).all()
    assert levels.sigma_max == 1.0
    reached = [levels.at_progress(share) for share in (0.0, 0.001, 0.3, 0.7, 0.999, 1.0)]
    assert (reached[0], reached[-1]) == (1.0, 0.0)
    assert reached == sorted(reached, reverse=True)


def test_a_shift_of_three_moves_the_middle_of_time_to_three_quarters():
    assert FLOWS["flow"].at_progress(0.5) == pytest.approx(0.75)
    assert FLOWS["flow"].sigma(torch.tensor(500.0)).item() == pytest.approx(0.75)
    assert FLOWS["unshifted"].at_progress(0.5) == 0.5


def test_a_flow_gets_its_timestep_in_its_own_unit():
    sigma = torch.tensor([0.25, 1.0])
    assert FLOWS["flow"].timestep(sigma).tolist() == [250.0, 1000.0]
    assert FLOWS["unshifted"].timestep(sigma).tolist() == FLOWS["flux"].timestep(sigma).tolist() == [0.25, 1.0]


def test_fluxs_levels_are_a_flows_of_which_a_tenth_is_in_its_table():
    flow = FlowLevels(math.exp(1.15), 1.0)
    assert FLOWS["flux"].sigmas.shape == (10000,)
    torch.testing.assert_close(FLOWS["flux"].sigmas[9::10], flow.sigmas)
    assert FLOWS["flux"].at_progress(0.3) == pytest.approx(flow.at_progress(0.3))


@pytest.mark.parametrize("levels", FLOWS.values(), ids=FLOWS)
def test_a_flow_mixes_latents_and_noise_and_takes_the_latents_share_out_again(levels):
    latents, noise = torch.full((1, 16, 2, 2), 4.0), torch.full((1, 16, 2, 2), 8.0)
    torch.testing.assert_close(levels.noised(latents, noise, 0.25), torch.full_like(latents, 5.0))
    assert torch.equal(levels.start(latents, noise, 1.0), noise)
    x = levels.start(latents, torch.zeros_like(noise), 0.25)
    torch.testing.assert_close(levels.unnoised(x, 0.25), latents)
    assert torch.equal(levels.unnoised(x, 0.0), x)


@pytest.mark.parametrize("levels", FLOWS.values(), ids=FLOWS)
def test_half_the_latents_are_a_signal_to_noise_ratio_of_one(levels):
    assert levels.log_snr(0.5) == 0.0
    assert levels.log_snr(1.0) == -math.inf
    assert levels.log_snr(0.2) == pytest.approx(math.log(4))


def test_a_run_that_ends_in_noise_alone_says_that_nothing_is_left():
    with pytest.raises(NodeError, match="the sigmas end at 1, where only noise is left"):
        FLOWS["flow"].unnoised(torch.zeros(1), 1.0)
