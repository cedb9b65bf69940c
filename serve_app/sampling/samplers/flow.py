"""Adapts samplers of the variance-exploding process to a flow, x = (1 − σ)·latents + σ·noise.

Divided by 1 − σ, a flow's x is that of the exploding process at the level s = σ / (1 − σ) of equal signal-to-noise
ratio. So a sampler that steps in that ratio runs unchanged on transformed x and levels (`by_ratio`). Ancestral samplers
step in σ itself: a step below the following level is followed by noise and less signal (`renoised`).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from math import inf, sqrt
from typing import Any, TypeAlias

import torch
from torch import Tensor

from serve_app.sampling.lazy_sum import Latents
from serve_app.sampling.samplers.evaluation import Evaluation, NoiseSource, Sampler
from serve_app.sampling.samplers.stochastic import ancestral_step, exploding_step
from serve_app.sampling.schedules.levels import Interpolation, single

Function: TypeAlias = Callable[..., Sampler]
"""A sampler's function, as in SamplerSpec."""

BELOW_NOISE = 1 - 2.0**-24
"""The highest level below 1 in single precision."""


def ratio(sigma: float) -> float:
    """Return the noise-to-signal ratio at a level of a flow, which is a level of the exploding process."""
    return sigma / (1 - sigma) if sigma < 1 else inf


def level(of_ratio: float) -> float:
    """Return the level of a flow with a ratio, in single precision: the exact inverse of `ratio`."""
    return single(of_ratio / (1 + of_ratio))


def by_ratio(function: Function, levels: Interpolation, *, top: float = 1e-4) -> Function:
    """Return a sampler that runs `function`, which steps in the signal-to-noise ratio, on a flow.

    top: the share of the progress where a run from pure noise, whose ratio is infinite, is taken to begin; 0: the
    highest level below noise. Levels in the function's options are ratios.
    """

    def run(x: Latents, sigmas: Tensor, noise: NoiseSource | None = None, **options: Any) -> Sampler:
        given: list[float] = sigmas.tolist()
        if given[0] >= 1:
            given[0] = min(single(levels.at_progress(top)), BELOW_NOISE)
        ratios = torch.tensor([ratio(sigma) for sigma in given], dtype=torch.float64)
        source = () if noise is None else (lambda s, following: noise(level(s), level(following)),)
        inner = function(x / (1 - given[0]), ratios, *source, **options)
        answer = None
        while True:
            try:
                asked = inner.send(answer)
            except StopIteration as end:
                reached: Latents = end.value
                return reached * (1 - given[-1])
            if isinstance(asked, Evaluation):
                s = asked.sigma
                asked = replace(asked, x=asked.x / (1 + s), sigma=level(s), kept=(asked.x, *asked.kept))
            answer = yield asked

    return run


def ancestral_cfg_pp_on_flow(function: Function, levels: Interpolation) -> Function:
    """Return `euler_ancestral` with CFG++ on a flow: by ratio; the step from pure noise redraws all noise.

    That is ComfyUI's behaviour for every eta but 0.
    """

    def step(s: float, following: float, eta: float) -> tuple[float, float, float]:
        return exploding_step(s, following, eta if s < ratio(BELOW_NOISE) else float(eta > 0))

    return by_ratio(partial(function, step=step), levels, top=0.0)


def between(s: float, following: float, r: float) -> float:
    """Return the ratio at a share r of the way between two ratios in log space.

    In single precision, as ComfyUI: noise is read from a Brownian path there, which differs at every point.
    """
    here, there = (torch.tensor(level(end)).logit().neg() for end in (s, following))
    return ratio(float((here + r * (there - here)).neg().sigmoid()))


def ratio_step(s: float, following: float, eta: float) -> tuple[float, float]:
    """Return `ancestral_step` of two ratios, rounded as in ComfyUI, in log space: long steps show it."""
    start, end = (float(torch.tensor(level(end)).logit().exp()) for end in (s, following))
    return ancestral_step(start, end, eta)


def flow_step(sigma: float, following: float, eta: float = 1.0) -> tuple[float, float, float]:
    """Return (down, up, kept): the level to step to, the factor of the noise added then, and the factor of x.

    eta: the share of the way from `following` to following²/σ that is stepped below it. From x at `down`, kept·x has
    the signal of `following`, and `up` makes up for the missing noise. Source: ComfyUI's ancestral samplers for
    rectified flows.
    """
    s, f = torch.tensor(sigma, dtype=torch.float32), torch.tensor(following, dtype=torch.float32)
    down = f * (1 + (f / s - 1) * eta)
    kept = (1 - f) / (1 - down)
    up = (f**2 - (down * kept) ** 2).clamp(min=0).sqrt()
    return float(down), float(up), float(kept)


def halfway(sigma: float, down: float) -> float:
    """Return the level halfway between two in log ratio; from pure noise, the one that ComfyUI takes."""
    return 0.9999 if sigma >= 1 else level(sqrt(ratio(sigma) * ratio(down)))


def renoised(function: Function, _levels: Interpolation, **more: Any) -> Function:
    """Return an ancestral sampler with a flow's steps and noise. more: further keyword arguments."""
    return partial(function, step=flow_step, **more)
