"""The nodes that sample with SAMPLER, SIGMAS, NOISE and GUIDER, and those that make NOISE."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from serve_app.execution.runtime import Runtime
from serve_app.nodes.sampling.ksampler import CFG, SEED, run, with_samples
from serve_app.recipe import Recipe
from serve_app.sampling.lazy_sum import value
from serve_app.sampling.noise import drawn
from serve_app.values import Cfg, Conditioning, Guider, Latent, Noise, SamplerChoice


class SamplerCustom:
    """Sample latents over any sigmas with any sampler."""

    RETURN_TYPES = ("LATENT", "LATENT")
    RETURN_NAMES = ("output", "denoised_output")
    FUNCTION = "sample"
    CATEGORY = "model/sampling/custom"

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        return {
            "required": {
                "model": ("MODEL",),
                "add_noise": ("BOOLEAN", {"default": True}),
                "noise_seed": ("INT", SEED),
                "cfg": ("FLOAT", CFG),
                "positive": ("CONDITIONING",),
                "negative": ("CONDITIONING",),
                "sampler": ("SAMPLER",),
                "sigmas": ("SIGMAS",),
                "latent_image": ("LATENT",),
            },
            "hidden": {"runtime": "RUNTIME"},
        }

    async def sample(
        self,
        model: Recipe,
        add_noise: bool,
        noise_seed: int,
        cfg: float,
        positive: Conditioning,
        negative: Conditioning,
        sampler: SamplerChoice,
        sigmas: Tensor,
        latent_image: Latent,
        runtime: Runtime,
    ) -> tuple[Latent, Latent]:
        """Return the latent as sampled, and as the last step took it for the image."""
        guider = Guider(model, {"positive": positive, "negative": negative}, Cfg(cfg))
        return await _both(runtime, latent_image, guider, sampler, sigmas, Noise(noise_seed, add_noise))


class SamplerCustomAdvanced:
    """Sample latents over any sigmas with any sampler, noise and guidance."""

    RETURN_TYPES = ("LATENT", "LATENT")
    RETURN_NAMES = ("output", "denoised_output")
    FUNCTION = "sample"
    CATEGORY = "model/sampling/custom"

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        return {
            "required": {
                "noise": ("NOISE",),
                "guider": ("GUIDER",),
                "sampler": ("SAMPLER",),
                "sigmas": ("SIGMAS",),
                "latent_image": ("LATENT",),
            },
            "hidden": {"runtime": "RUNTIME"},
        }

    async def sample(
        self,
        noise: Noise,
        guider: Guider,
        sampler: SamplerChoice,
        sigmas: Tensor,
        latent_image: Latent,
        runtime: Runtime,
    ) -> tuple[Latent, Latent]:
        """Return the latent as sampled, and as the last step took it for the image."""
        return await _both(runtime, latent_image, guider, sampler, sigmas, noise)


async def _both(
    runtime: Runtime, latent: Latent, guider: Guider, sampler: SamplerChoice, sigmas: Tensor, noise: Noise
) -> tuple[Latent, Latent]:
    sampled = await run(runtime, latent, guider, sampler, sigmas, noise)
    return with_samples(latent, sampled.latents), with_samples(latent, sampled.denoised)


class RandomNoise:
    """The noise of a seed."""

    RETURN_TYPES = ("NOISE",)
    FUNCTION = "get_noise"
    CATEGORY = "model/sampling/noise"

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        return {"required": {"noise_seed": ("INT", SEED)}}

    def get_noise(self, noise_seed: int) -> tuple[Noise]:
        return (Noise(noise_seed),)


class DisableNoise:
    """No noise at all."""

    RETURN_TYPES = ("NOISE",)
    FUNCTION = "get_noise"
    CATEGORY = "model/sampling/noise"

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        return {"required": {}}

    def get_noise(self) -> tuple[Noise]:
        """Return the noise; what a sampler draws by itself is then drawn from seed 0."""
        return (Noise(0, added=False),)


class AddNoise:
    """Latents with as much noise as the way from the first to the last of the sigmas."""

    RETURN_TYPES = ("LATENT",)
    FUNCTION = "add_noise"
    CATEGORY = "model/sampling/noise"
    EXPERIMENTAL = True

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        return {
            "required": {
                "model": ("MODEL",),
                "noise": ("NOISE",),
                "sigmas": ("SIGMAS",),
                "latent_image": ("LATENT",),
            },
            "hidden": {"runtime": "RUNTIME"},
        }

    async def add_noise(
        self, model: Recipe, noise: Noise, sigmas: Tensor, latent_image: Latent, runtime: Runtime
    ) -> tuple[Latent]:
        """Return the latent with the noise added; without sigmas, as it is."""
        if not len(sigmas):
            return (latent_image,)
        way = sigmas[0] - sigmas[-1] if len(sigmas) > 1 else sigmas[0]
        levels, latent_format = await runtime.levels(model), await runtime.latent_format(model)
        samples: Tensor = latent_image["samples"].to("cpu", torch.float32)
        added = drawn(noise, samples, latent_image.get("batch_index"))
        latents = latent_format.to_model(samples) if samples.any() else samples
        noisy = latent_format.from_model(value(levels.noised(latents, added, float(way.abs()))))
        return ({**latent_image, "samples": noisy.nan_to_num(nan=0.0, posinf=0.0, neginf=0.0)},)


NODE_CLASS_MAPPINGS: Mapping[str, type] = {
    "SamplerCustom": SamplerCustom,
    "SamplerCustomAdvanced": SamplerCustomAdvanced,
    "RandomNoise": RandomNoise,
    "DisableNoise": DisableNoise,
    "AddNoise": AddNoise,
}

NODE_DISPLAY_NAME_MAPPINGS: Mapping[str, str] = {}
