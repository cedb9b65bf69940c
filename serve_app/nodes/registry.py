"""The built-in node classes, registered as a pack registers its own: each module maps names to classes and titles."""

from __future__ import annotations

from collections.abc import Mapping

from serve_app.graph.spec import NodeSpec
from serve_app.nodes.builtin import (
    alpha,
    animation,
    attention_scale,
    audio,
    audio_files,
    batches,
    compositing,
    conditioning,
    conditioning_edit,
    conditioning_flux,
    conditioning_qwen,
    conditioning_qwen21,
    conditioning_region,
    conditioning_sdxl,
    conditioning_texts,
    controlnet,
    custom_sampling,
    guiders,
    image,
    image_batch,
    image_edges,
    image_files,
    image_post,
    image_regions,
    image_scale,
    image_transform,
    inpaint,
    latent,
    latent_batch,
    latent_empty,
    latent_math,
    latent_transform,
    loaders,
    loaders_gguf,
    loaders_lora,
    logic,
    mask,
    model_merging,
    model_patches,
    model_sampling,
    model_saving,
    morphology,
    number,
    primitive,
    samplers,
    sampling,
    schedules,
    sigmas,
    text,
    text_format,
    text_generate,
    tiled,
    video,
    vision,
)
from serve_app.nodes.protocol import spec_of

_MODULES = (
    loaders,
    loaders_gguf,
    loaders_lora,
    conditioning,
    conditioning_region,
    conditioning_sdxl,
    conditioning_texts,
    conditioning_qwen,
    conditioning_qwen21,
    conditioning_edit,
    conditioning_flux,
    controlnet,
    model_sampling,
    sampling,
    custom_sampling,
    samplers,
    schedules,
    sigmas,
    guiders,
    model_patches,
    attention_scale,
    model_merging,
    model_saving,
    latent,
    latent_empty,
    latent_batch,
    latent_transform,
    latent_math,
    inpaint,
    mask,
    compositing,
    alpha,
    morphology,
    image,
    image_scale,
    image_batch,
    image_transform,
    image_post,
    image_edges,
    animation,
    tiled,
    primitive,
    text,
    text_format,
    text_generate,
    logic,
    number,
    batches,
    image_files,
    image_regions,
    audio,
    audio_files,
    video,
    vision,
)

BUILTIN: Mapping[str, type] = {name: cls for module in _MODULES for name, cls in module.NODE_CLASS_MAPPINGS.items()}
"""The node classes there are, by the name workflows use."""

DISPLAY_NAMES: Mapping[str, str] = {
    name: title for module in _MODULES for name, title in module.NODE_DISPLAY_NAME_MAPPINGS.items()
}
"""ComfyUI's titles; a class without one shows its class name, as there."""


def specs() -> dict[str, NodeSpec]:
    """Return every built-in class as data."""
    return {name: spec_of(node_class, name, DISPLAY_NAMES.get(name, "")) for name, node_class in BUILTIN.items()}
