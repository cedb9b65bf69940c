"""Samplers against exact solutions. For data N(0, s²) the denoiser x·s²/(s²+σ²) is exact and linear, so the flow of the
probability ODE is known: x(σ) is proportional to √(s²+σ²)."""

from __future__ import annotations

from functools import partial
from itertools import pairwise
from math import log2, nan, sqrt

import pytest
import torch

from serve_app.errors import NodeError
from serve_app.sampling.noise import brownian_noise, gaussian_noise
from serve_app.sampling.samplers import sde, seeds, stochastic
from serve_app.sampling.samplers.adams import deis, ipndm, ipndm_v, lms
from serve_app.sampling.samplers.dpm_solver import dpm_adaptive, dpm_fast
from serve_app.sampling.samplers.evaluation import Evaluation, next_evaluation
from serve_app.sampling.samplers.multistep import dpmpp_2m, res_multistep
from serve_app.sampling.samplers.sa_solver import sa_solver
from serve_app.sampling.samplers.samplers import SAMPLERS, dpm_2, euler, gradient_estimation, heun, heunpp2
from serve_app.sampling.samplers.stochastic import ancestral_step, euler_ancestral, lcm
from serve_app.sampling.samplers.unipc import uni_pc
from serve_app.sampling.schedules.levels import FlowLevels, TableLevels

S = 0.7
TOP, BOTTOM = 8.0, 0.2
LEVELS = TableLevels()
ENDS_AT_THE_LAST_LEVEL_ABOVE_ZERO = {"dpm_fast", "dpm_adaptive"}


def gaussian(evaluation):
    return evaluation.x * S**2 / (S**2 + evaluation.sigma**2)


def drive(sampler, answer=gaussian):
    """Answer a sampler's evaluations, cond and uncond alike; return (final x, the evaluations)."""
    seen, sent = [], None
    while True:
        try:
            evaluation = next_evaluation(sampler, sent)
        except StopIteration as end:
            return end.value, seen
        seen.append(evaluation)
        sent = answer(evaluation)
        if evaluation.want_uncond:
            sent = (sent, sent)


def geometric(steps, top=TOP, bottom=BOTTOM):
    """Levels of one ratio, in double precision, without a zero at the end."""
    return top * (bottom / top) ** torch.linspace(0, 1, steps + 1, dtype=torch.float64)


def silent(_sigma, _following):
    return torch.zeros(1, 1, 1, 1, dtype=torch.float64)


def error(sampler, sigmas):
    """Return how far a sampler ends from the exact flow from TOP to BOTTOM."""
    x, _ = drive(sampler(torch.ones(1, 1, 1, 1, dtype=torch.float64), sigmas))
    exact = sqrt((S**2 + BOTTOM**2) / (S**2 + TOP**2))
    return abs(float(x) - exact)


def without_noise(sampler, **options):
    """Return a stochastic sampler as the deterministic one it is at eta = 0."""
    return lambda x, sigmas: sampler(x, sigmas, silent, eta=0.0, **options)


# The multistep ones begin with a step of Euler's, whose error of second order stays. iPNDM's weights are exact only for
# equal steps, and UniPC's last steps are of lower order. Heun++ weighs slopes as no Taylor series would.
ORDERS = {
    "euler": (euler, 1),
    "heun": (heun, 2),
    "heunpp2": (heunpp2, 1),
    "dpm_2": (dpm_2, 2),
    "gradient_estimation": (gradient_estimation, 1),
    "dpmpp_2m": (dpmpp_2m, 2),
    "res_multistep": (res_multistep, 2),
    "lms": (lms, 2),
    "ipndm": (ipndm, 2),
    "uni_pc": (partial(uni_pc, variant="bh1"), 2),
    "uni_pc_bh2": (partial(uni_pc, variant="bh2"), 2),
    "dpm_2_ancestral": (without_noise(stochastic.dpm_2_ancestral), 2),
    "dpmpp_2s_ancestral": (without_noise(stochastic.dpmpp_2s_ancestral), 2),
    "dpmpp_2m_sde": (without_noise(sde.dpmpp_2m_sde), 2),
    "dpmpp_2m_sde_heun": (without_noise(sde.dpmpp_2m_sde, solver="heun"), 2),
    "dpmpp_3m_sde": (without_noise(sde.dpmpp_3m_sde), 2),
    "seeds_2": (without_noise(seeds.seeds_2), 2),
    "exp_heun_2_x0": (without_noise(seeds.seeds_2, r=1.0, solver="phi_2"), 2),
    "seeds_3": (without_noise(seeds.seeds_3), 3),
}


