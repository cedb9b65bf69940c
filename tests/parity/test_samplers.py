"""Samplers and schedules against ComfyUI 0.3.64's figures on an analytic denoiser: relative error at most 1e-4.

golden/samplers.json lists [sampler, schedule, steps, seed, denoise, evaluations]; golden/samplers.npz holds the sigmas
and the final latents of each, x being (2,4,8,8). cfg is 2; the denoisers are `cond` and `uncond` below.
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from serve_app.sampling.noise import gaussian_noise, is_max_denoise, noise, noised
from serve_app.sampling.samplers import SAMPLERS
from serve_app.sampling.sigmas import NoiseLevels, sigmas_for

GOLDEN = Path(__file__).parent / "golden"
CASES = [tuple(row) for row in json.loads((GOLDEN / "samplers.json").read_text()) if row[0] in SAMPLERS]
SHAPE = (2, 4, 8, 8)
TOLERANCE = 1e-4


@pytest.fixture(scope="module")
def golden():
    return np.load(GOLDEN / "samplers.npz")


def cond(x, sigma):
    return x / (1 + sigma**2) + 0.3 * torch.sin(x / (1 + sigma))


def uncond(x, sigma):
    return x / (1 + sigma**2) - 0.2 * torch.cos(x / (1 + sigma))


def drive(sampler):
    """Answer a sampler's evaluations one by one; return (latents, evaluations)."""
    count, answer = 0, None
    while True:
        try:
            evaluation = sampler.send(answer)
        except StopIteration as end:
            return end.value, count
        count += 1
        low = uncond(evaluation.x, evaluation.sigma)
        answer = low + 2 * (cond(evaluation.x, evaluation.sigma) - low)


def relative_error(ours, theirs):
    theirs = torch.from_numpy(theirs)
    return float((ours - theirs).norm() / theirs.norm())


def test_the_figures_cover_every_sampler_with_three_cases():
    assert sorted(case[0] for case in CASES) == sorted(list(SAMPLERS) * 3)


@pytest.mark.parametrize("case", CASES, ids=lambda case: "-".join(map(str, case[:3])))
def test_a_sampler_gives_comfyuis_sigmas_latents_and_number_of_evaluations(golden, case):
    name, schedule, steps, seed, denoise, evaluations = case
    key = f"{name}|{schedule}|{steps}|{seed}|{denoise}|"
    levels, spec = NoiseLevels(), SAMPLERS[name]
    sigmas = sigmas_for(levels, schedule, spec, steps, denoise)
    latents = torch.zeros(SHAPE) if denoise == 1.0 else noise(SHAPE, seed + 1)
    start = float(sigmas[0])
    x = noised(latents, noise(SHAPE, seed), start, max_denoise=is_max_denoise(levels, start))

    final, count = drive(spec.start(x, sigmas, gaussian_noise(SHAPE, seed, x.device)))

    assert sigmas.shape == golden[key + "sigmas"].shape
    assert relative_error(sigmas, golden[key + "sigmas"]) < TOLERANCE
    assert relative_error(final, golden[key + "out"]) < TOLERANCE
    assert count == evaluations
