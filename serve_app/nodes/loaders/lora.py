"""The nodes that put a LoRA on a model. They extend recipes, not weights, so they run anywhere and cost nothing."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from serve_app.execution.protocol import FolderChoice
from serve_app.recipe import Recipe

STRENGTH = ("FLOAT", {"default": 1.0, "min": -100.0, "max": 100.0, "step": 0.01})


class LoraLoader:
    """A LoRA on a diffusion model and on a text encoder, each at a strength of its own."""

    RETURN_TYPES = ("MODEL", "CLIP")
    FUNCTION = "load_lora"
    CATEGORY = "model/loaders"
    DESCRIPTION = "Changes a diffusion model and its text encoder by a LoRA, such as a style. Several can be chained."

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        return {
            "required": {
                "model": ("MODEL",),
                "clip": ("CLIP",),
                "lora_name": (FolderChoice("loras"),),
                "strength_model": STRENGTH,
                "strength_clip": STRENGTH,
            }
        }

    def load_lora(
        self, model: Recipe, clip: Recipe, lora_name: str, strength_model: float, strength_clip: float
    ) -> tuple[Recipe, Recipe]:
        """Return both recipes with the LoRA."""
        return model.with_lora(lora_name, strength_model), clip.with_lora(lora_name, strength_clip)


class LoraLoaderModelOnly:
    """A LoRA on a diffusion model alone."""

    RETURN_TYPES = ("MODEL",)
    FUNCTION = "load_lora_model_only"
    CATEGORY = "model/loaders"
    DESCRIPTION = "Changes a diffusion model alone by a LoRA; the text encoder stays as it is."

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        return {
            "required": {
                "model": ("MODEL",),
                "lora_name": (FolderChoice("loras"),),
                "strength_model": STRENGTH,
            }
        }

    def load_lora_model_only(self, model: Recipe, lora_name: str, strength_model: float) -> tuple[Recipe]:
        """Return the recipe with the LoRA."""
        return (model.with_lora(lora_name, strength_model),)


class LoraLoaderBypass(LoraLoader):
    """A LoRA beside the weights of a diffusion model and a text encoder, of which each has one: the last."""

    EXPERIMENTAL = True

    def load_lora(
        self, model: Recipe, clip: Recipe, lora_name: str, strength_model: float, strength_clip: float
    ) -> tuple[Recipe, Recipe]:
        """Return both recipes with the LoRA; as they are if it has no strength on either."""
        if not strength_model and not strength_clip:
            return model, clip
        return model.with_bypass_lora(lora_name, strength_model), clip.with_bypass_lora(lora_name, strength_clip)


class LoraLoaderBypassModelOnly(LoraLoaderModelOnly):
    """A LoRA beside the weights of a diffusion model alone."""

    EXPERIMENTAL = True

    def load_lora_model_only(self, model: Recipe, lora_name: str, strength_model: float) -> tuple[Recipe]:
        """Return the recipe with the LoRA."""
        return (model.with_bypass_lora(lora_name, strength_model) if strength_model else model,)


NODE_CLASS_MAPPINGS: Mapping[str, type] = {
    "LoraLoader": LoraLoader,
    "LoraLoaderModelOnly": LoraLoaderModelOnly,
    "LoraLoaderBypass": LoraLoaderBypass,
    "LoraLoaderBypassModelOnly": LoraLoaderBypassModelOnly,
}

NODE_DISPLAY_NAME_MAPPINGS: Mapping[str, str] = {
    "LoraLoader": "Load LoRA (Model and CLIP)",
    "LoraLoaderModelOnly": "Load LoRA",
    "LoraLoaderBypass": "Load LoRA (Bypass) (For debugging)",
    "LoraLoaderBypassModelOnly": "Load LoRA (Bypass, Model Only) (for debugging)",
}
