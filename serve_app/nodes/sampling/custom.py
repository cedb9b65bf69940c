"""The nodes that sample with SAMPLER, SIGMAS, NOISE and GUIDER, and those that make NOISE."""

from __future__ import annotations

from typing import Annotated

import torch
from torch import Tensor

from serve_app.execution.runtime import Runtime
from serve_app.nested_tensor import parts_of
from serve_app.nodes.declare import node
from serve_app.nodes.inputs import Bool
from serve_app.nodes.sampling.ksampler import CfgScale, Seed, run, with_samples
from serve_app.nodes.sockets import CONDITIONING, GUIDER, JOINT_LATENT, LATENT, MODEL, NOISE, RUNTIME, SAMPLER, SIGMAS
from serve_app.sampling.lazy_sum import value
from serve_app.sampling.noise import drawn
from serve_app.values import Cfg, Guider, Latent, Noise, SamplerChoice


@node("SamplerCustom", category="model/sampling/custom", function="sample", return_names=("output", "denoised_output"))
async def sampler_custom(
    model: MODEL,
    add_noise: Annotated[bool, Bool(True)],
    noise_seed: Seed,
    cfg: CfgScale,
    positive: CONDITIONING,
    negative: CONDITIONING,
    sampler: SAMPLER,
    sigmas: SIGMAS,
    latent_image: JOINT_LATENT,
    runtime: RUNTIME,
) -> tuple[LATENT, LATENT]:
    """Sample latents over any sigmas with any sampler.

    Return the latent as sampled, and as the last step took it for the image.
    """
    guider = Guider(model, {"positive": positive, "negative": negative}, Cfg(cfg))
    return await _both(runtime, latent_image, guider, sampler, sigmas, Noise(noise_seed, add_noise))


@node(
    "SamplerCustomAdvanced",
    category="model/sampling/custom",
    function="sample",
    return_names=("output", "denoised_output"),
)
async def sampler_custom_advanced(
    noise: NOISE, guider: GUIDER, sampler: SAMPLER, sigmas: SIGMAS, latent_image: JOINT_LATENT, runtime: RUNTIME
) -> tuple[LATENT, LATENT]:
    """Sample latents over any sigmas with any sampler, noise and guidance.

    Return the latent as sampled, and as the last step took it for the image.
    """
    return await _both(runtime, latent_image, guider, sampler, sigmas, noise)


async def _both(
    runtime: Runtime, latent: Latent, guider: Guider, sampler: SamplerChoice, sigmas: Tensor, noise: Noise
) -> tuple[Latent, Latent]:
    sampled = await run(runtime, latent, guider, sampler, sigmas, noise)
    return with_samples(latent, sampled.latents), with_samples(latent, sampled.denoised)


@node("RandomNoise", category="model/sampling/noise", function="get_noise")
def random_noise(noise_seed: Seed) -> NOISE:
    """The noise of a seed."""
    return Noise(noise_seed)


@node("DisableNoise", category="model/sampling/noise", function="get_noise")
def disable_noise() -> NOISE:
    """No noise at all. Return the noise; what a sampler draws by itself is then drawn from seed 0."""
    return Noise(0, added=False)


@node("AddNoise", category="model/sampling/noise", function="add_noise", experimental=True)
async def add_noise(model: MODEL, noise: NOISE, sigmas: SIGMAS, latent_image: LATENT, runtime: RUNTIME) -> LATENT:
    """Latents with as much noise as the way from the first to the last of the sigmas.

    Return the latent with the noise added; without sigmas, as it is.
    """
    if not len(sigmas):
        return latent_image
    way = sigmas[0] - sigmas[-1] if len(sigmas) > 1 else sigmas[0]
    levels, latent_format = await runtime.levels(model), await runtime.latent_format(model)
    samples: Tensor = latent_image["samples"].to("cpu", torch.float32)
    [added] = parts_of(drawn(noise, samples, latent_image.get("batch_index")))
    latents = latent_format.to_model(samples) if samples.any() else samples
    noisy = latent_format.from_model(value(levels.noised(latents, added, float(way.abs()))))
    return {**latent_image, "samples": noisy.nan_to_num(nan=0.0, posinf=0.0, neginf=0.0)}
