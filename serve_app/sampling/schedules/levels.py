"""Noise levels of a model: its sigmas, their timesteps, and the noise process.

`Levels` is the interface for samplers, schedules and the engine, with one class for each kind of training. There are
two processes, whatever the network predicts: x = latents + sigma·noise, and x = (1 − sigma)·latents + sigma·noise.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from math import exp, inf, isclose, log, pi
from typing import Protocol

import torch
from torch import Tensor

from serve_app.errors import NodeError
from serve_app.sampling.lazy_sum import Latents, value
from serve_app.sampling.transfer import to_device


def single(sigma: float) -> float:
    """Return a level in single precision, as schedules and tables have it, so that equal levels compare as equal.

    ComfyUI adds noise with it too; samplers that extrapolate far, or adapt, show even the last digit of x.
    """
    return float(torch.tensor(sigma, dtype=torch.float32))


class SigmaRange(Protocol):
    """The lowest level above zero and the highest, for schedules that spread steps between them."""

    @property
    def sigma_min(self) -> float: ...

    @property
    def sigma_max(self) -> float: ...


class Levels(SigmaRange, Protocol):
    """The noise levels of a model, and the process that its noise follows."""

    @property
    def sigmas(self) -> Tensor:
        """Levels (n,), ascending, float32 on the CPU, for schedules that pick from a table."""
        ...

    def timestep(self, sigma: Tensor) -> Tensor:
        """Return the network's timestep for each sigma, shaped as sigma and on its device."""
        ...

    def sigma(self, timestep: Tensor) -> Tensor:
        """Return the level of each timestep, float32."""
        ...

    def at_progress(self, share: float) -> float:
        """Return the level at a share of the sampling, counted from the top; zero for 1."""
        ...

    def log_snr(self, sigma: float) -> float:
        """Return half the logarithm of the signal-to-noise ratio at a level above zero: lambda in papers on solvers."""
        ...

    def noised(self, latents: Latents, noise: Latents, sigma: float) -> Latents:
        """Return latents at a level. noise: unit-variance, shaped as latents."""
        ...

    def start(self, latents: Tensor, noise: Tensor, sigma: float) -> Tensor:
        """Return the initial x of a run at its first level; from pure noise it may differ from `noised`."""
        ...

    def unnoised(self, x: Tensor, sigma: float) -> Tensor:
        """Return the latents of a run's final x: undo the scaling of `noised` at its last level."""
        ...


class _VarianceExploding:
    """The process x = latents + sigma·noise."""

    sigmas: Tensor

    @property
    def sigma_min(self) -> float:
        return float(self.sigmas[0])

    @property
    def sigma_max(self) -> float:
        return float(self.sigmas[-1])

    def log_snr(self, sigma: float) -> float:
        return -log(sigma)

    def noised(self, latents: Latents, noise: Latents, sigma: float) -> Latents:
        return latents + noise * single(sigma)

    def start(self, latents: Tensor, noise: Tensor, sigma: float) -> Tensor:
        """Return as `noised`, but at or above the top level x has the variance of training."""
        if sigma > self.sigma_max or isclose(sigma, self.sigma_max, rel_tol=1e-5):
            level = torch.tensor(sigma, dtype=torch.float32)
            return latents + noise * float((1 + level**2).sqrt())
        return value(self.noised(latents, noise, sigma))

    def unnoised(self, x: Tensor, sigma: float) -> Tensor:
        """Return x, as this process does not scale latents."""
        return x


TIMESTEPS = 1000
"""Number of noise levels that Stable Diffusion and its successors are trained on."""


