"""KSampler and KSamplerAdvanced: ComfyUI's two sets of widgets as one SamplingRequest."""

from __future__ import annotations

from typing import Annotated, TypeAlias

from torch import Tensor

from serve_app.execution.runtime import Runtime
from serve_app.nested_tensor import Samples
from serve_app.nodes.declare import node
from serve_app.nodes.inputs import Choice, Float, Int
from serve_app.nodes.sockets import CONDITIONING, JOINT_LATENT, LATENT, MODEL, RUNTIME
from serve_app.sampling.request import Sampled, SamplingRequest, Steps
from serve_app.sampling.samplers.samplers import SAMPLERS
from serve_app.sampling.schedules.sigmas import SCHEDULES
from serve_app.values import Cfg, Guider, Latent, Noise, SamplerChoice

Seed: TypeAlias = Annotated[int, Int(0, min=0, max=0xFFFFFFFFFFFFFFFF, control_after_generate=True)]
StepCount: TypeAlias = Annotated[int, Int(20, min=1, max=10000)]
FACTOR = "downscale_ratio_spacial"
"""A member of empty LATENTs: pixels that a cell covers along one side."""
LENGTH_FACTOR = "downscale_ratio_temporal"
"""A member of empty LATENTs of a sound: samples that a latent covers."""
CfgScale: TypeAlias = Annotated[float, Float(8.0, min=0.0, max=100.0, step=0.1, round=0.01)]


async def run(
    runtime: Runtime, latent: Latent, guider: Guider, sampler: SamplerChoice, sigmas: Steps | Tensor, noise: Noise
) -> Sampled:
    """Sample a LATENT: its samples, with the noise of its batch_index and within its noise_mask."""
    request = SamplingRequest(
        guider,
        latent["samples"],
        sampler,
        sigmas,
        noise,
        latent.get("batch_index"),
        latent.get("noise_mask"),
        latent.get(FACTOR, latent.get(LENGTH_FACTOR)),
    )
    return await runtime.sample(request)


def with_samples(latent: Latent, samples: Samples) -> Latent:
    """Return a LATENT with sampled samples in place of its own; of empty ones' factor nothing is left to say."""
    return {name: value for name, value in latent.items() if name not in (FACTOR, LENGTH_FACTOR)} | {"samples": samples}


@node(
    "KSampler",
    category="model/sampling",
    function="sample",
    description="Denoises the latent image with the model, guided by the positive and negative conditioning.",
    required=("denoise",),
)
async def ksampler(
    model: MODEL,
    seed: Seed,
    steps: StepCount,
    cfg: CfgScale,
    sampler_name: Annotated[str, Choice(SAMPLERS)],
    scheduler: Annotated[str, Choice(SCHEDULES)],
    positive: CONDITIONING,
    negative: CONDITIONING,
    latent_image: JOINT_LATENT,
    runtime: RUNTIME,
    denoise: Annotated[float, Float(1.0, min=0.0, max=1.0, step=0.01)] = 1.0,
) -> LATENT:
    """Sample latents from their first step to the last. Return the latent with its samples denoised."""
    guider = Guider(model, {"positive": positive, "negative": negative}, Cfg(cfg))
    window = Steps(scheduler, steps, denoise)
    sampled = await run(runtime, latent_image, guider, SamplerChoice(sampler_name), window, Noise(seed))
    return with_samples(latent_image, sampled.latents)


@node("KSamplerAdvanced", "KSampler (Advanced)", category="model/sampling", function="sample")
async def ksampler_advanced(
    model: MODEL,
    add_noise: Annotated[str, Choice(["enable", "disable"])],
    noise_seed: Seed,
    steps: StepCount,
    cfg: CfgScale,
    sampler_name: Annotated[str, Choice(SAMPLERS)],
    scheduler: Annotated[str, Choice(SCHEDULES)],
    positive: CONDITIONING,
    negative: CONDITIONING,
    latent_image: JOINT_LATENT,
    start_at_step: Annotated[int, Int(0, min=0, max=10000)],
    end_at_step: Annotated[int, Int(10000, min=0, max=10000)],
    return_with_leftover_noise: Annotated[str, Choice(["disable", "enable"])],
    runtime: RUNTIME,
) -> LATENT:
    """Sample a window of the steps, with or without adding noise first and with or without its end left noisy.

    Return the latent with its samples denoised over the window.
    """
    guider = Guider(model, {"positive": positive, "negative": negative}, Cfg(cfg))
    full = return_with_leftover_noise == "disable"
    window = Steps(scheduler, steps, start=start_at_step, end=end_at_step, full_denoise=full)
    noise = Noise(noise_seed, added=add_noise == "enable")
    sampled = await run(runtime, latent_image, guider, SamplerChoice(sampler_name), window, noise)
    return with_samples(latent_image, sampled.latents)
