"""The schedules and the window of a job."""

from __future__ import annotations

import math

import pytest
import torch

from serve_app.errors import NodeError
from serve_app.sampling.request import Steps
from serve_app.sampling.samplers.evaluation import SamplerSpec
from serve_app.sampling.samplers.samplers import euler
from serve_app.sampling.schedules.levels import TableLevels
from serve_app.sampling.schedules.schedules import variance_preserving
from serve_app.sampling.schedules.sigmas import SCHEDULES, sigmas_for

LEVELS = TableLevels()
PLAIN = SamplerSpec(euler)


def window(steps, denoise=1.0, start=None, end=None, full=True, schedule="karras", spec=PLAIN):
    return sigmas_for(LEVELS, Steps(schedule, steps, denoise, start, end, full), spec)


@pytest.mark.parametrize("name", SCHEDULES)
@pytest.mark.parametrize("steps", [1, 2, 7, 20, 1000])
def test_a_schedule_descends_from_within_the_table_to_zero(name, steps):
    sigmas = SCHEDULES[name](LEVELS, steps)
    assert sigmas.dtype == torch.float32
    may_differ = name == "ddim_uniform" or (name == "beta" and steps == 1000)
    assert len(sigmas) >= 2 if may_differ else len(sigmas) == steps + 1
    assert (sigmas.diff() < 0).all()
    assert sigmas[-1] == 0
    assert sigmas[0] <= LEVELS.sigma_max * (1 + 1e-5)


def test_levels_of_a_variance_preserving_process_are_those_of_its_times():
    beta_d, beta_min = 19.0, 0.2
    found = variance_preserving(3, beta_d, beta_min, 0.5)
    wanted = [math.sqrt(math.expm1(beta_d * t * t / 2 + beta_min * t)) for t in (1.0, 0.75, 0.5)]
    torch.testing.assert_close(found, torch.tensor([*wanted, 0.0]))


@pytest.mark.parametrize("name", sorted(set(SCHEDULES) - {"ddim_uniform"}))
def test_every_schedule_but_ddim_uniform_starts_at_the_top_level(name):
    assert math.isclose(float(SCHEDULES[name](LEVELS, 6)[0]), LEVELS.sigma_max, rel_tol=1e-5)


@pytest.mark.parametrize("name", ["normal", "karras", "exponential", "kl_optimal"])
def test_these_schedules_end_their_last_step_from_the_lowest_level(name):
    assert math.isclose(float(SCHEDULES[name](LEVELS, 6)[-2]), LEVELS.sigma_min, rel_tol=1e-5)


def test_karras_levels_are_equally_spaced_in_their_seventh_root():
    gaps = SCHEDULES["karras"](LEVELS, 9)[:-1].double().pow(1 / 7).diff()
    torch.testing.assert_close(gaps, gaps[:1].expand_as(gaps), rtol=1e-4, atol=0)


def test_exponential_levels_have_one_ratio():
    ratios = SCHEDULES["exponential"](LEVELS, 9)[:-1].log().diff()
    torch.testing.assert_close(ratios, ratios[:1].expand_as(ratios), rtol=1e-4, atol=0)


def test_normal_and_sgm_uniform_space_timesteps_equally_with_and_without_the_last():
    timesteps = [LEVELS.timestep(SCHEDULES[name](LEVELS, 4)[:-1]).tolist() for name in ("normal", "sgm_uniform")]
    assert timesteps == [[999, 666, 333, 0], [999, 749, 500, 250]]


def test_simple_and_ddim_uniform_pick_levels_of_the_table_from_either_end():
    timesteps = [LEVELS.timestep(SCHEDULES[name](LEVELS, 4)[:-1]).tolist() for name in ("simple", "ddim_uniform")]
    assert timesteps == [[999, 749, 499, 249], [751, 501, 251, 1]]


def test_ddim_uniform_may_give_a_step_more_than_asked_for():
    assert len(SCHEDULES["ddim_uniform"](LEVELS, 6)) == 8


def test_beta_spaces_timesteps_as_its_quantiles_and_takes_none_twice():
    # Beta(0.6, 0.6) is symmetric with its median in the middle, and dense at both ends.
    timesteps = LEVELS.timestep(SCHEDULES["beta"](LEVELS, 4)[:-1]).tolist()
    assert timesteps[0] == 999
    assert timesteps[2] == round(999 / 2)
    assert abs(timesteps[1] + timesteps[3] - 999) <= 1
    assert timesteps[0] - timesteps[1] < timesteps[1] - timesteps[2]
    many = SCHEDULES["beta"](LEVELS, 1000)
    assert len(many) < 1001
    assert (many.diff() < 0).all()


def test_linear_quadratic_spends_a_fortieth_of_the_noise_in_equal_parts_and_the_rest_quadratically():
    spent = (1 - SCHEDULES["linear_quadratic"](LEVELS, 8) / LEVELS.sigma_max).double()
    torch.testing.assert_close(spent[:5], torch.linspace(0, 0.025, 5, dtype=torch.float64), rtol=0, atol=1e-6)
    curves = spent[4:].diff().diff()
    torch.testing.assert_close(curves, curves[:1].expand_as(curves), rtol=1e-4, atol=0)
    assert spent[-1] == 1


def test_kl_optimal_levels_are_equally_spaced_in_their_arctangent():
    gaps = SCHEDULES["kl_optimal"](LEVELS, 9)[:-1].double().atan().diff()
    torch.testing.assert_close(gaps, gaps[:1].expand_as(gaps), rtol=1e-4, atol=0)


def test_a_single_step_of_kl_optimal_starts_at_the_top():
    torch.testing.assert_close(SCHEDULES["kl_optimal"](LEVELS, 1), torch.tensor([LEVELS.sigma_max, 0.0]))


def test_a_partial_denoise_runs_the_last_steps_of_a_longer_schedule():
    assert torch.equal(window(5, denoise=0.5), window(10)[5:])
    assert torch.equal(window(5, denoise=0.6), window(8)[3:])
    assert len(window(6, denoise=0.9, schedule="ddim_uniform")) == 7


def test_no_denoise_runs_nothing():
    assert len(window(5, denoise=0.0)) == 0


def test_a_window_is_cut_out_of_the_schedule_and_keeps_its_last_level_when_noise_is_left_over():
    assert torch.equal(window(8, start=2, end=6, full=False), window(8)[2:7])


def test_a_window_ends_at_zero_when_no_noise_is_left_over():
    assert torch.equal(window(8, start=2, end=6), torch.cat([window(8)[2:6], torch.zeros(1)]))


def test_a_window_that_reaches_past_the_end_ends_at_zero_anyway():
    assert torch.equal(window(8, start=0, end=10000, full=False), window(8))


@pytest.mark.parametrize(("start", "end"), [(8, None), (10000, 10000), (3, 3), (5, 2), (0, 0), (None, 0)])
def test_an_empty_window_runs_nothing(start, end):
    assert len(window(8, start=start, end=end)) < 2


def test_a_sampler_that_discards_the_penultimate_level_gets_one_more_to_discard():
    sigmas = window(5, spec=SamplerSpec(euler, discards_penultimate=True))
    assert torch.equal(sigmas, torch.cat([window(6)[:5], torch.zeros(1)]))


def test_an_unknown_schedule_is_named_with_the_nearest_known_one():
    with pytest.raises(NodeError, match=r"^schedule 'karas' is unknown; did you mean 'karras'\?$"):
        window(5, schedule="karas")
    with pytest.raises(NodeError, match="known are simple, sgm_uniform, karras"):
        window(5, schedule="zzz")
