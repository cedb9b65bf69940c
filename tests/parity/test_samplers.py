"""Samplers and schedules against ComfyUI 0.33.0's figures on an analytic denoiser: relative error at most 1e-4.

cfg is 2; the denoisers are `cond` and `uncond` below. Both files of figures were made by ComfyUI's own code:

golden/samplers.json lists [sampler, schedule, steps, seed, denoise, evaluations], x being (2,4,8,8); samplers.npz holds
the sigmas and the final latents of each. golden/grid.json pairs every sampler with every schedule, x being (1,4,4,4):
[sampler, schedule, steps, seed, denoise, start step, end step, full denoise, options, evaluations]; rows of
grid.npz are its cases, and those of flow_grid.npz are the same on the levels of flows.
"""

from __future__ import annotations

import json
from dataclasses import replace
from functools import partial
from itertools import product

import numpy as np
import pytest
import torch

from serve_app.recipe.training import Flow, FluxFlow
from serve_app.sampling.denoiser import trained
from serve_app.sampling.lazy_sum import LazySum, compute, value
from serve_app.sampling.noise import noise
from serve_app.sampling.request import Steps
from serve_app.sampling.samplers.evaluation import next_evaluation
from serve_app.sampling.samplers.samplers import SAMPLERS
from serve_app.sampling.schedules.levels import TableLevels
from serve_app.sampling.schedules.sigmas import SCHEDULES, sigmas_for
from tests.parity.figures import FLOWS, GOLDEN, LATER_SAMPLERS

CASES = [tuple(row) for row in json.loads((GOLDEN / "samplers.json").read_text())]
GRID = [tuple(row) for row in json.loads((GOLDEN / "grid.json").read_text())]
COMPARED = [name for name in SAMPLERS if name not in LATER_SAMPLERS]
SHAPE = (2, 4, 8, 8)
GRID_SHAPE = (1, 4, 4, 4)
TOLERANCE = 1e-4
AMPLIFIED = {("dpmpp_2s_ancestral_cfg_pp", "exponential", 2): 1e-3, ("dpmpp_sde", "kl_optimal", 12): 3e-3}
"""Cases that amplify rounding: levels moved by 3e-7 of themselves move their latents by up to 4e-4 and 1.2e-3. So does
another processor, whose library rounds exp and log otherwise: by 3e-4 between two that were tried."""


ROUNDED = {
    ("flow", "ddpm", "exponential", 6): 2e-4,
    ("flow", "ddpm", "kl_optimal", 12): 3e-4,
    ("flux", "ddpm", "exponential", 6): 2e-2,
    ("flux", "ddpm", "kl_optimal", 12): 2e-2,
    ("flux", "deis", "karras", 5): 1e-3,
}
"""Runs over a flow's levels below 0.003, where ComfyUI's sigma² + 1 has few digits in single precision: its formulas of
`ddpm` and `deis` in double precision are ours to 1e-7 and 1e-4."""
LEVELS = {"flow": trained(Flow(FLOWS["flow"]))[0], "flux": trained(FluxFlow(FLOWS["flux"]))[0]}


@pytest.fixture(scope="module")
def golden():
    return np.load(GOLDEN / "samplers.npz")


@pytest.fixture(scope="module")
def grid():
    return dict(np.load(GOLDEN / "grid.npz"))


@pytest.fixture(scope="module")
def flow_grid():
    return dict(np.load(GOLDEN / "flow_grid.npz"))


def cond(x, sigma):
    return x / (1 + sigma**2) + 0.3 * torch.sin(x / (1 + sigma))


def uncond(x, sigma):
    return x / (1 + sigma**2) - 0.2 * torch.cos(x / (1 + sigma))


def drive(sampler):
    """Answer a sampler's evaluations one by one, as sums if it writes any; return (latents, evaluations)."""
    count, answer = 0, None
    while True:
        try:
            evaluation = next_evaluation(sampler, answer)
        except StopIteration as end:
            return value(end.value), count
        count += 1
        compute([evaluation.x, *evaluation.kept])
        low = uncond(evaluation.latents, evaluation.sigma)
        denoised = low + 2 * (cond(evaluation.latents, evaluation.sigma) - low)
        if isinstance(evaluation.x, LazySum):
            low, denoised = LazySum.of(low), LazySum.of(denoised)
        answer = (denoised, low) if evaluation.want_uncond else denoised


