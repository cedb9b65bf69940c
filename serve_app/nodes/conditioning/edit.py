"""The node that makes CONDITIONING for models that edit an image (instruct-pix2pix)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from serve_app.execution.runtime import Runtime
from serve_app.recipe import Recipe
from serve_app.values import Conditioning, Latent


class InstructPixToPixConditioning:
    """Put an image beside a text: the model then follows the text in changing the image."""

    RETURN_TYPES = ("CONDITIONING", "CONDITIONING", "LATENT")
    RETURN_NAMES = ("positive", "negative", "latent")
    FUNCTION = "encode"
    CATEGORY = "model/conditioning/instructpix2pix"

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        return {
            "required": {
                "positive": ("CONDITIONING",),
                "negative": ("CONDITIONING",),
                "vae": ("VAE",),
                "pixels": ("IMAGE",),
            },
            "hidden": {"runtime": "RUNTIME"},
        }

    async def encode(
        self, positive: Conditioning, negative: Conditioning, pixels: Tensor, vae: Recipe, runtime: Runtime
    ) -> tuple[Conditioning, Conditioning, Latent]:
        """Return both conditionings with the image's latents, and empty latents of its size."""
        latents = await runtime.encode(vae, pixels[..., :3])

        def beside(conditioning: Conditioning) -> Conditioning:
            return [(cond, {**options, "concat_latent_image": latents}) for cond, options in conditioning]

        return beside(positive), beside(negative), {"samples": torch.zeros_like(latents)}


NODE_CLASS_MAPPINGS: Mapping[str, type] = {"InstructPixToPixConditioning": InstructPixToPixConditioning}

NODE_DISPLAY_NAME_MAPPINGS: Mapping[str, str] = {}
