"""KSampler and KSamplerAdvanced: what ComfyUI's two sets of widgets mean as one SamplingRequest."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from serve_app.execution.runtime import Runtime
from serve_app.recipe import Recipe
from serve_app.sampling.request import Sampled, SamplingRequest, Steps
from serve_app.sampling.samplers.samplers import SAMPLERS
from serve_app.sampling.schedules.sigmas import SCHEDULES
from serve_app.values import Cfg, Conditioning, Guider, Latent, Noise, SamplerChoice

SEED = {"default": 0, "min": 0, "max": 0xFFFFFFFFFFFFFFFF, "control_after_generate": True}
STEPS = {"default": 20, "min": 1, "max": 10000}
FACTOR = "downscale_ratio_spacial"
"""A member of empty LATENTs: pixels that a cell covers along one side."""
CFG = {"default": 8.0, "min": 0.0, "max": 100.0, "step": 0.1, "round": 0.01}


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
        latent.get(FACTOR),
    )
    return await runtime.sample(request)


def with_samples(latent: Latent, samples: Tensor) -> Latent:
    """Return a LATENT with sampled samples in place of its own; of empty ones' factor nothing is left to say."""
    return {name: value for name, value in latent.items() if name != FACTOR} | {"samples": samples}


class KSampler:
    """Sample latents from their first step to the last."""

    RETURN_TYPES = ("LATENT",)
    FUNCTION = "sample"
    CATEGORY = "model/sampling"
    DESCRIPTION = "Denoises the latent image with the model, guided by the positive and negative conditioning."

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        return {
            "required": {
                "model": ("MODEL",),
                "seed": ("INT", SEED),
                "steps": ("INT", STEPS),
                "cfg": ("FLOAT", CFG),
                "sampler_name": (list(SAMPLERS),),
                "scheduler": (list(SCHEDULES),),
                "positive": ("CONDITIONING",),
                "negative": ("CONDITIONING",),
                "latent_image": ("LATENT",),
                "denoise": ("FLOAT", {"default": 1.0, "min": 0.0, "max": 1.0, "step": 0.01}),
            },
            "hidden": {"runtime": "RUNTIME"},
        }

    async def sample(
        self,
        model: Recipe,
        seed: int,
        steps: int,
        cfg: float,
        sampler_name: str,
        scheduler: str,
        positive: Conditioning,
        negative: Conditioning,
        latent_image: Latent,
        runtime: Runtime,
        denoise: float = 1.0,
    ) -> tuple[Latent]:
        """Return the latent with its samples denoised."""
        guider = Guider(model, {"positive": positive, "negative": negative}, Cfg(cfg))
        window = Steps(scheduler, steps, denoise)
        sampled = await run(runtime, latent_image, guider, SamplerChoice(sampler_name), window, Noise(seed))
        return (with_samples(latent_image, sampled.latents),)


class KSamplerAdvanced:
    """Sample a window of the steps, with or without adding noise first and with or without its end left noisy."""

    RETURN_TYPES = ("LATENT",)
    FUNCTION = "sample"
    CATEGORY = "model/sampling"

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        return {
            "required": {
                "model": ("MODEL",),
                "add_noise": (["enable", "disable"],),
                "noise_seed": ("INT", SEED),
                "steps": ("INT", STEPS),
                "cfg": ("FLOAT", CFG),
                "sampler_name": (list(SAMPLERS),),
                "scheduler": (list(SCHEDULES),),
                "positive": ("CONDITIONING",),
                "negative": ("CONDITIONING",),
                "latent_image": ("LATENT",),
                "start_at_step": ("INT", {"default": 0, "min": 0, "max": 10000}),
                "end_at_step": ("INT", {"default": 10000, "min": 0, "max": 10000}),
                "return_with_leftover_noise": (["disable", "enable"],),
            },
            "hidden": {"runtime": "RUNTIME"},
        }

    async def sample(
        self,
        model: Recipe,
        add_noise: str,
        noise_seed: int,
        steps: int,
        cfg: float,
        sampler_name: str,
        scheduler: str,
        positive: Conditioning,
        negative: Conditioning,
        latent_image: Latent,
        start_at_step: int,
        end_at_step: int,
        return_with_leftover_noise: str,
        runtime: Runtime,
    ) -> tuple[Latent]:
        """Return the latent with its samples denoised over the window."""
        guider = Guider(model, {"positive": positive, "negative": negative}, Cfg(cfg))
        full = return_with_leftover_noise == "disable"
        window = Steps(scheduler, steps, start=start_at_step, end=end_at_step, full_denoise=full)
        noise = Noise(noise_seed, added=add_noise == "enable")
        sampled = await run(runtime, latent_image, guider, SamplerChoice(sampler_name), window, noise)
        return (with_samples(latent_image, sampled.latents),)


NODE_CLASS_MAPPINGS: Mapping[str, type] = {
    "KSampler": KSampler,
    "KSamplerAdvanced": KSamplerAdvanced,
}

NODE_DISPLAY_NAME_MAPPINGS: Mapping[str, str] = {
    "KSamplerAdvanced": "KSampler (Advanced)",
}
