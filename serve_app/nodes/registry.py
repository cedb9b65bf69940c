"""The built-in node classes, registered as a pack registers its own: each module maps names to classes and titles."""

from __future__ import annotations

from collections.abc import Mapping

from serve_app.execution.protocol import spec_of
from serve_app.graph.spec import NodeSpec
from serve_app.nodes.audio import files as audio_files
from serve_app.nodes.audio import sounds as audio
from serve_app.nodes.conditioning import controlnet, gligen, hooks, vision
from serve_app.nodes.conditioning import edit as conditioning_edit
from serve_app.nodes.conditioning import encode as conditioning
from serve_app.nodes.conditioning import files as conditioning_files
from serve_app.nodes.conditioning import flux as conditioning_flux
from serve_app.nodes.conditioning import properties as conditioning_properties
from serve_app.nodes.conditioning import qwen as conditioning_qwen
from serve_app.nodes.conditioning import qwen21 as conditioning_qwen21
from serve_app.nodes.conditioning import region as conditioning_region
from serve_app.nodes.conditioning import sdxl as conditioning_sdxl
from serve_app.nodes.conditioning import text_encoders as conditioning_texts
from serve_app.nodes.conditioning import wan as conditioning_wan
from serve_app.nodes.conditioning import wan_control as conditioning_wan_control
from serve_app.nodes.dataset import folders as dataset_folders
from serve_app.nodes.dataset import images as dataset_images
from serve_app.nodes.dataset import lists as dataset_lists
from serve_app.nodes.dataset import saving as dataset_saving
from serve_app.nodes.image import alpha, animation, batches, bounding_boxes, color_transfer, compositing
from serve_app.nodes.image import batch as image_batch
from serve_app.nodes.image import curves as curve
from serve_app.nodes.image import edges as image_edges
from serve_app.nodes.image import files as image_files
from serve_app.nodes.image import filters as image_post
from serve_app.nodes.image import images as image
from serve_app.nodes.image import regions as image_regions
from serve_app.nodes.image import scale as image_scale
from serve_app.nodes.image import transform as image_transform
from serve_app.nodes.latent import batch as latent_batch
from serve_app.nodes.latent import empty as latent_empty
from serve_app.nodes.latent import inpaint, tiled
from serve_app.nodes.latent import latents as latent
from serve_app.nodes.latent import math as latent_math
from serve_app.nodes.latent import transform as latent_transform
from serve_app.nodes.layers import layers
from serve_app.nodes.loaders import gguf as loaders_gguf
from serve_app.nodes.loaders import kjnodes as loaders_kjnodes
from serve_app.nodes.loaders import lora as loaders_lora
from serve_app.nodes.loaders import models as loaders
from serve_app.nodes.logic import loops
from serve_app.nodes.logic import numbers as number
from serve_app.nodes.logic import primitives as primitive
from serve_app.nodes.logic import switches as logic
from serve_app.nodes.mask import crop as mask_crop
from serve_app.nodes.mask import masks as mask
from serve_app.nodes.mask import morphology
from serve_app.nodes.model import attention_scale, devices, guidance_patches, layer_patches
from serve_app.nodes.model import controls as model_controls
from serve_app.nodes.model import merging as model_merging
from serve_app.nodes.model import patches as model_patches
from serve_app.nodes.model import saving as model_saving
from serve_app.nodes.model import training as model_sampling
from serve_app.nodes.sampling import custom as custom_sampling
from serve_app.nodes.sampling import guiders, samplers, schedules, sigmas
from serve_app.nodes.sampling import ksampler as sampling
from serve_app.nodes.text import camera
from serve_app.nodes.text import format as text_format
from serve_app.nodes.text import generate as text_generate
from serve_app.nodes.text import strings as text
from serve_app.nodes.video import frames as video_frames
from serve_app.nodes.video import videos as video

_MODULES = (
    loaders,
    loaders_gguf,
    loaders_kjnodes,
    loaders_lora,
    conditioning,
    conditioning_region,
    conditioning_properties,
    hooks,
    conditioning_sdxl,
    conditioning_texts,
    conditioning_qwen,
    conditioning_qwen21,
    conditioning_edit,
    conditioning_flux,
    conditioning_wan,
    conditioning_wan_control,
    conditioning_files,
    controlnet,
    gligen,
    model_sampling,
    sampling,
    custom_sampling,
    samplers,
    schedules,
    sigmas,
    guiders,
    model_patches,
    model_controls,
    attention_scale,
    model_merging,
    model_saving,
    guidance_patches,
    layer_patches,
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
    loops,
    number,
    batches,
    image_files,
    image_regions,
    mask_crop,
    color_transfer,
    bounding_boxes,
    layers,
    curve,
    camera,
    devices,
    audio,
    audio_files,
    video,
    video_frames,
    vision,
    dataset_folders,
    dataset_images,
    dataset_lists,
    dataset_saving,
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
