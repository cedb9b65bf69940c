"""The exponential multistep samplers of second order, which use `denoised` of the step before.

λ = −log sigma; over a step h of λ, x is known up to an integral of `denoised`, which a line in λ stands for.
"""

from __future__ import annotations

from itertools import pairwise
from math import expm1, log

from torch import Tensor

from serve_app.sampling.lazy_sum import Latents
from serve_app.sampling.samplers.evaluation import Evaluation, NoiseSource, Sampler, guided
from serve_app.sampling.samplers.stochastic import ancestral_step


def dpmpp_2m(x: Latents, sigmas: Tensor, *, cfg_pp: bool = False) -> Sampler:
    """DPM-Solver++(2M); one evaluation a step, first order on the first and to zero.

    x: latents (B,C,h,w) already at sigmas[0]. Yields Evaluation; is sent `denoised`, shaped as x; returns the final
    latents. Source: Lu et al. 2022, arXiv:2211.01095, Algorithm 2.
    """
    previous: Latents | None = None
    h_previous = 0.0
    for i, (sigma, following) in enumerate(pairwise(sigmas.tolist())):
        denoised, unguided = yield from guided(Evaluation(x, sigma, step=i), cfg_pp)
        if following == 0:
            return denoised
        h = log(sigma / following)
        x = denoised + (x - unguided) * (following / sigma)
        if previous is not None:
            x = x - (denoised - previous) * (expm1(-h) * h / (2 * h_previous))
        previous, h_previous = unguided, h
    return x


def res_multistep(
    x: Latents,
    sigmas: Tensor,
    noise: NoiseSource | None = None,
    *,
    eta: float = 1.0,
    s_noise: float = 1.0,
    cfg_pp: bool = False,
) -> Sampler:
    """RES, the refined exponential solver of second order, in its multistep form; one evaluation a step.

    Arguments and results as `dpmpp_2m`; with noise it is ancestral, as `euler_ancestral` is, without it deterministic.
    Source: Zhang et al. 2023, arXiv:2308.02157, Algorithm 1 with the step before in place of the stage within.
    """
    levels = sigmas.tolist()
    previous: Latents | None = None
    down_previous = 0.0
    for i, (sigma, following) in enumerate(pairwise(levels)):
        denoised, unguided = yield from guided(Evaluation(x, sigma, step=i), cfg_pp)
        down, up = ancestral_step(sigma, following, 0.0 if noise is None else eta)
        if down == 0 or previous is None:
            x = denoised + (x - unguided) * (down / sigma)
        else:
            h = log(sigma / down)
            c_2 = log(down_previous / levels[i - 1]) / h
            phi_1 = expm1(-h) / -h
            phi_2 = (phi_1 - 1) / -h
            b_2 = phi_2 / c_2
            x = (x + denoised - unguided) * (down / sigma) + unguided * (h * (phi_1 - b_2)) + previous * (h * b_2)
        if noise is not None and following > 0:
            x = x + noise(sigma, following) * (up * s_noise)
        previous, down_previous = unguided, down
    return x
