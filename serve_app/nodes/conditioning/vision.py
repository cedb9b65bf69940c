"""The nodes of image encoders, and of what reads what they see: style models and unCLIP."""

from __future__ import annotations

from collections.abc import Mapping
from math import log
from typing import Any

import torch
from torch import Tensor

from serve_app.errors import NodeError
from serve_app.execution.protocol import FolderChoice
from serve_app.execution.runtime import Runtime
from serve_app.execution.size import allow
from serve_app.nodes.loaders.models import CheckpointLoaderSimple
from serve_app.recipe import Recipe
from serve_app.sampling.guidance.conditioning import with_more
from serve_app.values import ClipVisionOutput, Conditioning

NEVER = torch.finfo(torch.float16).min
"""The bias of what is not attended to at all."""


class CLIPVisionLoader:
    """An image encoder in a file of its own."""

    RETURN_TYPES = ("CLIP_VISION",)
    FUNCTION = "load_clip"
    CATEGORY = "model/loaders"

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        return {"required": {"clip_name": (FolderChoice("clip_vision"),)}}

    def load_clip(self, clip_name: str) -> tuple[Recipe]:
        """Return the image encoder's recipe."""
        return (Recipe("clip_vision", "clip_vision", clip_name),)


class CLIPVisionEncode:
    """What an image encoder sees in images."""

    RETURN_TYPES = ("CLIP_VISION_OUTPUT",)
    FUNCTION = "encode"
    CATEGORY = "model/conditioning"

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        return {
            "required": {
                "clip_vision": ("CLIP_VISION",),
                "image": ("IMAGE",),
                "crop": (["center", "none"],),
            },
            "hidden": {"runtime": "RUNTIME"},
        }

    async def encode(self, clip_vision: Recipe, image: Tensor, crop: str, runtime: Runtime) -> tuple[ClipVisionOutput]:
        """Return what is seen. crop: "center" looks at the middle of each image, "none" at all of it, squeezed."""
        return (await runtime.see(clip_vision, image, crop=crop == "center"),)


class StyleModelLoader:
    """A style model in a file of its own."""

    RETURN_TYPES = ("STYLE_MODEL",)
    FUNCTION = "load_style_model"
    CATEGORY = "model/loaders"

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        return {"required": {"style_model_name": (FolderChoice("style_models"),)}}

    def load_style_model(self, style_model_name: str) -> tuple[Recipe]:
        """Return the style model's recipe."""
        return (Recipe("style_model", "style_models", style_model_name),)


class StyleModelApply:
    """What is seen in images as tokens after a text's."""

    RETURN_TYPES = ("CONDITIONING",)
    FUNCTION = "apply_stylemodel"
    CATEGORY = "model/conditioning"
    SEARCH_ALIASES = ("style transfer",)

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        return {
            "required": {
                "conditioning": ("CONDITIONING",),
                "style_model": ("STYLE_MODEL",),
                "clip_vision_output": ("CLIP_VISION_OUTPUT",),
                "strength": ("FLOAT", {"default": 1.0, "min": 0.0, "max": 10.0, "step": 0.001}),
                "strength_type": (["multiply", "attn_bias"],),
            },
            "hidden": {"runtime": "RUNTIME"},
        }

    async def apply_stylemodel(
        self,
        conditioning: Conditioning,
        style_model: Recipe,
        clip_vision_output: ClipVisionOutput,
        strength: float,
        strength_type: str,
        runtime: Runtime,
    ) -> tuple[Conditioning]:
        """Return the conditioning with the tokens after its text.

        strength_type: "multiply" scales the tokens; "attn_bias" has text and image attend to them the more or less.
        Errors: NodeError for tokens of another width than the text's.
        """
        tokens = await runtime.style(style_model, clip_vision_output)
        biased = strength_type == "attn_bias"
        bias = (max(log(strength), NEVER) if strength > 0 else NEVER) if biased else 0.0
        tokens = tokens if biased else tokens * strength
        styled: Conditioning = []
        for text, options in conditioning:
            if text.shape[-1] != tokens.shape[-1]:
                raise NodeError(
                    f"the style model makes tokens {tokens.shape[-1]} wide, and the conditioning is "
                    f"{text.shape[-1]} wide: they are of different families"
                )
            if bias or "attention_mask" in options:
                options = {**options, **_with_bias(options, text.shape[1], tokens.shape[1], bias)}
            styled.append((torch.cat([text, tokens.expand(len(text), -1, -1)], dim=1), options))
        return (styled,)


