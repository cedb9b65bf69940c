"""The nodes of image encoders, and of what reads what they see: style models and unCLIP."""

from __future__ import annotations

from collections.abc import Mapping
from math import log
from typing import Annotated, Any

import torch

from serve_app.errors import NodeError
from serve_app.execution.size import allow
from serve_app.nodes.declare import node
from serve_app.nodes.inputs import Choice, File, Float
from serve_app.nodes.loaders.models import checkpoint_loader_simple
from serve_app.nodes.sockets import (
    CLIP,
    CLIP_VISION,
    CLIP_VISION_OUTPUT,
    CONDITIONING,
    IMAGE,
    MODEL,
    RUNTIME,
    STYLE_MODEL,
    VAE,
)
from serve_app.recipe.recipe import Recipe
from serve_app.sampling.guidance.conditioning import with_more
from serve_app.values import Conditioning

NEVER = torch.finfo(torch.float16).min
"""The bias of what is not attended to at all."""


@node("CLIPVisionLoader", "Load CLIP Vision", category="model/loaders", function="load_clip")
def clip_vision_loader(clip_name: Annotated[str, File("clip_vision")]) -> CLIP_VISION:
    """An image encoder in a file of its own."""
    return Recipe("clip_vision", "clip_vision", clip_name)


@node("CLIPVisionEncode", "CLIP Vision Encode", category="model/conditioning", function="encode")
async def clip_vision_encode(
    clip_vision: CLIP_VISION, image: IMAGE, crop: Annotated[str, Choice(["center", "none"])], runtime: RUNTIME
) -> CLIP_VISION_OUTPUT:
    """What an image encoder sees in images.

    Return what is seen. crop: "center" looks at the middle of each image, "none" at all of it, squeezed.
    """
    return await runtime.see(clip_vision, image, crop=crop == "center")


@node("StyleModelLoader", "Load Style Model", category="model/loaders", function="load_style_model")
def style_model_loader(style_model_name: Annotated[str, File("style_models")]) -> STYLE_MODEL:
    """A style model in a file of its own."""
    return Recipe("style_model", "style_models", style_model_name)


@node(
    "StyleModelApply",
    "Apply Style Model",
    category="model/conditioning",
    function="apply_stylemodel",
    search_aliases=("style transfer",),
)
async def style_model_apply(
    conditioning: CONDITIONING,
    style_model: STYLE_MODEL,
    clip_vision_output: CLIP_VISION_OUTPUT,
    strength: Annotated[float, Float(1.0, min=0.0, max=10.0, step=0.001)],
    strength_type: Annotated[str, Choice(["multiply", "attn_bias"])],
    runtime: RUNTIME,
) -> CONDITIONING:
    """What is seen in images as tokens after a text's.

    Return the conditioning with the tokens after its text.

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
    return styled


def _with_bias(options: Mapping[str, Any], text: int, tokens: int, bias: float) -> dict[str, Any]:
    """Return a conditioning's attention options with more tokens after its text, attended to with a bias.

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


@node("unCLIPCheckpointLoader", "Load unCLIP Checkpoint", category="model/loaders", function="load_checkpoint")
def unclip_checkpoint_loader(ckpt_name: Annotated[str, File("checkpoints")]) -> tuple[MODEL, CLIP, VAE, CLIP_VISION]:
    """One file with a backbone, a text encoder, a VAE and an image encoder."""
    return (
        *checkpoint_loader_simple(ckpt_name),
        Recipe("clip_vision", "checkpoints", ckpt_name),
    )


@node("unCLIPConditioning", category="model/conditioning", function="apply_adm")
def unclip_conditioning(
    conditioning: CONDITIONING,
    clip_vision_output: CLIP_VISION_OUTPUT,
    strength: Annotated[float, Float(1.0, min=-10.0, max=10.0, step=0.01)],
    noise_augmentation: Annotated[float, Float(0.0, min=0.0, max=1.0, step=0.01)],
) -> CONDITIONING:
    """Add an image's features to a conditioning, for unCLIP models; at strength 0 return it as it is."""
    if strength == 0:
        return conditioning
    image = {
        "clip_vision_output": clip_vision_output,
        "strength": strength,
        "noise_augmentation": noise_augmentation,
    }
    return with_more(conditioning, unclip_conditioning=image)
