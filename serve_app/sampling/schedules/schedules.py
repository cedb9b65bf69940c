"""Schedules with parameters of their own, beyond `sigmas.SCHEDULES`, and changes to finished sigmas.

All return sigmas (n+1,), float32 on the CPU. The tables of levels are numbers that their authors published.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from itertools import pairwise
from math import exp, log, pi

import numpy as np
import torch
from torch import Tensor

from serve_app.errors import NodeError
from serve_app.sampling.schedules.levels import FluxLevels, Levels, SigmaRange, single
from serve_app.sampling.schedules.sigmas import ending_at_zero

_LOG_RATIOS = (18.0, -15.0)
"""The logarithm of signal over noise at Ideogram 4's lowest and highest level."""

ALIGN_YOUR_STEPS: Mapping[str, Sequence[float]] = {
    "SD1": (
        *(14.6146412293, 6.4745760956, 3.8636745985, 2.6946151520, 1.8841921177, 1.3943805092),
        *(0.9642583904, 0.6523686016, 0.3977456272, 0.1515232662, 0.0291671582),
    ),
    "SDXL": (
        *(14.6146412293, 6.3184485287, 3.7681790315, 2.1811480769, 1.3405244945, 0.8620721141),
        *(0.5550693289, 0.3798540708, 0.2332364134, 0.1114188177, 0.0291671582),
    ),
    "SVD": (700.00, 54.5, 15.886, 7.977, 4.248, 1.789, 0.981, 0.403, 0.173, 0.034, 0.002),
}
"""Levels of ten steps by kind of model. Source: Sabour et al. 2024, arXiv:2404.14507, and its project page."""


LTX_TOKENS = 1024, 4096
"""Latent cells of the smallest and the largest video that LTX was trained on."""

OPTIMAL_STEPS: Mapping[str, Sequence[float]] = {
    "FLUX": (0.9968, 0.9886, 0.9819, 0.975, 0.966, 0.9471, 0.9158, 0.8287, 0.5512, 0.2808, 0.001),
    "Wan": (
        *(1.0, 0.997, 0.995, 0.993, 0.991, 0.989, 0.987, 0.985, 0.98, 0.975, 0.973),
        *(0.968, 0.96, 0.946, 0.927, 0.902, 0.864, 0.776, 0.539, 0.208, 0.001),
    ),
    "Chroma": (
        *(0.992, 0.99, 0.988, 0.985, 0.982, 0.978, 0.973, 0.968, 0.961, 0.953, 0.943, 0.931, 0.917, 0.9),
        *(0.881, 0.858, 0.832, 0.802, 0.769, 0.731, 0.69, 0.646, 0.599, 0.55, 0.501, 0.451, 0.402, 0.355),
        *(0.311, 0.27, 0.232, 0.199, 0.169, 0.143, 0.12, 0.101, 0.084, 0.07, 0.058, 0.048, 0.001),
    ),
}
"""Levels of flows by kind of model. Source: Pei et al. 2025, arXiv:2503.21774, and its code."""


class Ends:
    """A model's highest and lowest level in single precision, which is all that some schedules need (a SigmaRange)."""

    def __init__(self, sigma_max: float, sigma_min: float) -> None:
        self.sigma_max, self.sigma_min = single(sigma_max), single(sigma_min)

    def positive(self) -> Ends:
        """Return these. Errors: NodeError if one is zero, which has no logarithm."""
        if min(self.sigma_min, self.sigma_max) <= 0:
            raise NodeError(f"sigma_max {self.sigma_max:g} and sigma_min {self.sigma_min:g} must be above 0")
        return self


def polyexponential(ends: SigmaRange, steps: int, rho: float = 1.0) -> Tensor:
    """Levels spaced by a power of the remaining share of log sigma; rho 1 is `exponential`.

    Source: Crowson's k-diffusion.
    """
    low, high = log(ends.sigma_min), log(ends.sigma_max)
    return ending_at_zero((torch.linspace(1, 0, steps) ** rho * (high - low) + low).exp())


def laplace(ends: SigmaRange, steps: int, mu: float = 0.0, beta: float = 0.5) -> Tensor:
    """Log levels spaced as quantiles of a Laplace distribution about mu, clipped to the ends; zero is not included.

    Source: Hang et al. 2024, arXiv:2407.03297, Table 1.
    """
    from_middle = 0.5 - torch.linspace(0, 1, steps)
    # The ends' quantiles are infinite; ComfyUI moves them inwards by this much.
    logs = mu - beta * from_middle.sign() * (1 - 2 * from_middle.abs() + 1e-5).log()
    return logs.exp().clamp(ends.sigma_min, ends.sigma_max)


def variance_preserving(steps: int, beta_d: float = 19.9, beta_min: float = 0.1, end: float = 1e-3) -> Tensor:
    """Times of the variance-preserving process equally spaced from 1 to `end`.

    Source: Song et al. 2020, arXiv:2011.13456, equation 32, as Karras et al. 2022, arXiv:2206.00364, Table 1 has it.
    """
    t = torch.linspace(1, end, steps)
    return ending_at_zero(torch.expm1(beta_d * t**2 / 2 + beta_min * t).sqrt())