def _with_bias(options: Mapping[str, Any], text: int, tokens: int, bias: float) -> dict[str, Any]:
    """Return a conditioning's options of attention with so many tokens after its text, attended to with a bias.

    The tokens themselves attend to all alike. "attention_mask" is (1,L,L), L being text and image, which is here of the
    size "attention_mask_img_shape" and is stretched to its own by the network. Errors: NodeError for another mask.
    """
    size = options.get("attention_mask_img_shape", (1, 1))
    image = size[0] * size[1]
    before = options.get("attention_mask")
    if before is None:
        before = torch.zeros(1, text + image, text + image, dtype=torch.float16)
    if before.shape[1:] != (text + image, text + image):
        raise NodeError(
            f"the conditioning's attention mask is of shape {'×'.join(map(str, before.shape))}; with {text} tokens of "
            f"text a style model can change one of 1×{text + image}×{text + image}"
        )
    if before.dtype == torch.bool:
        before = torch.zeros(before.shape, dtype=torch.float16).masked_fill(~before, NEVER)
    length = text + tokens + image
    allow(len(before), length, length)
    mask = torch.zeros(len(before), length, length, dtype=torch.float16)
    others = torch.cat([torch.arange(text), torch.arange(text + tokens, length)])
    mask[:, others[:, None], others] = before.half()
    mask[:, others, text : text + tokens] = bias
    return {"attention_mask": mask, "attention_mask_img_shape": size}


class unCLIPCheckpointLoader:
    """One file with a backbone, a text encoder, a VAE and an image encoder."""

    RETURN_TYPES = ("MODEL", "CLIP", "VAE", "CLIP_VISION")
    FUNCTION = "load_checkpoint"
    CATEGORY = "model/loaders"

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        return {"required": {"ckpt_name": (FolderChoice("checkpoints"),)}}

    def load_checkpoint(self, ckpt_name: str) -> tuple[Recipe, Recipe, Recipe, Recipe]:
        """Return the recipes of the checkpoint's four parts."""
        return (
            *CheckpointLoaderSimple().load_checkpoint(ckpt_name),
            Recipe("clip_vision", "checkpoints", ckpt_name),
        )


class unCLIPConditioning:
    """What is seen in images, told to a network beside its text."""

    RETURN_TYPES = ("CONDITIONING",)
    FUNCTION = "apply_adm"
    CATEGORY = "model/conditioning"

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        return {
            "required": {
                "conditioning": ("CONDITIONING",),
                "clip_vision_output": ("CLIP_VISION_OUTPUT",),
                "strength": ("FLOAT", {"default": 1.0, "min": -10.0, "max": 10.0, "step": 0.01}),
                "noise_augmentation": ("FLOAT", {"default": 0.0, "min": 0.0, "max": 1.0, "step": 0.01}),
            }
        }

    def apply_adm(
        self,
        conditioning: Conditioning,
        clip_vision_output: ClipVisionOutput,
        strength: float,
        noise_augmentation: float,
    ) -> tuple[Conditioning]:
        """Return the conditioning with this after what it tells already; at strength 0 as it is."""
        if strength == 0:
            return (conditioning,)
        told = {
            "clip_vision_output": clip_vision_output,
            "strength": strength,
            "noise_augmentation": noise_augmentation,
        }
        return (with_more(conditioning, unclip_conditioning=told),)


_NODES = (
    *(CLIPVisionLoader, CLIPVisionEncode, StyleModelLoader, StyleModelApply),
    *(unCLIPCheckpointLoader, unCLIPConditioning),
)

NODE_CLASS_MAPPINGS: Mapping[str, type] = {node.__name__: node for node in _NODES}

NODE_DISPLAY_NAME_MAPPINGS: Mapping[str, str] = {
    "CLIPVisionLoader": "Load CLIP Vision",
    "CLIPVisionEncode": "CLIP Vision Encode",
    "StyleModelLoader": "Load Style Model",
    "StyleModelApply": "Apply Style Model",
    "unCLIPCheckpointLoader": "Load unCLIP Checkpoint",
}
