"""The nodes that find the foreground of images."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Annotated, TypeAlias

import torch
from torch import Tensor
from torch.nn.functional import interpolate

from serve_app.execution.protocol import FolderChoice
from serve_app.images import vision_pixels
from serve_app.nodes.declare import node
from serve_app.nodes.inputs import Combo, InputType
from serve_app.nodes.sockets import IMAGE, MASK, RUNTIME
from serve_app.recipe.recipe import Recipe

BACKGROUND_REMOVAL: TypeAlias = Annotated[Recipe, InputType("BACKGROUND_REMOVAL")]


@node(
    "LoadBackgroundRemovalModel", "Load Background Removal Model", category="model/loaders", return_names=("bg_model",)
)
def load_background_removal_model(
    bg_removal_name: Annotated[str, Combo(FolderChoice("background_removal"))],
) -> BACKGROUND_REMOVAL:
    """A network that finds the foreground, in a file of its own."""
    return Recipe("background_remover", "background_removal", bg_removal_name)


@node(
    "RemoveBackground",
    "Remove Background",
    category="image/background removal",
    return_names=("mask",),
    description="Makes a mask of the foreground of images.",
)
async def remove_background(bg_removal_model: BACKGROUND_REMOVAL, image: IMAGE, runtime: RUNTIME) -> MASK:
    """The foreground of images, as masks (B,H,W)."""
    side = (await runtime.family(bg_removal_model)).image_size
    pixels = await asyncio.to_thread(vision_pixels, image, side, (0.0, 0.0, 0.0), (1.0, 1.0, 1.0), crop=False)
    found = await runtime.ask_image_model(bg_removal_model, torch.split(pixels, 1))
    height, width = image.shape[1:3]
    return await asyncio.to_thread(_masks, [one["mask"] for one in found], (height, width))


def _masks(found: Sequence[Tensor], size: tuple[int, int]) -> Tensor:
    """Return masks (B,H,W) of a size, of what a network says of each image (1,1,h,w)."""
    return torch.cat([interpolate(one, size=size, mode="bicubic").sigmoid().squeeze(1) for one in found])
