"""SA-Solver: stochastic Adams methods of data prediction, a predictor and a corrector."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from math import exp, expm1, inf, log, sqrt
from typing import Any

import numpy as np
from torch import Tensor

from serve_app.sampling.lazy_sum import Latents
from serve_app.sampling.samplers.adams import combined, lagrange, quadrature
from serve_app.sampling.samplers.evaluation import Evaluation, NoiseSource, Sampler
from serve_app.sampling.samplers.flow import by_ratio, ratio
from serve_app.sampling.schedules.levels import Interpolation, Levels


def stochastic_interval(levels: Levels) -> dict[str, tuple[float, float]]:
    """Return the levels between which `sa_solver` draws noise: from a fifth of the model's timesteps to four fifths."""
    return {"interval": (levels.at_progress(0.2), levels.at_progress(0.8))}


def sa_solver_on_flow(function: Callable[..., Sampler], levels: Interpolation) -> Callable[..., Sampler]:
    """Return `sa_solver` on a flow: by ratio, the interval too."""
    run = by_ratio(function, levels)

    def over(
        x: Latents, sigmas: Tensor, noise: NoiseSource, *, interval: tuple[float, float], **options: Any
    ) -> Sampler:
        highest, lowest = interval
        return run(x, sigmas, noise, interval=(ratio(highest), ratio(lowest)), **options)

    return over


def sa_solver(
    x: Latents,
    sigmas: Tensor,
    noise: NoiseSource,
    *,
    interval: tuple[float, float],
    eta: float = 1.0,
    s_noise: float = 1.0,
    predictor_order: int = 3,
    corrector_order: int = 4,
    evaluate_corrected: bool = False,
    simple_order_2: bool = False,
) -> Sampler:
    """SA-Solver; one evaluation a step, of lower order at both ends, with noise only for steps within `interval`.

    x: latents (B,C,h,w) already at sigmas[0]. Yields Evaluation; is sent `denoised`, shaped as x; returns the final
    latents. interval: (highest, lowest) level; inside τ is eta, outside 0. evaluate_corrected: evaluate the corrector's
    result too, two evaluations a step but the first. simple_order_2: at second order, weights are those of an expansion
    in h. If noise is left over, the prediction is returned. λ = −log σ. Source: Xue et al. 2023, arXiv:2309.05019,
    Algorithm 1, equations 15 and 18, Appendix D.
    """
    levels = sigmas.tolist()
    lambdas = [-log(level) if level > 0 else inf for level in levels]
    highest, lowest = interval
    history: list[Latents] = []
    predicted, tau, added = x, 0.0, None
    for i, sigma in enumerate(levels[:-1]):
        following = levels[i + 1]
        denoised: Latents = yield Evaluation(predicted, sigma, step=i, kept=(x,))
        history = [denoised, *history][: max(predictor_order, corrector_order)]
        # The order goes down to 1 before a step to zero.
        left = len(levels) - 1 - i if levels[-1] == 0 else len(levels)
        p, c = min(predictor_order, len(history), left - 1), min(corrector_order, len(history), left)
        if i == 0 or c == 0 or (following == 0 and not evaluate_corrected):
            x = predicted
        else:
            corrected = lambdas[i - c + 1 : i + 1][::-1]
            b = _simple(corrected, lambdas[i], tau) if simple_order_2 and c == 2 else None
            x = _adams_step(x, levels[i - 1], sigma, tau, history[:c], corrected, b)
            if added is not None:
                x = x + added
            if evaluate_corrected:
                denoised = yield Evaluation(x, sigma, step=i)
                history[0] = denoised
        if following == 0:
            return denoised
        tau = eta if lowest <= following <= highest else 0.0
        used = lambdas[i - p + 1 : i + 1][::-1]
        b = _simple(used, lambdas[i + 1], tau) if simple_order_2 and p == 2 else None
        predicted = _adams_step(x, sigma, following, tau, history[:p], used, b)
        added = None
        if tau > 0:
            h = log(sigma / following)
            added = noise(sigma, following) * (following * sqrt(-expm1(-2 * tau**2 * h)) * s_noise)
            predicted = predicted + added
    return predicted


def _adams_step(
    x: Latents,
    sigma: float,
    following: float,
    tau: float,
    history: Sequence[Latents],
    lambdas: Sequence[float],
    b: Sequence[float] | None = None,
) -> Latents:
    """Return x at `following`. b: weights of the history; None: integrals of its polynomial."""
    rate, end = 1 + tau**2, -log(following)
    if b is None:
        points, weights = quadrature(-log(sigma), end)
        b = (lagrange(lambdas, points) @ (weights * rate * np.exp(rate * (points - end)))).tolist()
    return x * (following / sigma * exp(-(tau**2) * (end + log(sigma)))) + combined(history, b)


def _simple(lambdas: Sequence[float], end: float, tau: float) -> tuple[float, float]:
    """Return the weights of the two last evaluations, the newer one first.

    A corrector's step ends at the newer one, a predictor's begins there.
    """
    newer, older = lambdas
    rate = 1 + tau**2
    if end == newer:
        h = newer - older
        b = rate * h / 2
        return b, -expm1(-h * rate) - b
    h = end - newer
    b = rate * h**2 / 2 / (older - newer)
    return -expm1(-h * rate) - b, b
