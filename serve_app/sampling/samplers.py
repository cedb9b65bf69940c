"""The deterministic samplers, in their papers' symbols, and SAMPLERS, the table of all of them.

Levels are read into Python floats: scalar arithmetic is then double precision, and on a GPU none of it waits for it.
"""

from __future__ import annotations

from itertools import pairwise
from math import expm1, log

from torch import Tensor

from serve_app.sampling.choices import Choices
from serve_app.sampling.evaluation import Evaluation, Sampler, SamplerSpec
from serve_app.sampling.stochastic import euler_ancestral, lcm


def euler(x: Tensor, sigmas: Tensor) -> Sampler:
    """Euler's first-order method on the probability flow ODE; one evaluation a step.

    x: latents (B,C,h,w) already at sigmas[0]. Yields Evaluation; is sent `denoised`, shaped as x; returns the final
    latents. Source: Karras et al. 2022, arXiv:2206.00364, Algorithm 2 with s_churn = 0 and no correction.
    """
    for i, (sigma, following) in enumerate(pairwise(sigmas.tolist())):
        denoised: Tensor = yield Evaluation(x, sigma, step=i)
        x = x + (x - denoised) * ((following - sigma) / sigma)
    return x


def heun(x: Tensor, sigmas: Tensor) -> Sampler:
    """Heun's second-order method; two evaluations a step, one on a step to zero.

    Arguments and results as `euler`. Source: Karras et al. 2022, arXiv:2206.00364, Algorithm 2 with s_churn = 0.
    """
    for i, (sigma, following) in enumerate(pairwise(sigmas.tolist())):
        denoised: Tensor = yield Evaluation(x, sigma, step=i)
        d = (x - denoised) / sigma
        predicted = x + d * (following - sigma)
        if following > 0:
            denoised = yield Evaluation(predicted, following, step=i)
            x = x + (d + (predicted - denoised) / following) * ((following - sigma) / 2)
        else:
            x = predicted
    return x


def dpmpp_2m(x: Tensor, sigmas: Tensor) -> Sampler:
    """DPM-Solver++(2M), second order over two steps; one evaluation a step, first order on the first and to zero.

    Arguments and results as `euler`; λ = −log σ. Source: Lu et al. 2022, arXiv:2211.01095, Algorithm 2.
    """
    previous: Tensor | None = None
    h_previous = 0.0
    for i, (sigma, following) in enumerate(pairwise(sigmas.tolist())):
        denoised: Tensor = yield Evaluation(x, sigma, step=i)
        if following == 0:
            return denoised
        h = log(sigma) - log(following)
        d = denoised if previous is None else denoised + (denoised - previous) * (h / (2 * h_previous))
        x = x * (following / sigma) - d * expm1(-h)
        previous, h_previous = denoised, h
    return x


SAMPLERS: Choices[SamplerSpec] = Choices(
    "sampler",
    {
        "euler": SamplerSpec(euler),
        "euler_ancestral": SamplerSpec(euler_ancestral, stochastic=True),
        "heun": SamplerSpec(heun),
        "dpmpp_2m": SamplerSpec(dpmpp_2m),
        "lcm": SamplerSpec(lcm, stochastic=True),
        # DDIM with η = 0 is Euler's method once x is divided by √ᾱ: Song et al. 2020, arXiv:2010.02502, section 4.3.
        "ddim": SamplerSpec(euler, fresh_inpaint_noise=True),
    },
)
"""Every sampler by the name clients use."""
