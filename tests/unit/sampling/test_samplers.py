"""Samplers against exact solutions. For data N(0, s²) the denoiser x·s²/(s²+σ²) is exact and linear, so the flow of the
probability ODE is known: x(σ) is proportional to √(s²+σ²)."""

from __future__ import annotations

from itertools import pairwise
from math import log2, sqrt

import pytest
import torch

from serve_app.sampling.evaluation import Evaluation
from serve_app.sampling.noise import gaussian_noise
from serve_app.sampling.samplers import SAMPLERS, dpmpp_2m, euler, heun
from serve_app.sampling.stochastic import ancestral_step, euler_ancestral, lcm

S = 0.7
TOP, BOTTOM = 8.0, 0.2


def gaussian(evaluation):
    return evaluation.x * S**2 / (S**2 + evaluation.sigma**2)


def drive(sampler, answer=gaussian):
    """Answer a sampler's evaluations; return (final x, the evaluations)."""
    seen, sent = [], None
    while True:
        try:
            evaluation = sampler.send(sent)
        except StopIteration as end:
            return end.value, seen
        seen.append(evaluation)
        sent = answer(evaluation)


def geometric(steps, top=TOP, bottom=BOTTOM):
    """Levels of one ratio, in double precision, without a zero at the end."""
    return top * (bottom / top) ** torch.linspace(0, 1, steps + 1, dtype=torch.float64)


def error(sampler, steps):
    x, _ = drive(sampler(torch.ones(1, 1, 1, 1, dtype=torch.float64), geometric(steps)))
    exact = sqrt((S**2 + BOTTOM**2) / (S**2 + TOP**2))
    return abs(float(x) - exact)


@pytest.mark.parametrize(("sampler", "order"), [(euler, 1), (heun, 2), (dpmpp_2m, 2)])
def test_halving_the_steps_divides_the_error_by_two_to_the_samplers_order(sampler, order):
    measured = log2(error(sampler, 128) / error(sampler, 256))
    assert abs(measured - order) < 0.1


@pytest.mark.parametrize("name", SAMPLERS)
def test_a_sampler_that_is_always_told_the_same_picture_ends_on_it(name):
    picture = torch.randn(2, 4, 4, 4)
    sigmas = torch.cat([geometric(6).float(), torch.zeros(1)])
    noise = gaussian_noise(picture.shape, 3, picture.device)
    x, _ = drive(SAMPLERS[name].start(torch.randn(2, 4, 4, 4) * TOP, sigmas, noise), lambda _: picture)
    torch.testing.assert_close(x, picture, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", SAMPLERS)
def test_a_sampler_starts_at_x_and_visits_its_steps_in_order(name):
    x = torch.randn(1, 4, 2, 2)
    sigmas = torch.cat([geometric(4).float(), torch.zeros(1)])
    _, seen = drive(SAMPLERS[name].start(x, sigmas, gaussian_noise(x.shape, 3, x.device)))
    assert isinstance(seen[0], Evaluation)
    assert torch.equal(seen[0].x, x)
    assert seen[0].sigma == TOP
    assert sorted({e.step for e in seen}) == [0, 1, 2, 3, 4]
    assert [e.step for e in seen] == sorted(e.step for e in seen)


@pytest.mark.parametrize("name", SAMPLERS)
def test_a_sampler_leaves_the_x_it_is_given_alone(name):
    x = torch.randn(1, 4, 2, 2)
    before = x.clone()
    drive(SAMPLERS[name].start(x, geometric(4).float(), gaussian_noise(x.shape, 3, x.device)))
    assert torch.equal(x, before)


def test_heun_evaluates_twice_a_step_and_once_on_a_step_to_zero():
    sigmas = torch.tensor([4.0, 2.0, 1.0, 0.0])
    _, seen = drive(heun(torch.ones(1, 1, 1, 1), sigmas))
    assert [(e.sigma, e.step) for e in seen] == [(4.0, 0), (2.0, 0), (2.0, 1), (1.0, 1), (1.0, 2)]


def test_an_ancestral_step_keeps_the_variance_of_the_level_it_goes_to():
    down, up = ancestral_step(5.0, 3.0)
    assert down**2 + up**2 == pytest.approx(9.0)
    assert ancestral_step(5.0, 3.0, eta=0.0) == (3.0, 0.0)


def pure_noise(sampler, steps):
    """Return where a sampler ends from x of the variance that Gaussian data has at the top level."""
    x = torch.randn(1, 1, 100, 100, generator=torch.Generator().manual_seed(1)) * sqrt(S**2 + TOP**2)
    return drive(sampler(x, geometric(steps).float(), gaussian_noise(x.shape, 2, x.device)))[0]


def test_euler_ancestral_ends_with_the_variance_of_the_data_and_the_noise_left_over():
    assert float(pure_noise(euler_ancestral, 200).var()) == pytest.approx(S**2 + BOTTOM**2, rel=0.05)


def test_lcm_ends_with_the_variance_of_what_each_jump_to_zero_keeps_and_the_noise_added_after_it():
    variance = S**2 + TOP**2
    for sigma, following in pairwise(geometric(10).tolist()):
        variance = variance * (S**2 / (S**2 + sigma**2)) ** 2 + following**2
    assert float(pure_noise(lcm, 10).var()) == pytest.approx(variance, rel=0.05)
