"""The nodes that put a LoRA on a model. They extend recipes, not weights, so they run anywhere and cost nothing."""

from __future__ import annotations

from typing import Annotated, TypeAlias

from serve_app.nodes.declare import node
from serve_app.nodes.inputs import File, Float
from serve_app.nodes.sockets import CLIP, MODEL

LoraFile: TypeAlias = Annotated[str, File("loras")]
Strength: TypeAlias = Annotated[float, Float(1.0, min=-100.0, max=100.0, step=0.01)]


@node(
    "LoraLoader",
    "Load LoRA (Model and CLIP)",
    category="model/loaders",
    function="load_lora",
    description="Changes a diffusion model and its text encoder by a LoRA, such as a style. Several can be chained.",
)
def lora_loader(
    model: MODEL, clip: CLIP, lora_name: LoraFile, strength_model: Strength, strength_clip: Strength
) -> tuple[MODEL, CLIP]:
    """A LoRA on a diffusion model and on a text encoder, each at a strength of its own."""
    return model.with_lora(lora_name, strength_model), clip.with_lora(lora_name, strength_clip)


@node(
    "LoraLoaderModelOnly",
    "Load LoRA",
    category="model/loaders",
    function="load_lora_model_only",
    description="Changes a diffusion model alone by a LoRA; the text encoder stays as it is.",
)
def lora_loader_model_only(model: MODEL, lora_name: LoraFile, strength_model: Strength) -> MODEL:
    """A LoRA on a diffusion model alone."""
    return model.with_lora(lora_name, strength_model)


@node(
    "LoraLoaderBypass",
    "Load LoRA (Bypass) (For debugging)",
    category="model/loaders",
    function="load_lora",
    experimental=True,
    description="Changes a diffusion model and its text encoder by a LoRA, such as a style. Several can be chained.",
)
def lora_loader_bypass(
    model: MODEL, clip: CLIP, lora_name: LoraFile, strength_model: Strength, strength_clip: Strength
) -> tuple[MODEL, CLIP]:
    """A LoRA beside the weights of a diffusion model and a text encoder, of which each has one: the last.

    Return both recipes with the LoRA; as they are if it has no strength on either.
    """
    if not strength_model and not strength_clip:
        return model, clip
    return model.with_bypass_lora(lora_name, strength_model), clip.with_bypass_lora(lora_name, strength_clip)


@node(
    "LoraLoaderBypassModelOnly",
    "Load LoRA (Bypass, Model Only) (for debugging)",
    category="model/loaders",
    function="load_lora_model_only",
    experimental=True,
    description="Changes a diffusion model alone by a LoRA; the text encoder stays as it is.",
)
def lora_loader_bypass_model_only(model: MODEL, lora_name: LoraFile, strength_model: Strength) -> MODEL:
    """A LoRA beside the weights of a diffusion model alone."""
    return model.with_bypass_lora(lora_name, strength_model) if strength_model else model