@pytest.mark.parametrize("name", ORDERS)
def test_halving_the_steps_divides_the_error_by_two_to_the_samplers_order(name):
    sampler, order = ORDERS[name]
    measured = log2(error(sampler, geometric(256)) / error(sampler, geometric(512)))
    assert abs(measured - order) < 0.15


def test_deis_converges_at_second_order_or_better():
    # Up to where its coefficients, sums over 10000 points, are no longer exact.
    assert log2(error(deis, geometric(32)) / error(deis, geometric(64))) > 1.9


def test_ipndm_v_converges_at_third_order_or_better():
    assert log2(error(ipndm_v, geometric(128)) / error(ipndm_v, geometric(256))) > 2.9


def test_more_slopes_are_more_exact_than_two():
    for sampler in (lms, deis, ipndm_v):
        assert error(sampler, geometric(64)) < error(partial(sampler, order=2), geometric(64)) / 2


def test_dpm_fast_is_of_third_order_where_its_last_step_is_of_second():
    # 3·k + 2 evaluations are k steps of third order and one of second, whose local error is of third.
    assert abs(log2(error(dpm_fast, geometric(95)) / error(dpm_fast, geometric(191))) - 3) < 0.1


def test_sa_solver_without_noise_converges_at_third_order_or_better():
    # Its corrector makes the first step one of second order.
    def solver(x, sigmas):
        return sa_solver(x, sigmas, silent, interval=(0.0, 0.0))

    assert log2(error(solver, geometric(64)) / error(solver, geometric(128))) > 2.9


def test_dpm_adaptive_is_the_more_exact_the_less_its_orders_may_differ():
    errors = [error(partial(dpm_adaptive, rtol=rtol, atol=rtol / 10), geometric(4)) for rtol in (0.1, 0.01, 0.001)]
    assert errors[0] > 3 * errors[1] > 9 * errors[2]


def test_dpm_adaptive_takes_three_evaluations_a_step_and_tries_a_step_that_was_too_long_again():
    x = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(1)) * TOP

    def rough_below_one(e):
        return e.x * 0.5 + torch.sin(8 * e.x) if e.sigma < 1 else e.x * 0.5

    _, seen = drive(dpm_adaptive(x, geometric(4).float(), h_init=1.0), rough_below_one)
    starts = [e.sigma for e in seen[::3]]
    assert len(seen) % 3 == 0
    assert len(set(starts)) < len(starts)
    assert starts == sorted(starts, reverse=True)


def test_dpm_adaptive_ends_when_the_network_answers_with_something_not_finite():
    x, seen = drive(dpm_adaptive(torch.ones(1, 1, 2, 2), geometric(4).float()), lambda e: e.x * nan)
    assert x.isnan().all()
    assert len(seen) == 3


def test_dpm_adaptive_has_two_orders_and_steps_forward() -> None:
    x, sigmas = torch.ones(1, 1, 1, 1), geometric(4)
    with pytest.raises(NodeError, match="order is 4; dpm_adaptive has 2 and 3"):
        next(dpm_adaptive(x, sigmas, order=4))
    forwards, backwards = (drive(dpm_adaptive(x, sigmas, h_init=h))[0] for h in (0.1, -0.1))
    assert torch.equal(forwards, backwards)


@pytest.mark.parametrize(
    "sampler", [partial(lms, order=200), partial(sa_solver, noise=silent, interval=(0.0, 0.0), predictor_order=200)]
)
def test_too_many_evaluations_are_not_combined(sampler) -> None:
    x = torch.ones(1, 1, 1, 1)
    drive(sampler(x, geometric(100)))
    with pytest.raises(NodeError, match="combines 101 evaluations; at most 100"):
        drive(sampler(x, geometric(200)))


def test_a_single_step_leaves_dpm_adaptive_and_dpm_fast_where_they_are():
    x, sigmas = torch.randn(1, 4, 2, 2), torch.tensor([TOP, 0.0])
    torch.testing.assert_close(drive(dpm_adaptive(x, sigmas))[0], x)
    torch.testing.assert_close(drive(dpm_fast(x, sigmas))[0], x)


def run(name, x, sigmas, answer=gaussian):
    return drive(SAMPLERS[name].start(x, sigmas, 3, LEVELS), answer)


def to_zero(steps):
    return torch.cat([geometric(steps).float(), torch.zeros(1)])


@pytest.mark.parametrize("name", sorted(set(SAMPLERS) - ENDS_AT_THE_LAST_LEVEL_ABOVE_ZERO))
def test_a_sampler_with_a_constant_prediction_ends_on_it(name):
    picture = torch.randn(2, 4, 4, 4)
    x, _ = run(name, torch.randn(2, 4, 4, 4) * TOP, to_zero(6), lambda _: picture)
    # UniPC ends at a level of 0.001.
    torch.testing.assert_close(x, picture, rtol=1e-4, atol=0.01 if name.startswith("uni_pc") else 1e-4)


