"""The ancestral samplers: a step to below the following level, then fresh noise up to it.

They draw from a NoiseSource, never from torch's global state. A step also returns the factor of x as noise is added: 1,
except on a flow (`flow`).
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from math import sqrt
from typing import Any, TypeAlias

import torch
from torch import Tensor

from serve_app.sampling.lazy_sum import Latents, value
from serve_app.sampling.samplers.evaluation import Evaluation, NoiseSource, Sampler, guided
from serve_app.sampling.schedules.levels import Levels

AncestralStep: TypeAlias = Callable[[float, float, float], tuple[float, float, float]]
"""(sigma, following, eta) to (down, up, kept), as `exploding_step`."""


def ancestral_step(sigma: float, following: float, eta: float = 1.0) -> tuple[float, float]:
    """Return (down, up): the level to step to, and the noise that then leads up to `following`.

    down² + up² = following². eta: 0 is deterministic, 1 the posterior's full variance. Source: Song et al. 2020,
    arXiv:2011.13456, ancestral sampling of the variance-exploding process.
    """
    if eta == 0 or following == 0:
        return following, 0.0
    # In single precision, as ComfyUI: after a long step `down` is the root of a difference that is nearly all rounding,
    # which shows in samplers that evaluate between sigma and down. (Tensor powers round differently from NumPy's
    # roots.)
    s, f = torch.tensor(sigma, dtype=torch.float32), torch.tensor(following, dtype=torch.float32)
    up = torch.minimum(f, eta * (f**2 * (s**2 - f**2) / s**2) ** 0.5)
    return float((f**2 - up**2) ** 0.5), float(up)


def exploding_step(sigma: float, following: float, eta: float = 1.0) -> tuple[float, float, float]:
    """Return (down, up, 1): `ancestral_step` with the factor of x."""
    return *ancestral_step(sigma, following, eta), 1.0


def euler_ancestral(
    x: Latents,
    sigmas: Tensor,
    noise: NoiseSource,
    *,
    eta: float = 1.0,
    s_noise: float = 1.0,
    cfg_pp: bool = False,
    step: AncestralStep = exploding_step,
) -> Sampler:
    """Euler's method to below the following level, then noise up to it; one evaluation a step.

    x: latents (B,C,h,w) already at sigmas[0]. Yields Evaluation; is sent `denoised`, shaped as x; returns the final
    latents. s_noise: multiplies the noise; a step down to zero has none. Source: as `ancestral_step`, with the step
    of Karras et al. 2022.
    """
    for i, (sigma, following) in enumerate(pairwise(sigmas.tolist())):
        denoised, unguided = yield from guided(Evaluation(x, sigma, step=i), cfg_pp)
        down, up, kept = step(sigma, following, eta)
        if (following if cfg_pp else down) == 0:
            # Also where eta takes all of `following`, as in ComfyUI, except for CFG++.
            x = denoised
            continue
        x = (denoised + (x - unguided) * (down / sigma)) * kept + noise(sigma, following) * (up * s_noise)
    return x


def dpm_2_ancestral(
    x: Latents,
    sigmas: Tensor,
    noise: NoiseSource,
    *,
    eta: float = 1.0,
    s_noise: float = 1.0,
    step: AncestralStep = exploding_step,
) -> Sampler:
    """`dpm_2` to below the following level, then noise up to it; two evaluations a step, one on a step to zero.

    Arguments and results as `euler_ancestral`. Source: as `ancestral_step` and `dpm_2`.
    """
    for i, (sigma, following) in enumerate(pairwise(sigmas.tolist())):
        denoised: Latents = yield Evaluation(x, sigma, step=i)
        down, up, kept = step(sigma, following, eta)
        if down == 0:
            x = denoised
            continue
        middle = sqrt(sigma * down)
        u = denoised + (x - denoised) * (middle / sigma)
        denoised = yield Evaluation(u, middle, step=i)
        x = (x + (u - denoised) * ((down - sigma) / middle)) * kept + noise(sigma, following) * (up * s_noise)
    return x


def dpmpp_2s_ancestral(
    x: Latents,
    sigmas: Tensor,
    noise: NoiseSource,
    *,
    eta: float = 1.0,
    s_noise: float = 1.0,
    cfg_pp: bool = False,
    step: AncestralStep = exploding_step,
    halfway: Callable[[float, float], float] = lambda sigma, down: sqrt(sigma * down),
) -> Sampler:
    """DPM-Solver++(2S) to below the following level, then noise up to it; two evaluations a step, one to zero.

    Arguments and results as `euler_ancestral`. halfway: the level of the second evaluation, between the step's.
    Source: Lu et al. 2022, arXiv:2211.01095, Algorithm 1 with r = 1/2, and `ancestral_step`.
    """
    for i, (sigma, following) in enumerate(pairwise(sigmas.tolist())):
        denoised, unguided = yield from guided(Evaluation(x, sigma, step=i), cfg_pp)
        down, up, kept = step(sigma, following, eta)
        if down == 0:
            x = denoised
        else:
            middle = halfway(sigma, down)
            u = denoised + (x - unguided) * (middle / sigma)
            denoised_middle, unguided_middle = yield from guided(Evaluation(u, middle, step=i), cfg_pp)
            # CFG++ moves the whole step by how far guidance moved `denoised`, between the two evaluations in ComfyUI.
            start = x + (denoised - unguided_middle) if cfg_pp else x
            x = denoised_middle + (start - denoised_middle) * (down / sigma)
        if following > 0:
            x = x * kept + noise(sigma, following) * (up * s_noise)
    return x


def noising(levels: Levels) -> dict[str, Any]:
    """Return the function by which `lcm` adds noise to denoised latents."""
    return {"noised": levels.noised}


def lcm(
    x: Latents,
    sigmas: Tensor,
    noise: NoiseSource,
    *,
    noised: Callable[[Latents, Latents, float], Latents],
    s_noise: float = 1.0,
    s_noise_end: float | None = None,
    clip: float = 0.0,
) -> Sampler:
    """Multistep consistency sampling: jump to zero, noise up to the following level; one evaluation a step.

    noised: brings latents to a level, as `Levels.noised`. s_noise, s_noise_end: factors of the first and last step's
    noise, interpolated between; None: the first for all. clip: limit on the noise in standard deviations, 0 for none.
    Arguments and results as `euler_ancestral`. Source: Luo et al. 2023, arXiv:2310.04378, Algorithm 3.
    """
    last = max(len(sigmas) - 2, 1)
    change = 0.0 if s_noise_end is None else s_noise_end - s_noise
    for i, (sigma, following) in enumerate(pairwise(sigmas.tolist())):
        x = yield Evaluation(x, sigma, step=i)
        if following > 0:
            drawn = noise(sigma, following)
            if clip > 0:
                most = float(value(drawn).std()) * clip
                drawn = value(drawn).clamp(-most, most)
            x = noised(x, drawn * (s_noise + change * i / last), following)
    return x
