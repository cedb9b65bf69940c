"""What one run of a sampler is asked for, and what it ends with. Values that nodes make and the engine carries out."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from serve_app.values import Guider, Noise, SamplerChoice

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True, slots=True)
class Steps:
    """A schedule by name and the window of its steps that is run.

    denoise: 0…1 share of the schedule that is run; below 1 the schedule is made longer by 1 / denoise and only its last
    `count` steps are run. start, end: the window of steps, as in KSamplerAdvanced. full_denoise False leaves the noise
    of the window's end.
    """

    schedule: str
    count: int
    denoise: float = 1.0
    start: int | None = None
    end: int | None = None
    full_denoise: bool = True


@dataclass(frozen=True, slots=True, eq=False)
class SamplingRequest:
    """All that one run of a sampler asks for.

    latents: (B,C,h,w) or (B,C,T,h,w) unscaled, as a LATENT holds them. sigmas: (n+1,), or the steps that make them.
    batch_index: which noise of the seed's sequence each latent takes; None counts from 0. noise_mask: as a LATENT holds
    it. factor: pixels that a cell of empty latents covers along one side, where they say it. after_step: called in the
    engine's thread with (the step's index, its estimate of the image, x, steps in all), both as the backbone samples.
    """

    guider: Guider
    latents: torch.Tensor
    sampler: SamplerChoice
    sigmas: Steps | torch.Tensor
    noise: Noise
    batch_index: Sequence[int] | None = None
    noise_mask: torch.Tensor | None = None
    factor: int | None = None
    after_step: Callable[[int, torch.Tensor, torch.Tensor, int], None] | None = None


@dataclass(frozen=True, slots=True, eq=False)
class Sampled:
    """What a run ends with: its latents, and its last estimate of the image, both unscaled on the CPU, of a shape."""

    latents: torch.Tensor
    denoised: torch.Tensor
