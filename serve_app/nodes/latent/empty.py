"""The nodes that make empty LATENT to sample from.

The model that samples them makes them its own (`sampling/latents/latents.py`), so which of these is taken matters
little.
"""

from __future__ import annotations

from typing import Annotated, TypeAlias

import torch

from serve_app.execution.size import allow
from serve_app.nodes.declare import node
from serve_app.nodes.inputs import MAX_RESOLUTION, Int
from serve_app.nodes.sampling.ksampler import FACTOR
from serve_app.nodes.sockets import LATENT

BatchSize: TypeAlias = Annotated[int, Int(1, min=1, max=4096)]
FRAMES = 4
"""Images of a video that a cell covers in time, but for the first, which covers one."""


def cells_in_time(images: int) -> int:
    """Return the number of latent frames of a video with this number of images, at least one."""
    return (images - 1) // FRAMES + 1


def empty_video(
    width: int, height: int, length: int, batch_size: int, channels: int = 16, factor: int = 8
) -> torch.Tensor:
    """Return zeros (batch_size,channels,T,height/factor,width/factor) of a video with this number of images."""
    return _zeros(batch_size, channels, cells_in_time(length), height // factor, width // factor)


def _zeros(*shape: int) -> torch.Tensor:
    allow(*shape)
    return torch.zeros(shape)


@node(
    "EmptyLatentImage",
    "Empty Latent Image",
    category="model/latent",
    function="generate",
    description="Makes a batch of empty latent images to be denoised by sampling.",
    required=("batch_size",),
)
def empty_latent_image(
    width: Annotated[int, Int(512, min=16, max=MAX_RESOLUTION, step=8)],
    height: Annotated[int, Int(512, min=16, max=MAX_RESOLUTION, step=8)],
    batch_size: BatchSize = 1,
) -> LATENT:
    """A batch of zero latents to sample from."""
    return {"samples": _zeros(batch_size, 4, height // 8, width // 8), FACTOR: 8}


@node("EmptySD3LatentImage", category="model/latent/stable diffusion", function="generate", required=("batch_size",))
def empty_sd3_latent_image(
    width: Annotated[int, Int(1024, min=16, max=MAX_RESOLUTION, step=16)],
    height: Annotated[int, Int(1024, min=16, max=MAX_RESOLUTION, step=16)],
    batch_size: BatchSize = 1,
) -> LATENT:
    """Empty latents of 16 channels."""
    return {"samples": _zeros(batch_size, 16, height // 8, width // 8), FACTOR: 8}


@node(
    "EmptyFlux2LatentImage",
    "Empty Flux 2 Latent",
    category="model/latent/flux",
    function="generate",
    required=("batch_size",),
)
def empty_flux2_latent_image(
    width: Annotated[int, Int(1024, min=16, max=MAX_RESOLUTION, step=16)],
    height: Annotated[int, Int(1024, min=16, max=MAX_RESOLUTION, step=16)],
    batch_size: BatchSize = 1,
) -> LATENT:
    """Empty latents of FLUX.2."""
    return {"samples": _zeros(batch_size, 128, height // 16, width // 16)}


@node("EmptyHunyuanImageLatent", category="model/latent/hunyuan image", function="generate", required=("batch_size",))
def empty_hunyuan_image_latent(
    width: Annotated[int, Int(2048, min=64, max=MAX_RESOLUTION, step=32)],
    height: Annotated[int, Int(2048, min=64, max=MAX_RESOLUTION, step=32)],
    batch_size: BatchSize = 1,
) -> LATENT:
    """Empty latents of HunyuanImage."""
    return {"samples": _zeros(batch_size, 64, height // 32, width // 32)}


@node(
    "EmptyQwenImageLayeredLatentImage",
    "Empty Qwen Image Layered Latent",
    category="model/latent/qwen",
    function="generate",
    required=("batch_size",),
)
def empty_qwen_image_layered_latent_image(
    width: Annotated[int, Int(640, min=16, max=MAX_RESOLUTION, step=16)],
    height: Annotated[int, Int(640, min=16, max=MAX_RESOLUTION, step=16)],
    layers: Annotated[int, Int(3, min=0, max=MAX_RESOLUTION, step=1)],
    batch_size: BatchSize = 1,
) -> LATENT:
    """Empty latents of a whole image and the layers it is taken apart into, one after the other."""
    return {"samples": _zeros(batch_size, 16, layers + 1, height // 8, width // 8)}


@node(
    "EmptyHunyuanLatentVideo",
    "Empty HunyuanVideo 1.0 Latent",
    category="model/latent/hunyuan video",
    function="generate",
    required=("batch_size",),
)
def empty_hunyuan_latent_video(
    width: Annotated[int, Int(848, min=16, max=MAX_RESOLUTION, step=16)],
    height: Annotated[int, Int(480, min=16, max=MAX_RESOLUTION, step=16)],
    length: Annotated[int, Int(25, min=1, max=MAX_RESOLUTION, step=FRAMES)],
    batch_size: BatchSize = 1,
) -> LATENT:
    """Empty latents of a video, of which every fourth image after the first makes a cell in time."""
    return {"samples": empty_video(width, height, length, batch_size), FACTOR: 8}
