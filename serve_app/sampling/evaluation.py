"""What a sampler is: a generator that yields the model evaluations it needs and is sent the results.

It never sees the model, so whoever drives it may answer evaluations of many samplers with one forward.
"""

from __future__ import annotations

from collections.abc import Callable, Generator
from dataclasses import dataclass
from typing import Any, TypeAlias

from torch import Tensor

Sampler: TypeAlias = Generator["Evaluation", Any, Tensor]
"""Yields Evaluation; is sent `denoised`, shaped as its x, or the pair (denoised, uncond) where that was wanted."""

NoiseSource: TypeAlias = Callable[[float, float], Tensor]
"""Called with two noise levels (from, to); returns unit-variance noise, shaped as x."""


@dataclass(frozen=True, slots=True)
class Evaluation:
    """One D(x, sigma) that a sampler waits for.

    x: noisy latents (B,C,h,w) at `sigma`. step: the index in sigmas it belongs to; several evaluations may share one.
    want_uncond: send (denoised, uncond's denoised) instead of denoised alone.
    """

    x: Tensor
    sigma: float
    step: int
    want_uncond: bool = False


@dataclass(frozen=True, slots=True)
class SamplerSpec:
    """A sampler under its name, and what has to be arranged around it.

    function: (x, sigmas), and a NoiseSource third if stochastic. discards_penultimate: the schedule is made one step
    longer and its last level above zero is left out. fresh_inpaint_noise: kept regions of an inpainting get noise of
    the seed after the job's, instead of the job's own noise.
    """

    function: Callable[..., Sampler]
    stochastic: bool = False
    discards_penultimate: bool = False
    fresh_inpaint_noise: bool = False

    def start(self, x: Tensor, sigmas: Tensor, noise: NoiseSource) -> Sampler:
        """Return the sampler over x (B,C,h,w), which is at sigmas[0]; a deterministic one gets no noise."""
        return self.function(x, sigmas, noise) if self.stochastic else self.function(x, sigmas)
