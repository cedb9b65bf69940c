"""The request and the result of one sampler run. Nodes make requests; the engine carries them out."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from serve_app.nested_tensor import Samples
from serve_app.values import Guider, Noise, SamplerChoice

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True, slots=True)
class Steps:
    """A schedule by name and the window of its steps that is run.

    denoise: 0…1, the share of the schedule that is run: below 1 the schedule gets 1 / denoise times the steps, of which
    the last `count` are run. start, end: the window of steps, as in KSamplerAdvanced. full_denoise False: stop at the
    noise level of the window's end.
    """

    schedule: str
    count: int
    denoise: float = 1.0
    start: int | None = None
    end: int | None = None
    full_denoise: bool = True


@dataclass(frozen=True, slots=True, eq=False)
class SamplingRequest:
    """All inputs of one sampler run.

    latents: (B,C,h,w), (B,C,T,h,w) or several parts, unscaled, as in a LATENT. sigmas: (n+1,), or the steps that make
    them. batch_index: position in the seed's noise sequence of each latent; None: counted from 0. noise_mask: as in a
    LATENT. factor: pixels per cell along one side, where empty latents state it. after_step: called in the engine's
    thread with (step index, denoised, x, total steps), both scaled for the backbone.
    """

    guider: Guider
    latents: Samples
    sampler: SamplerChoice
    sigmas: Steps | torch.Tensor
    noise: Noise
    batch_index: Sequence[int] | None = None
    noise_mask: Samples | None = None
    factor: int | None = None
    after_step: Callable[[int, Samples, Samples, int], None] | None = None


@dataclass(frozen=True, slots=True, eq=False)
class Sampled:
    """The result of a run: final latents and last denoised estimate, unscaled on the CPU, of equal shapes.

    They are `Samples` of the request's kind, untyped as in a Latent.
    """

    latents: Any
    denoised: Any
