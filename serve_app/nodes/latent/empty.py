"""The nodes that make empty LATENT to sample from.

The model that samples them makes them its own (`sampling/latents/latents.py`), so which of these is taken matters
little.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from serve_app.execution.size import allow
from serve_app.nodes.latent.latents import MAX_RESOLUTION
from serve_app.nodes.sampling.ksampler import FACTOR
from serve_app.values import Latent

BATCH = ("INT", {"default": 1, "min": 1, "max": 4096})
FRAMES = 4
"""Images of a video that a cell covers in time, but for the first, which covers one."""


def cells_in_time(images: int) -> int:
    """Return how many cells so many images of a video, at least one, are in time."""
    return (images - 1) // FRAMES + 1


def empty_video(
    width: int, height: int, length: int, batch_size: int, channels: int = 16, factor: int = 8
) -> torch.Tensor:
    """Return zeros (batch_size,channels,T,height/factor,width/factor) of a video of so many images."""
    return _zeros(batch_size, channels, cells_in_time(length), height // factor, width // factor)


def _zeros(*shape: int) -> torch.Tensor:
    allow(*shape)
    return torch.zeros(shape)


def _empty_node(
    doc: str, channels: int, factor: int, side: Mapping[str, Any], *, says_factor: bool, **attributes: Any
) -> type:
    """Return a class whose node makes zeros (batch_size,channels,height/factor,width/factor).

    side: the options of both sides. says_factor: the latents carry it, as ComfyUI's do. attributes: the class's own.
    """

    class EmptyNode:
        __doc__ = doc
        RETURN_TYPES = ("LATENT",)
        FUNCTION = "generate"

        @classmethod
        def INPUT_TYPES(cls) -> dict[str, Any]:
            sides = {name: ("INT", dict(side)) for name in ("width", "height")}
            return {"required": {**sides, "batch_size": BATCH}}

        def generate(self, width: int, height: int, batch_size: int = 1) -> tuple[Latent]:
            samples = _zeros(batch_size, channels, height // factor, width // factor)
            return ({"samples": samples, FACTOR: factor} if says_factor else {"samples": samples},)

    for name, value in attributes.items():
        setattr(EmptyNode, name, value)
    return EmptyNode


def _side(default: int, step: int, least: int = 16) -> dict[str, Any]:
    return {"default": default, "min": least, "max": MAX_RESOLUTION, "step": step}


class EmptyQwenImageLayeredLatentImage:
    """Empty latents of a whole image and the layers it is taken apart into, one after the other."""

    RETURN_TYPES = ("LATENT",)
    FUNCTION = "generate"
    CATEGORY = "model/latent/qwen"

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        layers = ("INT", {"default": 3, "min": 0, "max": MAX_RESOLUTION, "step": 1})
        side = ("INT", _side(640, 16))
        return {"required": {"width": side, "height": side, "layers": layers, "batch_size": BATCH}}

    def generate(self, width: int, height: int, layers: int, batch_size: int = 1) -> tuple[Latent]:
        """Return zeros (batch_size,16,layers + 1,height/8,width/8)."""
        return ({"samples": _zeros(batch_size, 16, layers + 1, height // 8, width // 8)},)


class EmptyHunyuanLatentVideo:
    """Empty latents of a video, of which every fourth image after the first makes a cell in time."""

    RETURN_TYPES = ("LATENT",)
    FUNCTION = "generate"
    CATEGORY = "model/latent/hunyuan video"

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        length = {"default": 25, "min": 1, "max": MAX_RESOLUTION, "step": FRAMES}
        sides = {"width": ("INT", _side(848, 16)), "height": ("INT", _side(480, 16))}
        return {"required": {**sides, "length": ("INT", length), "batch_size": BATCH}}

    def generate(self, width: int, height: int, length: int, batch_size: int = 1) -> tuple[Latent]:
        """Return zeros (batch_size,16,T,height/8,width/8)."""
        return ({"samples": empty_video(width, height, length, batch_size), FACTOR: 8},)


NODE_CLASS_MAPPINGS: Mapping[str, type] = {
    "EmptyLatentImage": _empty_node(
        "A batch of zero latents to sample from.",
        4,
        8,
        _side(512, 8),
        says_factor=True,
        CATEGORY="model/latent",
        DESCRIPTION="Makes a batch of empty latent images to be denoised by sampling.",
    ),
    "EmptySD3LatentImage": _empty_node(
        "Empty latents of 16 channels.",
        16,
        8,
        _side(1024, 16),
        says_factor=True,
        CATEGORY="model/latent/stable diffusion",
    ),
    "EmptyFlux2LatentImage": _empty_node(
        "Empty latents of FLUX.2.", 128, 16, _side(1024, 16), says_factor=False, CATEGORY="model/latent/flux"
    ),
    "EmptyHunyuanImageLatent": _empty_node(
        "Empty latents of HunyuanImage.",
        64,
        32,
        _side(2048, 32, least=64),
        says_factor=False,
        CATEGORY="model/latent/hunyuan image",
    ),
    "EmptyQwenImageLayeredLatentImage": EmptyQwenImageLayeredLatentImage,
    "EmptyHunyuanLatentVideo": EmptyHunyuanLatentVideo,
}

NODE_DISPLAY_NAME_MAPPINGS: Mapping[str, str] = {
    "EmptyLatentImage": "Empty Latent Image",
    "EmptyFlux2LatentImage": "Empty Flux 2 Latent",
    "EmptyHunyuanLatentVideo": "Empty HunyuanVideo 1.0 Latent",
    "EmptyQwenImageLayeredLatentImage": "Empty Qwen Image Layered Latent",
}
