"""UniPC: a predictor and a corrector of one family, which share an evaluation."""

from __future__ import annotations

from collections.abc import Callable
from math import expm1, factorial, log, sqrt
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from serve_app.sampling.lazy_sum import Latents
from serve_app.sampling.samplers.adams import combined
from serve_app.sampling.samplers.evaluation import Evaluation, Sampler
from serve_app.sampling.schedules.levels import Interpolation

LOWEST = 0.001
"""The level used for zero, where log sigma is undefined."""


def uni_pc(x: Latents, sigmas: Tensor, *, variant: Literal["bh1", "bh2"], order: int = 3) -> Sampler:
    """UniPC of up to third order in data prediction; one evaluation a step, the first and last steps of lower order.

    x: latents (B,C,h,w) already at sigmas[0]. Yields Evaluation; is sent `denoised`, shaped as x; returns the final
    latents. variant: B(h) is h or e^h − 1. A single step only rescales x, as in ComfyUI. λ = −log σ.
    Source: Zhao et al. 2023, arXiv:2302.04867, Algorithms 5 and 6 (UniP and UniC).
    """
    levels = sigmas.tolist()
    levels[-1] = levels[-1] or LOWEST
    rounded = [_rounded(level) for level in levels]
    steps = len(levels) - 1
    history = [_through_noise(x, (yield Evaluation(x, levels[0], step=0)), rounded[0] / levels[0])]
    if steps == 1:
        return x * sqrt((1 + levels[1] ** 2) / (1 + levels[0] ** 2))
    for i in range(1, steps + 1):
        p = min(order, steps - 1, i, steps + 1 - i)
        sigma, following = rounded[i - 1], rounded[i]
        h = log(sigma / following)
        r = [log(sigma / rounded[i - 1 - k]) / h for k in range(1, p)] + [1.0]
        b_h = -h if variant == "bh1" else expm1(-h)
        # R_ij = r_j^i and b_i = i!·h·φ_(i+1)(−h) / B(h), with h·φ_(i+1) by its recurrence.
        matrix, b, h_phi = [], [], expm1(-h)
        for k in range(1, p + 1):
            h_phi = h_phi / -h - 1 / factorial(k)
            matrix.append([r_j ** (k - 1) for r_j in r])
            b.append(factorial(k) * h_phi / b_h)
        differences = [(history[k] - history[0]) / r[k - 1] for k in range(1, p)]
        base = x * (following / sigma) - history[0] * expm1(-h)
        x = base
        if p == 2:
            x = base - differences[0] * (b_h / 2)
        elif p > 2:
            rho = np.linalg.solve(np.array(matrix)[:-1, :-1], b[:-1])
            x = base - combined(differences, map(float, rho * b_h))
        if i < steps:
            answer: Latents = yield Evaluation(x, levels[i], step=i, kept=(base,))
            denoised = _through_noise(x, answer, rounded[i] / levels[i])
            rho = np.array([0.5]) if p == 1 else np.linalg.solve(matrix, b)
            x = base - combined([*differences, denoised - history[0]], map(float, rho * b_h))
            history = [denoised, *history][:order]
    return x


def unipc_on_flow(function: Callable[..., Sampler], _levels: Interpolation) -> Callable[..., Sampler]:
    """Return `uni_pc` on a flow: unchanged, but a run to zero ends at LOWEST, whose x has less of the latents."""

    def run(x: Latents, sigmas: Tensor, **options: Any) -> Sampler:
        reached = yield from function(x, sigmas, **options)
        return reached if float(sigmas[-1]) else reached / (1 - LOWEST)

    return run


def _through_noise(x: Latents, denoised: Latents, ratio: float) -> Latents:
    """Return what ComfyUI's formulas take for denoised: x less its noise at the rounded level, not at the level itself.

    ratio: the rounded level over the level.
    """
    return denoised + (x - denoised) * (1 - ratio)


def _rounded(sigma: float) -> float:
    # ComfyUI converts levels through alpha² = 1 / (sigma² + 1) in single precision, which near zero leaves few digits:
    # 0.001 becomes 0.00098. The last step starts or ends there, so images show it.
    log_alpha = 0.5 * torch.log(1 / (torch.tensor(sigma, dtype=torch.float32) ** 2 + 1))
    return float((0.5 * torch.log(1 - torch.exp(2 * log_alpha)) - log_alpha).exp())