class TableLevels(_VarianceExploding):
    """The sigmas that Stable Diffusion is trained on, by timestep.

    Betas are linear in their square root; sigma = √((1 − ᾱ) / ᾱ). zsnr: rescaled so that the last level has (almost) no
    signal. stride: only every stride-th timestep is a level, including the last, as consistency models are distilled.
    even: betas themselves are linear, and others. Sources: Rombach et al. 2022, arXiv:2112.10752; Lin et al. 2023,
    arXiv:2305.08891, Algorithm 1; Ho et al. 2020, arXiv:2006.11239, section 4.
    """

    def __init__(self, *, zsnr: bool = False, stride: int = 1, even: bool = False) -> None:
        if even:
            betas = torch.linspace(1e-4, 0.02, TIMESTEPS, dtype=torch.float64)
        else:
            betas = torch.linspace(0.00085**0.5, 0.012**0.5, TIMESTEPS, dtype=torch.float64) ** 2
        alphas_cumprod = torch.cumprod(1 - betas, dim=0)
        if zsnr:
            alphas_cumprod = _without_signal_at_the_end(alphas_cumprod)
        sigmas = ((1 - alphas_cumprod) / alphas_cumprod).sqrt()[stride - 1 :: stride]
        self._stride = stride
        self.sigmas = sigmas.float()
        # Schedules have levels half-way between two distilled ones, so the last bit decides the timestep. ComfyUI takes
        # their logarithms in single precision, and those of all levels in double.
        logs = (self.sigmas if stride > 1 else sigmas).log().float()
        self._log_sigmas: dict[torch.device, Tensor] = {torch.device("cpu"): logs}

    def timestep(self, sigma: Tensor) -> Tensor:
        """Return the timestep nearest to each sigma in log space, int64."""
        table = self._table(sigma.device)
        nearest: Tensor = (sigma.flatten().log() - table[:, None]).abs().argmin(dim=0)
        return nearest.view(sigma.shape) * self._stride + (self._stride - 1)

    def sigma(self, timestep: Tensor) -> Tensor:
        """Return the level of each timestep, interpolated in log space between neighbours."""
        table = self._table(timestep.device)
        at = ((timestep.float() - (self._stride - 1)) / self._stride).clamp(0, len(table) - 1)
        share = at.frac()
        # Written out, as in ComfyUI: lerp rounds differently, and a Brownian path differs even at the nearest other
        # level.
        return ((1 - share) * table[at.floor().long()] + share * table[at.ceil().long()]).exp()

    def at_progress(self, share: float) -> float:
        """Return the level at a share of the timesteps."""
        if not 0 < share < 1:
            return inf if share <= 0 else 0.0
        return float(self.sigma(torch.tensor((1 - share) * (TIMESTEPS - 1))))

    def _table(self, device: torch.device) -> Tensor:
        # Cached by device: copying it for every forward would cost a transfer each.
        if device not in self._log_sigmas:
            self._log_sigmas[device] = to_device(self._log_sigmas[torch.device("cpu")], device)
        return self._log_sigmas[device]


def _without_signal_at_the_end(alphas_cumprod: Tensor) -> Tensor:
    roots = alphas_cumprod.sqrt()
    rescaled: Tensor = ((roots - roots[-1]) * (roots[0] / (roots[0] - roots[-1]))) ** 2
    # No signal at all would be an infinite sigma; ComfyUI leaves this much, a sigma of 4519.
    rescaled[-1] = 4.8973451890853435e-08
    return rescaled


class _Between(_VarianceExploding):
    """A continuous range of levels; `sigmas` has some, equally spaced in the logarithm."""

    def __init__(self, sigma_max: float, sigma_min: float) -> None:
        self.sigmas = torch.linspace(log(sigma_min), log(sigma_max), TIMESTEPS).exp()

    def at_progress(self, share: float) -> float:
        """Return the level at a share of the logarithm."""
        if not 0 < share < 1:
            return inf if share <= 0 else 0.0
        low, high = log(self.sigma_min), log(self.sigma_max)
        return exp((high - low) * (1 - share) + low)


class EdmLevels(_Between):
    """A continuous range of levels; the timestep is log(sigma) / 4.

    Source: Karras et al. 2022, arXiv:2206.00364, Table 1 (c_noise of EDM).
    """

    def timestep(self, sigma: Tensor) -> Tensor:
        """Return log(sigma) / 4, float32."""
        return 0.25 * sigma.log()

    def sigma(self, timestep: Tensor) -> Tensor:
        return (timestep / 0.25).exp()


class AngleLevels(_Between):
    """A continuous range of levels; the timestep is arctan(sigma) as a share of a right angle.

    Source: Salimans and Ho 2022, arXiv:2202.00512, as Stability AI's continuous v-prediction models have it.
    """

    def timestep(self, sigma: Tensor) -> Tensor:
        """Return each sigma's angle, 0…1, float32."""
        return sigma.atan() / pi * 2

    def sigma(self, timestep: Tensor) -> Tensor:
        return (timestep * pi / 2).tan()