@pytest.mark.parametrize("name", sorted(ENDS_AT_THE_LAST_LEVEL_ABOVE_ZERO))
def test_these_samplers_with_a_constant_prediction_leave_the_last_levels_noise_on_it(name):
    picture, x = torch.randn(2, 4, 4, 4), torch.randn(2, 4, 4, 4) * TOP
    final, _ = run(name, x, to_zero(6), lambda _: picture)
    torch.testing.assert_close(final, picture + (x - picture) * (BOTTOM / TOP), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", SAMPLERS)
def test_a_sampler_starts_at_x_and_visits_its_steps_in_order(name):
    x = torch.randn(1, 4, 2, 2)
    _, seen = run(name, x, to_zero(4))
    assert isinstance(seen[0], Evaluation)
    assert torch.equal(seen[0].latents, x)
    assert seen[0].sigma == pytest.approx(TOP)
    steps = [e.step for e in seen]
    assert steps == sorted(steps)
    if name != "dpm_adaptive":
        # DPM-Solver-fast takes these five as one step of third order and one of second.
        assert set(steps) == ({0, 3} if name == "dpm_fast" else {0, 1, 2, 3, 4})


@pytest.mark.parametrize("name", SAMPLERS)
def test_a_sampler_leaves_the_x_and_sigmas_it_is_given_alone(name):
    x, sigmas = torch.randn(1, 4, 2, 2), to_zero(4)
    before = x.clone(), sigmas.clone()
    run(name, x, sigmas)
    assert torch.equal(x, before[0])
    assert torch.equal(sigmas, before[1])


@pytest.mark.parametrize("name", SAMPLERS)
def test_a_sampler_runs_a_single_step_and_a_window_that_leaves_noise_over(name):
    x = torch.randn(1, 4, 4, 4) * TOP
    for sigmas in (torch.tensor([TOP, 0.0]), geometric(1).float(), geometric(3).float()):
        final, _ = run(name, x, sigmas)
        assert final.shape == x.shape
        assert final.isfinite().all()


@pytest.mark.parametrize("name", [name for name in SAMPLERS if name.endswith("_cfg_pp")])
def test_a_cfg_pp_sampler_wants_uncond_and_is_the_plain_one_where_uncond_is_the_same(name):
    x = torch.randn(1, 4, 4, 4) * TOP
    final, seen = run(name, x, to_zero(6))
    plain, _ = run(name.removesuffix("_cfg_pp"), x, to_zero(6))
    assert all(e.want_uncond for e in seen)
    # The 2S one takes what guidance did from two evaluations, between which `denoised` has moved.
    if name != "dpmpp_2s_ancestral_cfg_pp":
        torch.testing.assert_close(final, plain)


@pytest.mark.parametrize(
    ("levels", "sigmas", "start", "answers", "expected"),
    [
        (LEVELS, (4, 2, 1), 10.0, [(2, 1), (3, 1.5)], 5.56015625),
        (LEVELS, (4, 2, 1, 0), 10.0, [(2, 1), (3, 1.5), (2.5, 7)], 2.0),
        (LEVELS, (4, 0), 10.0, [(2, 1)], 2.0),
        (FlowLevels(3.0, 1000.0), (0.8, 0.4, 0.2), 1.0, [(0.5, 0.25), (0.75, 0.5)], 0.8484375),
    ],
)
def test_ud10_with_history_gives_what_its_formulas_give_on_paper(levels, sigmas, start, answers, expected):
    # ComfyUI 0.33 has it not, so no figure of a reference is compared: these were worked out by hand.
    x = torch.full((1, 1, 1, 1), start, dtype=torch.float64)
    sampler = SAMPLERS["cfgpp_ud10_ab"].start(x, torch.tensor(sigmas, dtype=torch.float64), 3, levels)
    assert next(sampler).want_uncond
    for denoised, uncond in answers[:-1]:
        assert sampler.send((torch.full_like(x, denoised), torch.full_like(x, uncond))).want_uncond
    with pytest.raises(StopIteration) as end:
        sampler.send(tuple(torch.full_like(x, value) for value in answers[-1]))
    assert float(end.value.value) == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("name", [name for name in SAMPLERS if name.endswith("_gpu")])
def test_a_gpu_variant_draws_the_same_noise_as_its_namesake(name):
    x = torch.randn(1, 4, 4, 4) * TOP
    assert torch.equal(run(name, x, to_zero(3))[0], run(name.removesuffix("_gpu"), x, to_zero(3))[0])


def test_these_samplers_discard_the_penultimate_level():
    discarding = {name for name, spec in SAMPLERS.items() if spec.discards_penultimate}
    assert discarding == {"dpm_2", "dpm_2_ancestral", "uni_pc", "uni_pc_bh2"}


def test_heun_evaluates_twice_a_step_and_once_on_a_step_to_zero():
    sigmas = torch.tensor([4.0, 2.0, 1.0, 0.0])
    _, seen = drive(heun(torch.ones(1, 1, 1, 1), sigmas))
    assert [(e.sigma, e.step) for e in seen] == [(4.0, 0), (2.0, 0), (2.0, 1), (1.0, 1), (1.0, 2)]


def test_an_ancestral_step_keeps_the_variance_of_the_level_it_goes_to():
    down, up = ancestral_step(5.0, 3.0)
    assert down**2 + up**2 == pytest.approx(9.0)
    assert ancestral_step(5.0, 3.0, eta=0.0) == (3.0, 0.0)


def pure_noise(sampler, steps, noise=gaussian_noise):
    """Return where a sampler ends from x of the variance that Gaussian data has at the top level."""
    x = torch.randn(1, 1, 100, 100, generator=torch.Generator().manual_seed(1)) * sqrt(S**2 + TOP**2)
    sigmas = geometric(steps).float()
    return drive(sampler(x, sigmas, noise(x, sigmas, 2)))[0]


@pytest.mark.parametrize(
    ("sampler", "noise"),
    [
        (euler_ancestral, gaussian_noise),
        (stochastic.dpm_2_ancestral, gaussian_noise),
        (stochastic.dpmpp_2s_ancestral, gaussian_noise),
        (res_multistep, gaussian_noise),
        (sde.dpmpp_sde, brownian_noise),
        (sde.dpmpp_2m_sde, brownian_noise),
        (partial(sde.dpmpp_2m_sde, solver="heun"), brownian_noise),
        (sde.dpmpp_3m_sde, brownian_noise),
        (sde.er_sde, gaussian_noise),
        (seeds.seeds_2, gaussian_noise),
        (partial(seeds.seeds_2, r=1.0, solver="phi_2"), gaussian_noise),
        (seeds.seeds_3, gaussian_noise),
    ],
)
def test_a_stochastic_sampler_ends_with_the_variance_of_the_data_and_the_noise_left_over(sampler, noise):
    assert float(pure_noise(sampler, 200, noise).var()) == pytest.approx(S**2 + BOTTOM**2, rel=0.05)


def test_er_sde_with_another_power_ends_with_the_variance_of_the_data_too_and_is_the_ode_with_none():
    variance = float(pure_noise(partial(sde.er_sde, power=0.5), 200).var())
    assert variance == pytest.approx(S**2 + BOTTOM**2, rel=0.05)
    ode = pure_noise(partial(sde.er_sde, s_noise=0.0, eta=0.0), 5)
    torch.testing.assert_close(pure_noise(partial(sde.er_sde, s_noise=0.0, power=0.0), 5), ode)


@pytest.mark.parametrize("name", ["euler", "euler_cfg_pp", "euler_ancestral"])
def test_a_schedule_with_a_second_zero_ends_on_the_prediction_at_zero(name):
    x, twice = torch.ones(1, 1, 2, 2), torch.tensor([8.0, 1.0, 0.0, 0.0])
    final, evaluations = run(name, x, twice, lambda asked: torch.full((1, 1, 2, 2), 1.0 + asked.sigma))
    assert (final.unique().tolist(), [asked.sigma for asked in evaluations]) == ([1.0], [8.0, 1.0, 0.0])


def test_sa_solver_ends_with_the_variance_of_the_data_and_the_noise_left_over():
    variance = float(pure_noise(partial(sa_solver, interval=(TOP, 0.0)), 100).var())
    assert variance == pytest.approx(S**2 + BOTTOM**2, rel=0.05)


def test_sa_solver_draws_noise_only_for_steps_to_within_its_interval():
    drawn = []

    def noise(_sigma, following):
        drawn.append(following)
        return torch.zeros(1)

    drive(sa_solver(torch.ones(1, 1, 1, 1), torch.tensor([8.0, 4.0, 2.0, 1.0, 0.0]), noise, interval=(4.0, 2.0)))
    assert drawn == [4.0, 2.0]


def test_lcm_ends_with_the_variance_of_what_each_jump_to_zero_keeps_and_the_noise_added_after_it():
    variance = S**2 + TOP**2
    for sigma, following in pairwise(geometric(10).tolist()):
        variance = variance * (S**2 / (S**2 + sigma**2)) ** 2 + following**2
    assert float(pure_noise(partial(lcm, noised=LEVELS.noised), 10).var()) == pytest.approx(variance, rel=0.05)
