"""The nodes that resize, decode, save and load LATENT. A latent's other members travel on beside its samples."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Mapping
from typing import Any

import safetensors.torch
import torch
from safetensors import SafetensorError

from serve_app.errors import NodeError
from serve_app.execution.protocol import FolderChoice
from serve_app.execution.runtime import Files, Runtime
from serve_app.images import Crop
from serve_app.nodes.image.match_size import allow_decoded, fit_latents
from serve_app.recipe import Recipe
from serve_app.values import Latent

MAX_RESOLUTION = 16384
"""ComfyUI's limit of a side, in pixels."""

LATENT_METHODS = ["nearest-exact", "bilinear", "area", "bicubic", "bislerp"]
CROPS = ["disabled", "center"]


class LatentUpscale:
    """Latents at another size, given in pixels."""

    RETURN_TYPES = ("LATENT",)
    FUNCTION = "upscale"
    CATEGORY = "model/latent"

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        side = {"default": 512, "min": 0, "max": MAX_RESOLUTION, "step": 8}
        return {
            "required": {
                "samples": ("LATENT",),
                "upscale_method": (LATENT_METHODS,),
                "width": ("INT", side),
                "height": ("INT", side),
                "crop": (CROPS,),
            }
        }

    def upscale(self, samples: Latent, upscale_method: str, width: int, height: int, crop: Crop) -> tuple[Latent]:
        """Resize; a side of 0 follows the other, both 0 change nothing, and no side is under 64 pixels."""
        if width == 0 and height == 0:
            return (samples,)
        latents: torch.Tensor = samples["samples"]
        old_height, old_width = latents.shape[-2:]
        if width == 0:
            height = max(64, height)
            width = round(old_width * height / old_height)
        elif height == 0:
            width = max(64, width)
            height = round(old_height * width / old_width)
        resized = fit_latents(latents, max(64, width) // 8, max(64, height) // 8, upscale_method, crop)
        return ({**samples, "samples": resized},)


class LatentUpscaleBy:
    """Latents larger or smaller by a factor."""

    RETURN_TYPES = ("LATENT",)
    FUNCTION = "upscale"
    CATEGORY = "model/latent"

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        return {
            "required": {
                "samples": ("LATENT",),
                "upscale_method": (LATENT_METHODS,),
                "scale_by": ("FLOAT", {"default": 1.5, "min": 0.01, "max": 8.0, "step": 0.01}),
            }
        }

    def upscale(self, samples: Latent, upscale_method: str, scale_by: float) -> tuple[Latent]:
        """Return the latents with sides of round(side × scale_by), at least 1."""
        height, width = (max(1, round(side * scale_by)) for side in samples["samples"].shape[-2:])
        return ({**samples, "samples": fit_latents(samples["samples"], width, height, upscale_method)},)


class VAEDecode:
    """Latents to images."""

    RETURN_TYPES = ("IMAGE",)
    FUNCTION = "decode"
    CATEGORY = "model/latent"
    DESCRIPTION = "Decodes latent images into pixels."

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        return {"required": {"samples": ("LATENT",), "vae": ("VAE",)}, "hidden": {"runtime": "RUNTIME"}}

    async def decode(self, vae: Recipe, samples: Latent, runtime: Runtime) -> tuple[torch.Tensor]:
        """Return images (B,H,W,3); those of a video one after the other."""
        await allow_decoded(samples["samples"], vae, runtime)
        images = await runtime.decode(vae, samples["samples"])
        return (images.reshape(-1, *images.shape[-3:]),)


class VAEEncode:
    """Images to latents."""

    RETURN_TYPES = ("LATENT",)
    FUNCTION = "encode"
    CATEGORY = "model/latent"

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        return {"required": {"pixels": ("IMAGE",), "vae": ("VAE",)}, "hidden": {"runtime": "RUNTIME"}}

    async def encode(self, vae: Recipe, pixels: torch.Tensor, runtime: Runtime) -> tuple[Latent]:
        """Return latents of the images, of as many of their channels as the VAE reads."""
        return ({"samples": await runtime.encode(vae, pixels)},)


class SaveLatent:
    """Latents to a .latent file: safetensors with ComfyUI's two keys."""

    RETURN_TYPES = ("LATENT",)
    RETURN_NAMES = ("samples",)
    FUNCTION = "save"
    OUTPUT_NODE = True
    CATEGORY = "model/latent"

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        return {
            "required": {
                "samples": ("LATENT",),
                "filename_prefix": ("STRING", {"default": "latents/ComfyUI"}),
            },
            "hidden": {"prompt": "PROMPT", "extra_pnginfo": "EXTRA_PNGINFO", "store": "STORE"},
        }

    async def save(
        self, samples: Latent, filename_prefix: str, prompt: Any, extra_pnginfo: Any, store: Files
    ) -> dict[str, Any]:
        """Store the samples with the workflow in the metadata."""
        tensors = {"latent_tensor": samples["samples"].contiguous(), "latent_format_version_0": torch.tensor([])}
        extra = extra_pnginfo if isinstance(extra_pnginfo, dict) else {}
        metadata = {key: json.dumps(value) for key, value in {"prompt": prompt, **extra}.items()}
        data = await asyncio.to_thread(safetensors.torch.save, tensors, metadata)
        saved = await store.save("output", filename_prefix, ".latent", [data])
        return {"ui": {"latents": saved}, "result": (samples,)}


class LoadLatent:
    """A .latent file to latents."""

    RETURN_TYPES = ("LATENT",)
    FUNCTION = "load"
    CATEGORY = "model/latent"

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        return {"required": {"latent": (FolderChoice("input"),)}, "hidden": {"store": "STORE"}}

    async def load(self, latent: str, store: Files) -> tuple[Latent]:
        """Return the file's latents in float32. Errors: NodeError for a file of another kind."""
        data = await store.read(latent)
        try:
            tensors = await asyncio.to_thread(safetensors.torch.load, data)
            samples = tensors["latent_tensor"].float()
        except (SafetensorError, KeyError) as error:
            raise NodeError(f"{latent!r} is no .latent file: {error}") from error
        # Files from before the format had a version hold latents scaled for SD 1.5's backbone.
        return ({"samples": samples if "latent_format_version_0" in tensors else samples / 0.18215},)


NODE_CLASS_MAPPINGS: Mapping[str, type] = {
    "LatentUpscale": LatentUpscale,
    "LatentUpscaleBy": LatentUpscaleBy,
    "VAEDecode": VAEDecode,
    "VAEEncode": VAEEncode,
    "LoadLatent": LoadLatent,
    "SaveLatent": SaveLatent,
}

NODE_DISPLAY_NAME_MAPPINGS: Mapping[str, str] = {
    "LatentUpscale": "Upscale Latent",
    "LatentUpscaleBy": "Upscale Latent By",
    "VAEDecode": "VAE Decode",
    "VAEEncode": "VAE Encode",
    "LoadLatent": "Load Latent",
    "SaveLatent": "Save Latent",
}