def relative_error(ours, theirs):
    theirs = torch.from_numpy(theirs)
    return float((ours - theirs).norm() / theirs.norm())


def sample(name, sigmas, seed, denoise, shape, levels, **options):
    """Return (latents, evaluations) of a sampler over sigmas, started and ended as KSampler does it."""
    start = float(sigmas[0])
    latents = torch.zeros(shape) if denoise == 1.0 else noise(shape, seed + 1)
    x = levels.start(latents, noise(shape, seed), start)
    spec = SAMPLERS[name]
    written = replace(spec, function=partial(spec.function, **options)).start(LazySum.of(x), sigmas, seed, levels)
    final, evaluations = drive(written)
    return levels.unnoised(final, float(sigmas[-1])), evaluations


def test_the_figures_cover_every_sampler_but_the_gpu_variants_with_three_cases():
    assert sorted(case[0] for case in CASES) == sorted([name for name in COMPARED if not name.endswith("_gpu")] * 3)


def test_the_grid_covers_every_sampler_with_every_schedule_and_both_are_listed_in_comfyuis_order():
    pairs = list(dict.fromkeys(case[:2] for case in GRID))
    assert pairs == list(product(COMPARED, SCHEDULES))


@pytest.mark.parametrize("case", CASES, ids=lambda case: "-".join(map(str, case[:3])))
def test_a_sampler_gives_comfyuis_sigmas_latents_and_number_of_evaluations(golden, case):
    name, schedule, steps, seed, denoise, evaluations = case
    key = f"{name}|{schedule}|{steps}|{seed}|{denoise}|"
    sigmas = sigmas_for(TableLevels(), Steps(schedule, steps, denoise), SAMPLERS[name])

    final, count = sample(name, sigmas, seed, denoise, SHAPE, TableLevels())

    theirs = golden[key + "sigmas"]
    assert sigmas.shape == theirs.shape
    assert relative_error(sigmas, theirs) < TOLERANCE
    assert relative_error(final, golden[key + "out"]) < TOLERANCE
    assert count == evaluations


@pytest.mark.parametrize("index", range(len(GRID)), ids=lambda i: f"{i}-{GRID[i][0]}-{GRID[i][1]}")
def test_a_sampler_with_a_schedule_window_and_options_gives_comfyuis_latents(grid, index):
    name, schedule, steps, seed, denoise, start, end, full_denoise, options, evaluations = GRID[index]
    sigmas = sigmas_for(TableLevels(), Steps(schedule, steps, denoise, start, end, full_denoise), SAMPLERS[name])

    final, count = sample(name, sigmas, seed, denoise, GRID_SHAPE, TableLevels(), **options)

    theirs = grid["sigmas"][index]
    assert relative_error(sigmas, theirs[~np.isnan(theirs)]) < 1e-6
    assert relative_error(final.flatten(), grid["out"][index]) < AMPLIFIED.get((name, schedule, steps), TOLERANCE)
    assert count == evaluations


@pytest.mark.parametrize("kind", FLOWS)
@pytest.mark.parametrize("index", range(len(GRID)), ids=lambda i: f"{i}-{GRID[i][0]}-{GRID[i][1]}")
def test_on_a_flow_too_a_sampler_with_a_schedule_window_and_options_gives_comfyuis_latents(flow_grid, kind, index):
    name, schedule, steps, seed, denoise, start, end, full_denoise, options, _ = GRID[index]
    levels = LEVELS[kind]
    sigmas = sigmas_for(levels, Steps(schedule, steps, denoise, start, end, full_denoise), SAMPLERS[name])

    final, count = sample(name, sigmas, seed, denoise, GRID_SHAPE, levels, **options)

    theirs = flow_grid[f"{kind}|sigmas"][index]
    assert relative_error(sigmas, theirs[~np.isnan(theirs)]) < 1e-6
    tolerance = ROUNDED.get((kind, name, schedule, steps), TOLERANCE)
    assert relative_error(final.flatten(), flow_grid[f"{kind}|out"][index]) < tolerance
    assert count == flow_grid[f"{kind}|evaluations"][index]
