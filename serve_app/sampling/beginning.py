"""The initial state of a run, computed from its request alone: noise levels, latents and noise, float32 on the CPU.

It may take long, depending on the request, so it is computed outside the engine's thread.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from serve_app.errors import NodeError
from serve_app.recipe.context import ContextWindows, FirstFrames
from serve_app.sampling.guidance.windows import shuffled
from serve_app.sampling.latents.latents import LatentFormat
from serve_app.sampling.latents.layout import ONE_PART, LatentLayout
from serve_app.sampling.lazy_sum import value
from serve_app.sampling.noise import drawn, noise
from serve_app.sampling.request import SamplingRequest, Steps
from serve_app.sampling.samplers import autoregressive
from serve_app.sampling.samplers.autoregressive import ar_video
from serve_app.sampling.samplers.evaluation import SamplerSpec
from serve_app.sampling.samplers.samplers import SAMPLERS
from serve_app.sampling.schedules.levels import Levels
from serve_app.sampling.schedules.sigmas import sigmas_for

VIDEO_AXES = 5
"""Axes of a video's latents, with those of the batch and of channels."""


@dataclass(frozen=True, slots=True, eq=False)
class Beginning:
    """sigmas: (n+1,). latents, noise: (B,C,…), unscaled; kept_noise: for the masked-out part, None: the same noise.

    layout: of several parts, which are packed in all of these.
    """

    spec: SamplerSpec
    sigmas: Tensor
    latents: Tensor
    noise: Tensor
    kept_noise: Tensor | None = None
    layout: LatentLayout = ONE_PART


def beginning_of(request: SamplingRequest, levels: Levels, latent_format: LatentFormat) -> Beginning:
    """Return the initial state of a run for a backbone's levels and latent format.

    Errors: NodeError for an unknown sampler or schedule, latents of another format, and noise for too many latents.
    """
    spec = _spec(request, levels, latent_format)
    sigmas = _sigmas(request, levels, spec)
    samples = latent_format.accept(request.latents.to("cpu", torch.float32), request.factor)
    layout = LatentLayout.of(samples)
    latents = layout.pack(samples)
    if not len(sigmas):
        return Beginning(spec, sigmas, latents, latents, layout=layout)
    added, kept = layout.pack(drawn(request.noise, samples, request.batch_index)), None
    windows = request.guider.backbone.last(ContextWindows)
    if windows is not None and windows.shuffled and added.ndim == VIDEO_AXES:
        added = shuffled(added, windows, request.noise.seed)
    if request.noise_mask is not None and spec.fresh_inpaint_noise:
        kept = noise(latents.shape, request.noise.seed + 1)
    return Beginning(spec, sigmas, latents, added, kept, layout)


def _spec(request: SamplingRequest, levels: Levels, latent_format: LatentFormat) -> SamplerSpec:
    sampler, seed = request.sampler, request.noise.seed
    if sampler.name == autoregressive.NAME:
        return SamplerSpec(partial(ar_video, seed=seed, first=_first_frames(request, latent_format)))
    start = sampler.start
    if start is None:
        return SAMPLERS[sampler.name]
    return SamplerSpec(lambda x, sigmas, **_: start(value(x), sigmas, seed, levels))


def _first_frames(request: SamplingRequest, latent_format: LatentFormat) -> Tensor | None:
    """Return the frames that a video begins with, (1,C,t,h,w), scaled; None if it begins with none.

    Errors: NodeError for a noise mask or context windows, which are of whole videos.
    """
    recipe = request.guider.backbone
    for lacking, given in (("noise mask", request.noise_mask), ("context windows", recipe.last(ContextWindows))):
        if given is not None:
            raise NodeError(f"sampler '{autoregressive.NAME}' makes a video block by block, and takes no {lacking}")
    first = recipe.last(FirstFrames)
    return None if first is None else latent_format.parts[0].to_model(first.latents.float())


def _sigmas(request: SamplingRequest, levels: Levels, spec: SamplerSpec) -> Tensor:
    if isinstance(request.sigmas, Steps):
        return sigmas_for(levels, request.sigmas, spec)
    return request.sigmas.to("cpu", torch.float32)
