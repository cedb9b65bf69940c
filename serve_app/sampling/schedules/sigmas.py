"""Schedules: which of a model's noise levels a job steps over, and the window of them that it runs.

sigmas are 1-D (n+1,), descending, float32 on the CPU; the last is 0 unless noise is left over.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from math import atan, log
from typing import TypeAlias

import numpy as np
import torch
from scipy.special import betaincinv
from torch import Tensor

from serve_app.sampling.choices import Choices
from serve_app.sampling.request import Steps
from serve_app.sampling.samplers.evaluation import SamplerSpec
from serve_app.sampling.schedules.levels import Levels, SigmaRange

Schedule: TypeAlias = Callable[[Levels, int], Tensor]
"""(levels, steps) to sigmas (steps + 1,), the last 0."""


def ending_at_zero(sigmas: Tensor) -> Tensor:
    """Return the levels with 0 after the last."""
    return torch.cat([sigmas, sigmas.new_zeros(1)])


def simple(levels: Levels, steps: int) -> Tensor:
    """Every (timesteps / steps)-th level of the table, counted from the top."""
    stride = len(levels.sigmas) / steps
    return ending_at_zero(levels.sigmas[[-1 - int(i * stride) for i in range(steps)]])


def sgm_uniform(levels: Levels, steps: int) -> Tensor:
    """Timesteps equally spaced, the last of them left out. Source: Stability AI's generative-models."""
    return ending_at_zero(levels.sigma(_timesteps(levels, steps + 1)[:-1]))


def karras(levels: SigmaRange, steps: int, rho: float = 7.0) -> Tensor:
    """Levels equally spaced in sigma^(1/rho). Source: Karras et al. 2022, arXiv:2206.00364, equation 5."""
    low, high = levels.sigma_min ** (1 / rho), levels.sigma_max ** (1 / rho)
    return ending_at_zero((high + torch.linspace(0, 1, steps) * (low - high)) ** rho)


def exponential(levels: SigmaRange, steps: int) -> Tensor:
    """Levels equally spaced in log sigma."""
    return ending_at_zero(torch.linspace(log(levels.sigma_max), log(levels.sigma_min), steps).exp())


def ddim_uniform(levels: Levels, steps: int) -> Tensor:
    """Every (timesteps

    steps)-th level from timestep 1 up; there may be more levels than requested steps.

    Source: Song et al. 2020, arXiv:2010.02502, Appendix D.2, as Stable Diffusion's first release counts them.
    """
    stride = max(len(levels.sigmas) // steps, 1)
    return ending_at_zero(levels.sigmas[1::stride].flip(0))


def normal(levels: Levels, steps: int) -> Tensor:
    """Timesteps equally spaced from the top to the lowest level."""
    return ending_at_zero(levels.sigma(_timesteps(levels, steps)))


def _timesteps(levels: Levels, count: int) -> Tensor:
    """Return timesteps equally spaced from that of the highest level to that of the lowest, both included."""
    top, bottom = levels.timestep(levels.sigmas[[-1, 0]])
    return torch.linspace(float(top), float(bottom), count)


def beta(levels: Levels, steps: int, a: float = 0.6, b: float = 0.6) -> Tensor:
    """Timesteps spaced as quantiles of Beta(a, b), most of them near both ends; duplicates are merged.

    There may be fewer levels than requested steps. Source: Lee et al. 2024, arXiv:2407.12173, section 4.
    """
    quantiles = betaincinv(a, b, 1 - np.arange(steps) / steps)
    timesteps = np.rint(quantiles * (len(levels.sigmas) - 1)).astype(int)
    return ending_at_zero(levels.sigmas[list(dict.fromkeys(timesteps.tolist()))])


def linear_quadratic(levels: SigmaRange, steps: int, linear_share: float = 0.025) -> Tensor:
    """The first half of the steps removes linear_share of the noise evenly, the second half grows quadratically.

    The quadratic part continues the linear one with its slope. Source: Genmo 2024, Mochi 1 preview.
    """
    linear = max(steps // 2, 1)
    rest = steps - linear
    slope = linear_share / linear
    spent = [slope * i for i in range(min(linear, steps))]
    if rest > 0:
        curve = (1 - linear_share - slope * rest) / rest**2
        spent += [linear_share + slope * i + curve * i**2 for i in range(rest)]
    return torch.tensor([1 - share for share in spent] + [0.0]) * levels.sigma_max


def kl_optimal(levels: SigmaRange, steps: int) -> Tensor:
    """Levels equally spaced in arctan sigma. Source: Sabour et al. 2024, arXiv:2404.14507, equation 19."""
    low, high = atan(levels.sigma_min), atan(levels.sigma_max)
    share = torch.arange(steps) / max(steps - 1, 1)
    return ending_at_zero((share * low + (1 - share) * high).tan())


SCHEDULES: Choices[Schedule] = Choices(
    "schedule",
    {
        "simple": simple,
        "sgm_uniform": sgm_uniform,
        "karras": karras,
        "exponential": exponential,
        "ddim_uniform": ddim_uniform,
        "beta": beta,
        "normal": normal,
        "linear_quadratic": linear_quadratic,
        "kl_optimal": kl_optimal,
    },
)
"""Every schedule by the name clients use (ComfyUI's input calls it scheduler), in ComfyUI's order."""


def sigmas_for(
    levels: Levels, steps: Steps, sampler: SamplerSpec, schedules: Mapping[str, Schedule] = SCHEDULES
) -> Tensor:
    """Return the sigmas that one job runs; fewer than two of them mean no step.

    schedules: the table to look in. Source: ComfyUI's KSampler and KSamplerAdvanced. Errors: NodeError for an unknown
    schedule.
    """
    if steps.denoise <= 0:
        return torch.empty(0)
    schedule = schedules[steps.schedule]
    # Above 0.9999 it is a rounded 1.0 of the client.
    partial = steps.denoise <= 0.9999
    whole = int(steps.count / steps.denoise) if partial else steps.count
    if sampler.discards_penultimate:
        sigmas = schedule(levels, whole + 1)
        sigmas = torch.cat([sigmas[:-2], sigmas[-1:]])
    else:
        sigmas = schedule(levels, whole)
    if partial:
        sigmas = sigmas[-(steps.count + 1) :]
    if steps.end is not None and steps.end < len(sigmas) - 1:
        sigmas = sigmas[: steps.end + 1]
        if steps.full_denoise:
            sigmas = ending_at_zero(sigmas[:-1])
    start = steps.start or 0
    return sigmas[start:] if start < len(sigmas) - 1 else sigmas[:0]
