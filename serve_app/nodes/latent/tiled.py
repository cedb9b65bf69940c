"""The nodes whose model works tile by tile: upscale models, and the VAE on large images."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from serve_app.execution.protocol import FolderChoice
from serve_app.execution.runtime import Runtime
from serve_app.nodes.image.match_size import allow_decoded
from serve_app.recipe import Recipe
from serve_app.values import Latent, Tiling

# Declared as in ComfyUI, for workflows hold them; only video VAEs read them.
FRAMES = {
    "temporal_size": ("INT", {"default": 64, "min": 8, "max": 4096, "step": 4}),
    "temporal_overlap": ("INT", {"default": 8, "min": 4, "max": 4096, "step": 4}),
}


class UpscaleModelLoader:
    """An upscale model's file."""

    RETURN_TYPES = ("UPSCALE_MODEL",)
    FUNCTION = "load_model"
    CATEGORY = "model/loaders"

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        return {"required": {"model_name": (FolderChoice("upscale_models"),)}}

    def load_model(self, model_name: str) -> tuple[Recipe]:
        """Return the model's recipe."""
        return (Recipe("upscaler", "upscale_models", model_name),)


class ImageUpscaleWithModel:
    """Images enlarged by an upscale model."""

    RETURN_TYPES = ("IMAGE",)
    FUNCTION = "upscale"
    CATEGORY = "image/upscaling"

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        return {
            "required": {"upscale_model": ("UPSCALE_MODEL",), "image": ("IMAGE",)},
            "hidden": {"runtime": "RUNTIME"},
        }

    async def upscale(self, upscale_model: Recipe, image: torch.Tensor, runtime: Runtime) -> tuple[torch.Tensor]:
        """Return images at the model's own scale."""
        return (await runtime.upscale(upscale_model, image),)


class VAEDecodeTiled:
    """Latents to images, in tiles."""

    RETURN_TYPES = ("IMAGE",)
    FUNCTION = "decode"
    CATEGORY = "model/latent"

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        return {
            "required": {
                "samples": ("LATENT",),
                "vae": ("VAE",),
                "tile_size": ("INT", {"default": 512, "min": 64, "max": 4096, "step": 32}),
                "overlap": ("INT", {"default": 64, "min": 0, "max": 4096, "step": 32}),
                **FRAMES,
            },
            "hidden": {"runtime": "RUNTIME"},
        }

    async def decode(
        self,
        vae: Recipe,
        samples: Latent,
        tile_size: int,
        overlap: int = 64,
        temporal_size: int = 64,
        temporal_overlap: int = 8,
        *,
        runtime: Runtime,
    ) -> tuple[torch.Tensor]:
        """Return images (B,H,W,3), those of a video one after the other; neighbours share at most a quarter of a tile.

        Of a video a tile that is less than twice as long as what neighbours share has half of that.
        """
        shared_frames = temporal_overlap // 2 if temporal_size < temporal_overlap * 2 else temporal_overlap
        shared = tile_size // 4 if tile_size < overlap * 4 else overlap
        tiling = Tiling(tile_size, shared, temporal_size, shared_frames)
        await allow_decoded(samples["samples"], vae, runtime)
        images = await runtime.decode(vae, samples["samples"], tiling)
        return (images.reshape(-1, *images.shape[-3:]),)


class VAEEncodeTiled:
    """Images to latents, in tiles."""

    RETURN_TYPES = ("LATENT",)
    FUNCTION = "encode"
    CATEGORY = "model/latent"

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        return {
            "required": {
                "pixels": ("IMAGE",),
                "vae": ("VAE",),
                "tile_size": ("INT", {"default": 512, "min": 64, "max": 4096, "step": 64}),
                "overlap": ("INT", {"default": 64, "min": 0, "max": 4096, "step": 32}),
                **FRAMES,
            },
            "hidden": {"runtime": "RUNTIME"},
        }

    async def encode(
        self,
        vae: Recipe,
        pixels: torch.Tensor,
        tile_size: int,
        overlap: int,
        temporal_size: int = 64,
        temporal_overlap: int = 8,
        *,
        runtime: Runtime,
    ) -> tuple[Latent]:
        """Return latents of the images, of as many of their channels as the VAE reads.

        Errors: NodeError for an overlap that is not smaller than half a tile, the narrowest that is used.
        """
        tiling = Tiling(tile_size, overlap, temporal_size, temporal_overlap)
        return ({"samples": await runtime.encode(vae, pixels, tiling)},)


NODE_CLASS_MAPPINGS: Mapping[str, type] = {
    "UpscaleModelLoader": UpscaleModelLoader,
    "ImageUpscaleWithModel": ImageUpscaleWithModel,
    "VAEDecodeTiled": VAEDecodeTiled,
    "VAEEncodeTiled": VAEEncodeTiled,
}

NODE_DISPLAY_NAME_MAPPINGS: Mapping[str, str] = {
    "UpscaleModelLoader": "Load Upscale Model",
    "ImageUpscaleWithModel": "Upscale Image (using Model)",
    "VAEDecodeTiled": "VAE Decode (Tiled)",
    "VAEEncodeTiled": "VAE Encode (Tiled)",
}