class Interpolation(ABC):
    """The process x = (1 − sigma)·latents + sigma·noise, sigma 0…1, of flow matching.

    A subclass says how times 0…1 are shifted to levels, and what the timestep of a level is. Source: Lipman et al.
    2022, arXiv:2210.02747, section 4.1 (optimal transport); Liu et al. 2022, arXiv:2209.03003.
    """

    sigmas: Tensor

    @abstractmethod
    def _shifted(self, time: Tensor) -> Tensor:
        """Return the level of each time above 0."""

    @property
    def sigma_min(self) -> float:
        return float(self.sigmas[0])

    @property
    def sigma_max(self) -> float:
        return float(self.sigmas[-1])

    def at_progress(self, share: float) -> float:
        """Return the level at a share of the times; 1 at the start, where x is pure noise."""
        if not 0 < share < 1:
            return 1.0 if share <= 0 else 0.0
        return float(self._shifted(torch.tensor(1 - share, dtype=torch.float64)))

    def log_snr(self, sigma: float) -> float:
        return log((1 - sigma) / sigma) if sigma < 1 else -inf

    def noised(self, latents: Latents, noise: Latents, sigma: float) -> Latents:
        level = single(sigma)
        return noise * level + latents * (1 - level)

    def start(self, latents: Tensor, noise: Tensor, sigma: float) -> Tensor:
        """Return as `noised`: pure noise at the top level."""
        return value(self.noised(latents, noise, sigma))

    def unnoised(self, x: Tensor, sigma: float) -> Tensor:
        """Return x divided by the share of latents in it. Errors: NodeError at the level of pure noise."""
        if sigma >= 1:
            raise NodeError(f"the sigmas end at {sigma:g}, where only noise is left of the latents; below 1 some are")
        return x / (1 - single(sigma))


class FlowLevels(Interpolation):
    """Levels t·shift / (1 + (shift − 1)·t) for 1000 times t; the timestep is a multiple of the level.

    Source: Esser et al. 2024, arXiv:2403.03206, section 5.3.2 (the shift of times for higher resolutions).
    """

    def __init__(self, shift: float, multiplier: float) -> None:
        self._shift, self._multiplier = shift, multiplier
        # Converted there and back, as in ComfyUI: a time in the network's unit rounds, and the table shows it.
        self.sigmas = self.sigma(torch.arange(1, TIMESTEPS + 1) / TIMESTEPS * multiplier)

    def _shifted(self, time: Tensor) -> Tensor:
        return time if self._shift == 1 else self._shift * time / (1 + (self._shift - 1) * time)

    def timestep(self, sigma: Tensor) -> Tensor:
        """Return each sigma times the multiplier, float32."""
        return sigma * self._multiplier

    def sigma(self, timestep: Tensor) -> Tensor:
        """Return the level of a time in the network's unit: `timestep`'s, shifted once more."""
        return self._shifted(timestep / self._multiplier)


class FluxLevels(Interpolation):
    """Levels e^mu / (e^mu + 1/t − 1) for 10000 times t; the timestep is the level itself.

    Source: Black Forest Labs 2024, FLUX.1's sampling code; the shift is FlowLevels' with e^mu.
    """

    def __init__(self, mu: float) -> None:
        self._factor = exp(mu)
        self.sigmas = self._shifted(torch.arange(1, 10 * TIMESTEPS + 1) / (10 * TIMESTEPS))

    def _shifted(self, time: Tensor) -> Tensor:
        return self._factor / (self._factor + (1 / time - 1))

    def timestep(self, sigma: Tensor) -> Tensor:
        """Return each sigma unchanged."""
        return sigma

    def sigma(self, timestep: Tensor) -> Tensor:
        """Return the level of a time: `timestep`'s, shifted once more."""
        return self._shifted(timestep)


class ImageToImageLevels(TableLevels):
    """Stable Diffusion's levels of a network that turns latents into latents: no noise is added to what it begins with.

    Samplers take them for a flow's. Source: the facts of ComfyUI 0.33.0's `img_to_img_flow`.
    """

    def log_snr(self, sigma: float) -> float:
        return log((1 - sigma) / sigma) if sigma < 1 else -inf

    def noised(self, latents: Latents, noise: Latents, sigma: float) -> Latents:
        return latents

    def start(self, latents: Tensor, noise: Tensor, sigma: float) -> Tensor:
        return latents

    def unnoised(self, x: Tensor, sigma: float) -> Tensor:
        """Return what x lacks of 1: the network's output is the inverse of the latents."""
        return 1.0 - x


Interpolation.register(ImageToImageLevels)
