"""The Adams-Bashforth samplers: a polynomial through the slopes of earlier steps is integrated over the next one.

They differ in its variable: sigma, the time of a variance-preserving process, or the step's number.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from functools import cache, partial, reduce
from itertools import pairwise
from math import log, sqrt
from operator import add
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from serve_app.errors import NodeError
from serve_app.sampling.lazy_sum import Latents
from serve_app.sampling.samplers.evaluation import Evaluation, Sampler, guided
from serve_app.sampling.schedules.levels import Interpolation

Array: TypeAlias = NDArray[np.float64]

Coefficients: TypeAlias = Callable[[Sequence[float], float], Iterable[float]]
"""(levels up to the current one, the following level) to the factors of the slopes, the current one's first."""

MOST_NODES = 100
"""Of one polynomial. What it costs grows with their square, and each keeps latents; the engine waits for it."""


@cache
def _gauss_legendre() -> tuple[Array, Array]:
    points, weights = np.polynomial.legendre.leggauss(32)
    return (points + 1) / 2, weights / 2


def quadrature(start: float, end: float) -> tuple[Array, Array]:
    """Return points between start and end and their weights: Σ weights·f(points) is the integral of a smooth f."""
    points, weights = _gauss_legendre()
    return start + (end - start) * points, (end - start) * weights


def lagrange(nodes: Sequence[float], points: Array) -> Array:
    """Return the Lagrange polynomials of n nodes at N points, (n,N): row j is 1 at node j and 0 at the others.

    Errors: NodeError for too many nodes.
    """
    if len(nodes) > MOST_NODES:
        raise NodeError(f"the sampler's order combines {len(nodes)} evaluations; at most {MOST_NODES} are combined")
    rows = []
    for j, node in enumerate(nodes):
        factors = [(points - other) / (node - other) for k, other in enumerate(nodes) if k != j]
        rows.append(np.prod(factors, axis=0) if factors else np.ones_like(points))
    return np.stack(rows)


def combined(latents: Sequence[Latents], coefficients: Iterable[float]) -> Latents:
    """Return the sum of one or more latents, each times its coefficient."""
    return reduce(add, (one * coefficient for one, coefficient in zip(latents, coefficients, strict=True)))


def _adams(x: Latents, sigmas: Tensor, order: int, coefficients: Coefficients) -> Sampler:
    levels = sigmas.tolist()
    slopes: list[Latents] = []
    for i, (sigma, following) in enumerate(pairwise(levels)):
        denoised: Latents = yield Evaluation(x, sigma, step=i)
        if following == 0:
            return denoised
        slopes = [(x - denoised) / sigma, *slopes][:order]
        x = x + combined(slopes, coefficients(levels[i + 1 - len(slopes) : i + 1][::-1], following))
    return x


def lms(x: Latents, sigmas: Tensor, *, order: int = 4) -> Sampler:
    """Linear multistep: Adams-Bashforth in sigma on any levels; one evaluation a step.

    x: latents (B,C,h,w) already at sigmas[0]. Yields Evaluation; is sent `denoised`, shaped as x; returns the final
    latents. order: number of slopes used, once there are enough. Source: Crowson's k-diffusion, sample_lms.
    """

    def coefficients(levels: Sequence[float], following: float) -> Iterable[float]:
        points, weights = quadrature(levels[0], following)
        return map(float, lagrange(levels, points) @ weights)

    return _adams(x, sigmas, order, coefficients)


def deis(x: Latents, sigmas: Tensor, *, order: int = 3) -> Sampler:
    """DEIS with tabulated Adams-Bashforth coefficients (tAB); one evaluation a step. Arguments and results as `lms`.

    Slopes are polynomials of the time of the variance-preserving process whose sigma is 0.002 at time 0.001 and 80 at
    time 1. Source: Zhang and Chen 2022, arXiv:2204.13902, equation 15 with the slope of a variance-exploding process.
    """
    low, high, earliest = log(0.002**2 + 1), log(80.0**2 + 1), 1e-3
    beta_d = 2 * (low / earliest - high) / (earliest - 1)
    beta_min = high - beta_d / 2

    def time(sigma: float) -> float:
        return (sqrt(beta_min**2 + 2 * beta_d * log(sigma**2 + 1)) - beta_min) / beta_d

    def coefficients(levels: Sequence[float], following: float) -> Iterable[float]:
        if len(levels) == 1:
            return [following - levels[0]]
        # A sum over as many points as in ComfyUI: the exact integral is 1e-5 to 1e-4 away, which images show.
        start, end = time(levels[0]), time(following)
        points = np.linspace(start, end, 10000)
        growth = np.expm1(points * (beta_min + beta_d * points / 2))
        slope_of_sigma = (beta_min + beta_d * points) * (growth + 1) / (2 * np.sqrt(growth))
        weights = slope_of_sigma * ((end - start) / len(points))
        return map(float, lagrange([time(level) for level in levels], points) @ weights)

    return _adams(x, sigmas, order, coefficients)


