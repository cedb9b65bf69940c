"""DPM-Solver in noise prediction, with a fixed number of evaluations and with adaptive steps.

t = −log sigma, h its step; eps = (x − denoised) / sigma. Both end at the last level above zero and leave its noise in
x. t and h are scalars of sigmas' precision, as in ComfyUI: rounding decides where adaptive steps end.
"""

from __future__ import annotations

from collections.abc import Generator
from math import atan, isfinite, prod, sqrt
from typing import Any

import torch
from torch import Tensor

from serve_app.errors import NodeError
from serve_app.sampling.lazy_sum import Latents
from serve_app.sampling.samplers.error_estimate import ErrorEstimate
from serve_app.sampling.samplers.evaluation import Evaluation, NoiseSource, Sampler
from serve_app.sampling.samplers.stochastic import ancestral_step


def _ends(sigmas: Tensor) -> tuple[Tensor, Tensor]:
    """Return t at the first level and at the last one above zero."""
    return -sigmas[0].log(), -sigmas[sigmas > 0][-1].log()


def _eps(x: Latents, t: Tensor, step: int, substep: int = 0) -> Generator[Evaluation, Any, Latents]:
    sigma = float(t.neg().exp())
    denoised: Latents = yield Evaluation(x, sigma, step, substep=substep)
    return (x - denoised) / sigma


def _first(x: Latents, t: Tensor, h: Tensor, eps: Latents) -> Latents:
    return x - eps * ((t + h).neg().exp() * h.expm1())


def _second(x: Latents, t: Tensor, h: Tensor, eps: Latents, eps_1: Latents, r_1: float) -> Latents:
    return _first(x, t, h, eps) - (eps_1 - eps) * ((t + h).neg().exp() / (2 * r_1) * h.expm1())


def _third(x: Latents, t: Tensor, h: Tensor, eps: Latents, eps_r: Latents, r: float) -> Latents:
    return _first(x, t, h, eps) - (eps_r - eps) * ((t + h).neg().exp() / r * (h.expm1() / h - 1))


def dpm_fast(x: Latents, sigmas: Tensor) -> Sampler:
    """DPM-Solver-fast: one evaluation a step, in steps of third order, equal in t, and lower ones at last.

    x: latents (B,C,h,w) already at sigmas[0]. Yields Evaluation; is sent `denoised`, shaped as x; returns latents at
    the last level above zero. Only the first and that level of sigmas count; the evaluations of one of its own steps
    share an index. Source: Lu et al. 2022, arXiv:2206.00927, section 3.4 and Algorithm 2.
    """
    whole, rest = divmod(len(sigmas) - 1, 3)
    orders = [3] * (whole - 1) + [2, 1] if rest == 0 else [3] * whole + [rest]
    start, end = _ends(sigmas)
    times = torch.linspace(float(start), float(end), len(orders) + 1, dtype=sigmas.dtype)
    done = 0
    for t, following, order in zip(times, times[1:], orders, strict=False):
        h = following - t
        eps = yield from _eps(x, t, done)
        if order == 1:
            x = _first(x, t, h, eps)
        elif order == 2:
            eps_1 = yield from _eps(_first(x, t, h / 2, eps), t + h / 2, done)
            x = _second(x, t, h, eps, eps_1, 1 / 2)
        else:
            eps_1 = yield from _eps(_first(x, t, h / 3, eps), t + h / 3, done)
            u = _third(x, t, 2 / 3 * h, eps, eps_1, 1 / 2)
            eps_2 = yield from _eps(u, t + 2 / 3 * h, done)
            x = _third(x, t, h, eps, eps_2, 2 / 3)
        done += order
    return x


def dpm_adaptive(
    x: Latents,
    sigmas: Tensor,
    noise: NoiseSource | None = None,
    *,
    order: int = 3,
    rtol: float = 0.05,
    atol: float = 0.0078,
    h_init: float = 0.05,
    p: float = 0.0,
    i: float = 1.0,
    d: float = 0.0,
    safety: float = 0.81,
    eta: float = 0.0,
    s_noise: float = 1.0,
) -> Sampler:
    """DPM-Solver-12 or -23 with adaptive steps in t; `order` evaluations for each step tried.

    Arguments and results as `dpm_fast`; an evaluation's step is the one of sigmas that its own begins in. rtol, atol:
    allowed difference of the orders, relative to x and absolute. h_init: the first step. p, i, d: gains of the
    step-size controller. safety: a step is retried if its successor would be shorter than this share of it. eta,
    s_noise: as of `euler_ancestral`. Ends at once where x is not finite. Source: Lu et al. 2022, arXiv:2206.00927,
    Appendix C; p, i, d and eta as in Crowson's k-diffusion.
    """
    if order not in (2, 3):
        raise NodeError(f"order is {order}; dpm_adaptive has 2 and 3")
    levels = sigmas[:-1].tolist()
    t, end = _ends(sigmas)
    powers = [power / (1.5 if eta else order) for power in (p + i + d, -(p + 2 * d), d)]
    agreements: list[float] = []
    before, h_next, tried = x, abs(h_init), 0
    while t < end - 1e-5:
        sigma = float(t.neg().exp())
        step = sum(level > sigma * (1 - 1e-6) for level in levels) - 1
        place = (step, tried)
        tried += 1
        following = reached = torch.minimum(end, t + h_next)
        up = 0.0
        if eta:
            down, _ = ancestral_step(sigma, float(following.neg().exp()), eta)
            reached = torch.minimum(end, -torch.tensor(down, dtype=t.dtype).log())
            up = sqrt(max(0.0, float((-2 * following).exp() - (-2 * reached).exp())))
        h = reached - t
        eps = yield from _eps(x, t, *place)
        if order == 2:
            eps_1 = yield from _eps(_first(x, t, h / 2, eps), t + h / 2, *place)
            low, high = _first(x, t, h, eps), _second(x, t, h, eps, eps_1, 1 / 2)
        else:
            eps_1 = yield from _eps(_first(x, t, h / 3, eps), t + h / 3, *place)
            eps_2 = yield from _eps(_third(x, t, 2 / 3 * h, eps, eps_1, 1 / 2), t + 2 / 3 * h, *place)
            low, high = _second(x, t, h, eps, eps_1, 1 / 3), _third(x, t, h, eps, eps_2, 2 / 3)
        error: float = yield ErrorEstimate(low, high, before, rtol, atol)
        if not isfinite(error):
            return high
        agreement = 1 / (error + 1e-8)
        agreements = [agreement, *(agreements[1:] or (agreement, agreement))]
        growth = 1 + atan(prod(a**power for a, power in zip(agreements, powers, strict=True)) - 1)
        if growth >= safety:
            x, before, t = high, low, following
            agreements = [agreement, *agreements[:2]]
            if noise is not None and up:
                x = x + noise(sigma, float(following.neg().exp())) * (up * s_noise)
        h_next *= growth
    return x
