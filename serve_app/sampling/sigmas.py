"""Noise levels: a discrete model's table of them, the schedules that pick from it, and the window a job runs.

sigmas are 1-D (n+1,), descending, float32 on the CPU; the last is 0 unless noise is left over.
"""

from __future__ import annotations

from collections.abc import Callable
from math import atan, exp, inf, log, pi
from typing import TypeAlias

import numpy as np
import torch
from scipy.special import betaincinv
from torch import Tensor

from serve_app.sampling.choices import Choices
from serve_app.sampling.evaluation import SamplerSpec


class NoiseLevels:
    """The sigmas a discrete model was trained on, by timestep. The defaults are those of Stable Diffusion.

    Betas are linear in their square root; sigma = √((1 − ᾱ) / ᾱ). zsnr: rescaled so that the last level has (almost) no
    signal. stride: only every so many-th timestep is a level, the last among them, as consistency models are distilled.
    Sources: Rombach et al. 2022, arXiv:2112.10752; Lin et al. 2023, arXiv:2305.08891, Algorithm 1.
    """

    def __init__(
        self,
        *,
        beta_start: float = 0.00085,
        beta_end: float = 0.012,
        timesteps: int = 1000,
        zsnr: bool = False,
        stride: int = 1,
    ) -> None:
        betas = torch.linspace(beta_start**0.5, beta_end**0.5, timesteps, dtype=torch.float64) ** 2
        alphas_cumprod = torch.cumprod(1 - betas, dim=0)
        if zsnr:
            alphas_cumprod = _without_signal_at_the_end(alphas_cumprod)
        self._timesteps, self._stride = timesteps, stride
        self._set(((1 - alphas_cumprod) / alphas_cumprod).sqrt()[stride - 1 :: stride])

    def _set(self, sigmas: Tensor) -> None:
        self.sigmas: Tensor = sigmas.float()
        """(levels,), ascending."""
        self._log_sigmas: dict[torch.device, Tensor] = {torch.device("cpu"): sigmas.log().float()}

    @property
    def sigma_min(self) -> float:
        """The lowest level above zero."""
        return float(self.sigmas[0])

    @property
    def sigma_max(self) -> float:
        """The level of pure noise."""
        return float(self.sigmas[-1])

    def timestep(self, sigma: Tensor) -> Tensor:
        """Return what the network is told for each sigma, shaped as sigma and on its device.

        It is the timestep nearest in log space, int64.
        """
        table = self._table(sigma.device)
        nearest: Tensor = (sigma.flatten().log() - table[:, None]).abs().argmin(dim=0)
        return nearest.view(sigma.shape) * self._stride + (self._stride - 1)

    def sigma(self, timestep: Tensor) -> Tensor:
        """Return the level of each timestep, interpolated in log space between neighbours, float32."""
        table = self._table(timestep.device)
        at = ((timestep.float() - (self._stride - 1)) / self._stride).clamp(0, len(table) - 1)
        share = at.frac()
        # Written out, as in ComfyUI: lerp rounds otherwise, and a Brownian path differs at the nearest other level.
        return ((1 - share) * table[at.floor().long()] + share * table[at.ceil().long()]).exp()

    def at_progress(self, share: float) -> float:
        """Return the level at a share of the timesteps counted from the top: 0 is above every level, 1 is zero."""
        if not 0 < share < 1:
            return inf if share <= 0 else 0.0
        return self._at(1 - share)

    def _at(self, height: float) -> float:
        return float(self.sigma(torch.tensor(height * (self._timesteps - 1))))

    def _table(self, device: torch.device) -> Tensor:
        # Kept by device: copying it for every forward would cost a transfer each.
        if device not in self._log_sigmas:
            self._log_sigmas[device] = self._log_sigmas[torch.device("cpu")].to(device)
        return self._log_sigmas[device]


def _without_signal_at_the_end(alphas_cumprod: Tensor) -> Tensor:
    roots = alphas_cumprod.sqrt()
    rescaled: Tensor = ((roots - roots[-1]) * (roots[0] / (roots[0] - roots[-1]))) ** 2
    # Nothing at all would be an infinite sigma; ComfyUI leaves this much, a sigma of 4519.
    rescaled[-1] = 4.8973451890853435e-08
    return rescaled


class ContinuousLevels(NoiseLevels):
    """Every level between two. The network is told a quarter of its logarithm, or, with `angle`, its arctangent.

    `sigmas` holds 1000 of them, equally spaced in the logarithm, for the schedules that pick from a table.
    Source: Karras et al. 2022, arXiv:2206.00364, Table 1 (c_noise of EDM).
    """

    def __init__(self, sigma_max: float, sigma_min: float, *, angle: bool = False) -> None:
        self._angle = angle
        self._set(torch.linspace(log(sigma_min), log(sigma_max), 1000).exp())

    def timestep(self, sigma: Tensor) -> Tensor:
        """Return what the network is told for each sigma, float32, shaped as sigma and on its device."""
        return sigma.atan() / pi * 2 if self._angle else 0.25 * sigma.log()

    def sigma(self, timestep: Tensor) -> Tensor:
        """Return the level that the network is told so."""
        return (timestep * pi / 2).tan() if self._angle else (timestep / 0.25).exp()

    def _at(self, height: float) -> float:
        low, high = log(self.sigma_min), log(self.sigma_max)
        return exp((high - low) * height + low)


