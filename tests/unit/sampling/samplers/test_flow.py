"""Samplers on a flow, against what a flow's process is."""

from __future__ import annotations

import math
from functools import partial

import pytest
import torch
from torch import Tensor

from serve_app.sampling.noise import noise
from serve_app.sampling.samplers import flow
from serve_app.sampling.samplers.dpm_solver import dpm_adaptive
from serve_app.sampling.samplers.evaluation import Evaluation, Sampler, next_evaluation
from serve_app.sampling.samplers.samplers import SAMPLERS, euler
from serve_app.sampling.schedules.levels import FlowLevels

LEVELS = FlowLevels(3.0, 1000.0)
DOWN = torch.tensor([1.0, 0.9, 0.6, 0.3, 0.1, 0.0])
LEFT_OVER = [
    *("euler_ancestral", "dpm_2_ancestral", "dpmpp_2s_ancestral", "dpmpp_sde", "dpmpp_2m_sde", "dpmpp_3m_sde"),
    *("euler_ancestral_cfg_pp", "seeds_2", "seeds_3", "exp_heun_2_x0_sde", "er_sde", "sa_solver", "lcm"),
]
"""Those that leave a flow's share of noise in x."""


def run(sampler: Sampler, image: Tensor) -> tuple[Tensor, list[Evaluation]]:
    """Answer every evaluation with the same image; return (x at the end, the evaluations)."""
    asked: list[Evaluation] = []
    answer = None
    while True:
        try:
            asked.append(next_evaluation(sampler, answer))
        except StopIteration as end:
            return end.value, asked
        answer = (image, image) if asked[-1].want_uncond else image


@pytest.mark.parametrize("sigma", [0.9999683, 0.75, 0.3, 1e-4])
def test_a_level_comes_back_from_its_ratio_to_the_bit(sigma):
    single = float(torch.tensor(sigma))
    assert flow.level(flow.ratio(single)) == single
    assert flow.ratio(0.75) == 3.0
    assert flow.ratio(1.0) == math.inf


def test_a_deterministic_step_by_ratio_is_the_one_along_the_flow():
    """Euler's method is exact for any straight line, whichever way levels are counted."""
    image = torch.randn(1, 16, 2, 2, generator=torch.Generator().manual_seed(1))
    x = LEVELS.start(image, noise(image.shape, 2), 0.9)
    expected, _ = run(euler(x, DOWN[1:-1]), image)
    found, asked = run(flow.by_ratio(euler, LEVELS)(x, DOWN[1:-1]), image)
    torch.testing.assert_close(found, expected)
    assert [evaluation.sigma for evaluation in asked] == DOWN[1:-2].tolist()
    torch.testing.assert_close(asked[0].x, x)


def test_a_sampler_by_ratio_gets_an_error_estimate():
    image = torch.randn(1, 16, 2, 2, generator=torch.Generator().manual_seed(1))
    x = LEVELS.start(image, noise(image.shape, 2), 0.9)
    expected, _ = run(euler(x, DOWN[1:-1]), image)
    found, asked = run(flow.by_ratio(dpm_adaptive, LEVELS)(x, DOWN[1:-1]), image)
    torch.testing.assert_close(found, expected)
    assert len(asked) > 3


def test_from_pure_noise_it_begins_where_a_ten_thousandth_is_done():
    image = torch.zeros(1, 16, 2, 2)
    x = noise(image.shape, 2)
    _, [first, *_] = run(flow.by_ratio(euler, LEVELS)(x, DOWN), image)
    assert first.sigma == float(torch.tensor(LEVELS.at_progress(1e-4)))
    torch.testing.assert_close(first.x, x)
    _, [first, *_] = run(flow.by_ratio(euler, LEVELS, top=0.0)(x, DOWN), image)
    assert first.sigma == flow.BELOW_NOISE


@pytest.mark.parametrize("name", LEFT_OVER)
def test_what_a_sampler_leaves_of_a_flow_is_the_images_share_and_noise_of_the_level(name):
    image = torch.full((1, 16, 64, 64), 2.0)
    x = LEVELS.start(torch.zeros_like(image), noise(image.shape, 3), 1.0)
    left, _ = run(SAMPLERS[name].start(x, DOWN[:-1], 3, LEVELS), image)
    sigma = float(DOWN[-2])
    assert float(left.mean()) == pytest.approx((1 - sigma) * 2.0, abs=0.005)
    assert float(left.std()) == pytest.approx(sigma, rel=0.03)
    done, _ = run(SAMPLERS[name].start(x, DOWN, 3, LEVELS), image)
    torch.testing.assert_close(done, image)


@pytest.mark.parametrize("eta", [0.0, 0.3, 1.0])
def test_an_ancestral_step_of_a_flow_keeps_its_two_shares(eta):
    down, up, kept = flow.flow_step(0.8, 0.5, eta)
    assert down == pytest.approx(0.5 - eta * (0.5 - 0.5**2 / 0.8))
    assert kept * (1 - down) == pytest.approx(0.5)
    assert math.hypot(kept * down, up) == pytest.approx(0.5)
    assert (up == pytest.approx(0, abs=1e-3)) == (eta == 0)


def test_half_way_below_pure_noise_is_where_comfyui_has_it():
    assert flow.halfway(1.0, 0.5) == 0.9999
    assert flow.halfway(0.8, 0.2) == pytest.approx(0.5)


def test_a_run_of_uni_pc_to_zero_ends_a_thousandth_below_it_in_latents():
    image = torch.full((1, 16, 4, 4), 2.0)
    x = LEVELS.start(torch.zeros_like(image), noise(image.shape, 3), 1.0)
    spec = SAMPLERS["uni_pc"]
    plain, _ = run(spec.function(x, DOWN), image)
    done, _ = run(spec.start(x, DOWN, 3, LEVELS), image)
    torch.testing.assert_close(done, plain / 0.999)


def test_the_alternative_of_cfg_pp_is_the_same_on_every_process():
    image = torch.full((1, 16, 2, 2), 2.0)
    x = noise(image.shape, 3)
    found, _ = run(SAMPLERS["euler_cfg_pp"].start(x, DOWN, 3, LEVELS, {"alternative": True}), image)
    expected, _ = run(partial(euler, cfg_pp=True, alternative=True)(x, DOWN), image)
    assert torch.equal(found, expected)
