"""The node classes there are, by the name workflows use, and the names people see."""

from __future__ import annotations

from collections.abc import Mapping

from serve_app.graph.spec import NodeSpec
from serve_app.nodes.builtin.conditioning import CLIPSetLastLayer, CLIPTextEncode
from serve_app.nodes.builtin.image import EmptyImage, ImageScale, LoadImage, PreviewImage, SaveImage
from serve_app.nodes.builtin.latent import (
    EmptyLatentImage,
    LatentUpscale,
    LoadLatent,
    SaveLatent,
    VAEDecode,
    VAEEncode,
)
from serve_app.nodes.builtin.loaders import CheckpointLoaderSimple, VAELoader
from serve_app.nodes.builtin.sampling import KSampler, KSamplerAdvanced
from serve_app.nodes.protocol import spec_of

BUILTIN: Mapping[str, type] = {
    "KSampler": KSampler,
    "CheckpointLoaderSimple": CheckpointLoaderSimple,
    "CLIPTextEncode": CLIPTextEncode,
    "CLIPSetLastLayer": CLIPSetLastLayer,
    "VAEDecode": VAEDecode,
    "VAEEncode": VAEEncode,
    "VAELoader": VAELoader,
    "EmptyLatentImage": EmptyLatentImage,
    "LatentUpscale": LatentUpscale,
    "SaveImage": SaveImage,
    "PreviewImage": PreviewImage,
    "LoadImage": LoadImage,
    "ImageScale": ImageScale,
    "EmptyImage": EmptyImage,
    "KSamplerAdvanced": KSamplerAdvanced,
    "LoadLatent": LoadLatent,
    "SaveLatent": SaveLatent,
}

DISPLAY_NAMES: Mapping[str, str] = {
    "KSampler": "KSampler",
    "KSamplerAdvanced": "KSampler (Advanced)",
    "CheckpointLoaderSimple": "Load Checkpoint",
    "VAELoader": "Load VAE",
    "CLIPTextEncode": "CLIP Text Encode (Prompt)",
    "CLIPSetLastLayer": "CLIP Set Last Layer",
    "VAEDecode": "VAE Decode",
    "VAEEncode": "VAE Encode",
    "EmptyLatentImage": "Empty Latent Image",
    "LatentUpscale": "Upscale Latent",
    "SaveImage": "Save Image",
    "PreviewImage": "Preview Image",
    "LoadImage": "Load Image",
    "ImageScale": "Upscale Image",
}
"""ComfyUI's own; a class without one shows its class name, as there."""


def specs() -> dict[str, NodeSpec]:
    """Return every built-in class as data."""
    return {name: spec_of(node_class, name, DISPLAY_NAMES.get(name, "")) for name, node_class in BUILTIN.items()}