EQUIDISTANT = ((1.0,), (3 / 2, -1 / 2), (23 / 12, -16 / 12, 5 / 12), (55 / 24, -59 / 24, 37 / 24, -9 / 24))
"""The Adams-Bashforth coefficients of order 1 to 4 for equal steps, the newest slope's first."""


def ipndm(x: Latents, sigmas: Tensor, *, order: int = 4) -> Sampler:
    """Improved PNDM: Adams-Bashforth as if steps were equal; one evaluation a step. Arguments and results as `lms`.

    Source: Zhang and Chen 2022, arXiv:2204.13902, Appendix H.2 (iPNDM), after Liu et al. 2022, arXiv:2202.09778.
    """

    def coefficients(levels: Sequence[float], following: float) -> Iterable[float]:
        return [(following - levels[0]) * c for c in EQUIDISTANT[len(levels) - 1]]

    return _adams(x, sigmas, order, coefficients)


def ipndm_v(x: Latents, sigmas: Tensor, *, order: int = 4) -> Sampler:
    """iPNDM for steps that vary; one evaluation a step. Arguments and results as `lms`.

    Source: Zhou et al.'s diff-sampler (ipndm_v), as ComfyUI has it. Two of its coefficients of third and fourth order
    are exact only for equal steps or a constant ratio of steps. Images depend on them, so they stay.
    """

    def coefficients(levels: Sequence[float], following: float) -> Iterable[float]:
        # h, h_1, h_2, h_3: the step to take and those before it.
        h, *before = [there - here for there, here in zip([following, *levels], levels, strict=False)]
        c = [1.0, 0.0, 0.0, 0.0]
        if len(before) > 0:
            h_1 = before[0]
            c[0] += h / h_1 / 2
            c[1] -= h / h_1 / 2
        if len(before) > 1:
            h_2 = before[1]
            a = h_1 / h_2
            second = (1 - h**2 / (3 * h_1 * (h_1 + h_2))) / 2
            c[0] += second
            c[1] -= (1 + a) * second
            c[2] += a * second
        if len(before) > 2:
            h_3 = before[2]
            b = h_1 * (h_1 + h_2) / (h_2 * (h_2 + h_3))
            share = (1 - h / (3 * (h + h_1))) / 2 + (1 - h / (2 * (h + h_1))) * h / (6 * (h + h_1 + h_2))
            third = share * h * (h + h_1) * (h + h_1 + h_2) / (h_1 * (h_1 + h_2) * (h_1 + h_2 + h_3))
            c[0] += third
            c[1] -= (1 + a + b) * third
            c[2] += (a + b * (1 + h_2 / h_3)) * third
            c[3] -= b * a * third
        return [h * c_j for c_j in c[: len(levels)]]

    return _adams(x, sigmas, order, coefficients)


def whole(sigma: float) -> float:
    """Return the share of the latents in x at a level of the exploding process: all of them."""
    return 1.0


def cfgpp_ud10_ab(x: Latents, sigmas: Tensor, *, signal: Callable[[float], float] = whole) -> Sampler:
    """CFG++ with a quarter of the second-order Adams-Bashforth correction; one evaluation a step, with uncond.

    The noise that the unguided model predicts is extrapolated by a tenth of its change in the step before, and a step
    to zero ends where the line through the last two `denoised` is at zero. The extrapolation does not vanish with more
    steps, so the end differs from the ODE's. signal: the share of the latents in x at a level. Arguments and results as
    `lms`. Source: ComfyUI's sampler of that name (0.35), after Chung et al. 2024, arXiv:2406.08070.
    """
    levels = sigmas.tolist()
    before: tuple[float, Latents, Latents, Latents] | None = None
    for i, (sigma, following) in enumerate(pairwise(levels)):
        denoised, unguided = yield from guided(Evaluation(x, sigma, step=i), cfg_pp=True)
        noise = (x - unguided * signal(sigma)) / sigma
        step, extended = following - sigma, noise
        if before is not None:
            past, past_denoised, past_noise, _ = before
            if following == 0:
                x = denoised - (denoised - past_denoised) * (sigma / (sigma - past))
                return x
            extended = noise + (noise - past_noise) * (0.1 * step / (sigma - past))
        reached = denoised * signal(following) + extended * following
        slope = (reached - x) / step
        if before is not None:
            past, _, _, past_slope = before
            reached = reached + (slope - past_slope) * (0.25 * step**2 / (2 * (sigma - past)))
        x, before = reached, (sigma, denoised, noise, slope)
    return x


def with_less_signal(function: Callable[..., Sampler], levels: Interpolation) -> Callable[..., Sampler]:
    """Return `cfgpp_ud10_ab` on a flow, whose x has 1 − sigma of the latents."""
    return partial(function, signal=lambda sigma: 1 - sigma)