Schedule: TypeAlias = Callable[[NoiseLevels, int], Tensor]
"""(levels, steps) to sigmas (steps + 1,), the last 0."""


def ending_at_zero(sigmas: Tensor) -> Tensor:
    """Return the levels with 0 after the last."""
    return torch.cat([sigmas, sigmas.new_zeros(1)])


def simple(levels: NoiseLevels, steps: int) -> Tensor:
    """Every (timesteps / steps)-th level of the table, counted from the top."""
    stride = len(levels.sigmas) / steps
    return ending_at_zero(levels.sigmas[[-1 - int(i * stride) for i in range(steps)]])


def sgm_uniform(levels: NoiseLevels, steps: int) -> Tensor:
    """Timesteps equally spaced, the last of them left out. Source: Stability AI's generative-models."""
    return ending_at_zero(levels.sigma(_timesteps(levels, steps + 1)[:-1]))


def karras(levels: NoiseLevels, steps: int, rho: float = 7.0) -> Tensor:
    """Levels equally spaced in sigma^(1/rho). Source: Karras et al. 2022, arXiv:2206.00364, equation 5."""
    low, high = levels.sigma_min ** (1 / rho), levels.sigma_max ** (1 / rho)
    return ending_at_zero((high + torch.linspace(0, 1, steps) * (low - high)) ** rho)


def exponential(levels: NoiseLevels, steps: int) -> Tensor:
    """Levels equally spaced in log sigma."""
    return ending_at_zero(torch.linspace(log(levels.sigma_max), log(levels.sigma_min), steps).exp())


def ddim_uniform(levels: NoiseLevels, steps: int) -> Tensor:
    """Every (timesteps // steps)-th level from timestep 1 up; there may be more levels than steps ask for.

    Source: Song et al. 2020, arXiv:2010.02502, Appendix D.2, as Stable Diffusion's first release counts them.
    """
    stride = max(len(levels.sigmas) // steps, 1)
    return ending_at_zero(levels.sigmas[1::stride].flip(0))


def normal(levels: NoiseLevels, steps: int) -> Tensor:
    """Timesteps equally spaced from the top to the lowest level."""
    return ending_at_zero(levels.sigma(_timesteps(levels, steps)))


def _timesteps(levels: NoiseLevels, count: int) -> Tensor:
    """Return timesteps equally spaced from that of the highest level to that of the lowest, both included."""
    top, bottom = levels.timestep(levels.sigmas[[-1, 0]])
    return torch.linspace(float(top), float(bottom), count)


def beta(levels: NoiseLevels, steps: int, a: float = 0.6, b: float = 0.6) -> Tensor:
    """Timesteps spaced as quantiles of Beta(a, b), most of them near both ends; equal ones are one level.

    There may be fewer levels than steps ask for. Source: Lee et al. 2024, arXiv:2407.12173, section 4.
    """
    quantiles = betaincinv(a, b, 1 - np.arange(steps) / steps)
    timesteps = np.rint(quantiles * (len(levels.sigmas) - 1)).astype(int)
    return ending_at_zero(levels.sigmas[list(dict.fromkeys(timesteps.tolist()))])


def linear_quadratic(levels: NoiseLevels, steps: int, linear_share: float = 0.025) -> Tensor:
    """The first half of the steps spends linear_share of the noise in equal parts, the second half grows quadratically.

    The quadratic part goes on from the linear one with its slope. Source: Genmo 2024, Mochi 1 preview.
    """
    linear = max(steps // 2, 1)
    rest = steps - linear
    slope = linear_share / linear
    spent = [slope * i for i in range(min(linear, steps))]
    if rest > 0:
        curve = (1 - linear_share - slope * rest) / rest**2
        spent += [linear_share + slope * i + curve * i**2 for i in range(rest)]
    return torch.tensor([1 - share for share in spent] + [0.0]) * levels.sigma_max


def kl_optimal(levels: NoiseLevels, steps: int) -> Tensor:
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
    levels: NoiseLevels,
    schedule: str,
    sampler: SamplerSpec,
    steps: int,
    denoise: float = 1.0,
    start_step: int | None = None,
    end_step: int | None = None,
    full_denoise: bool = True,
) -> Tensor:
    """Return the sigmas one job runs; fewer than two of them mean that nothing is to be done.

    denoise: below 1 the schedule is made longer by 1 / denoise and only its last `steps` are run. start_step, end_step:
    the window of those; full_denoise then ends at 0 wherever the window ends. Source: ComfyUI's KSampler and
    KSamplerAdvanced. Errors: NodeError for an unknown schedule.
    """
    if denoise <= 0:
        return torch.empty(0)
    # Above 0.9999 it is rounding of a client's 1.0.
    partial = denoise <= 0.9999
    whole = int(steps / denoise) if partial else steps
    if sampler.discards_penultimate:
        sigmas = SCHEDULES[schedule](levels, whole + 1)
        sigmas = torch.cat([sigmas[:-2], sigmas[-1:]])
    else:
        sigmas = SCHEDULES[schedule](levels, whole)
    if partial:
        sigmas = sigmas[-(steps + 1) :]
    if end_step is not None and end_step < len(sigmas) - 1:
        sigmas = sigmas[: end_step + 1]
        if full_denoise:
            sigmas = ending_at_zero(sigmas[:-1])
    start = start_step or 0
    return sigmas[start:] if start < len(sigmas) - 1 else sigmas[:0]