def turbo(levels: Levels, steps: int, denoise: float = 1.0) -> Tensor:
    """The tenths of a thousand timesteps, from the one at the share `denoise`.

    Source: Sauer et al. 2023, arXiv:2311.17042: the timesteps that SD-Turbo and SDXL-Turbo are distilled on.
    """
    first = 10 - int(10 * denoise)
    timesteps = torch.arange(999, 0, -100)[first : first + steps]
    return ending_at_zero(levels.sigma(timesteps))


def flux_2(steps: int, tokens: int) -> Tensor:
    """Times equally spaced, shifted as FLUX's levels by a mu fitted to image sizes and numbers of steps.

    tokens: latent cells of an image. Source: Black Forest Labs 2025, FLUX.2's sampling code.
    """
    at_200 = 0.00016927 * tokens + 0.45666666
    if tokens > 4300:
        return FluxLevels(at_200).sigma(torch.linspace(1, 0, steps + 1))
    at_10 = 8.73809524e-05 * tokens + 1.89833333
    slope = (at_200 - at_10) / 190.0
    return FluxLevels(slope * steps + (at_200 - 200.0 * slope)).sigma(torch.linspace(1, 0, steps + 1))


def ideogram4(steps: int, pixels: int, mu: float, std: float) -> Tensor:
    """Levels whose logits are normally distributed, at even quantiles, then 0.

    pixels: of the image; mu: the mean of the logits for 512×512 of them; std: their deviation. Source: Ideogram 2026,
    Ideogram 4's sampling code, which clamps the logarithm of signal over noise.
    """
    mean = mu + log(pixels / 512**2) / 2
    spread = torch.special.expit(mean + std * torch.special.ndtri(torch.linspace(1, 0, steps + 1, dtype=torch.float64)))
    least, most = (1 / (1 + exp(ratio / 2)) for ratio in _LOG_RATIOS)
    sigmas = 1 - (1 - spread).clamp(least, most)
    sigmas[-1] = 0
    made: Tensor = sigmas.float()
    return made


def ltx(steps: int, tokens: int, high: float, low: float, last: float | None) -> Tensor:
    """Times equally spaced, shifted as FLUX's levels by a mu that is a line through both ends of `LTX_TOKENS`.

    tokens: latent cells of a video. low, high: the mu at both ends. last: what the last level above 0 is stretched to;
    None: the levels stay. Source: HaCohen et al. 2024, arXiv:2501.00103; the numbers are ComfyUI's.
    """
    sigmas = torch.linspace(1.0, 0.0, steps + 1)
    shift = exp(ltx_shift(tokens, high, low))
    sigmas = torch.where(sigmas != 0, shift / (shift + (1 / sigmas - 1)), 0)
    if last is not None:
        above = sigmas != 0
        rest = 1.0 - sigmas[above]
        sigmas[above] = 1.0 - rest / (rest[-1] / (1.0 - last))
    return sigmas


def ltx_shift(tokens: int, high: float, low: float) -> float:
    """Return the mu for a number of tokens, as `ltx`."""
    slope = (high - low) / (LTX_TOKENS[1] - LTX_TOKENS[0])
    return tokens * slope + (low - slope * LTX_TOKENS[0])


def from_table(table: Sequence[float], steps: int, denoise: float = 1.0) -> Tensor:
    """Return a table's levels, interpolated log-linearly to `steps`, and of them the share to run.

    The last level becomes 0. A share of no step at all is that 0 alone.
    """
    if denoise <= 0.0:
        return torch.empty(0)
    kept = round(steps * denoise) if denoise < 1.0 else steps
    sigmas = np.asarray(table)
    if len(sigmas) != steps + 1:
        # Counted from the low end, as the tables' authors do; the high end would round differently.
        places = np.linspace(0, 1, steps + 1), np.linspace(0, 1, len(sigmas))
        sigmas = np.exp(np.interp(*places, np.log(sigmas[::-1])))[::-1]
    return ending_at_zero(torch.tensor(sigmas[-(kept + 1) : -1].copy(), dtype=torch.float32))


SPACINGS: Mapping[str, Callable[[Tensor], Tensor]] = {
    "linear": lambda x: x,
    "cosine": lambda x: (x * (pi / 2)).sin(),
    "sine": lambda x: 1 - (x * (pi / 2)).cos(),
}
"""Divisions of a step: shares of its width from equal shares."""


def extended(sigmas: Tensor, steps: int, highest: float, lowest: float, spacing: str) -> Tensor:
    """Return sigmas with each step that begins from `highest` down to `lowest` divided into several."""
    shares = SPACINGS[spacing](torch.linspace(0, 1, steps + 1)[1:-1])
    made = []
    for sigma, following in pairwise(sigmas):
        made.append(sigma[None])
        if lowest <= sigma <= highest:
            made.append(sigma + shares * (following - sigma))
    return torch.cat([*made, sigmas[-1:]]).float()
