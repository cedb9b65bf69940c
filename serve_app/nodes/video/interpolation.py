"""The nodes that make frames between those of a video."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Annotated, TypeAlias

import torch
from torch import Tensor
from torch.nn.functional import pad

from serve_app.errors import NodeError
from serve_app.execution.size import allow
from serve_app.nodes.declare import node
from serve_app.nodes.inputs import File, InputType, Int
from serve_app.nodes.sockets import IMAGE, RUNTIME
from serve_app.recipe.recipe import Recipe

INTERP_MODEL: TypeAlias = Annotated[Recipe, InputType("INTERP_MODEL")]
TOGETHER = 4
"""Pairs of frames in one call of the network, which looks at each of its frames once."""


@node("FrameInterpolationModelLoader", "Load Frame Interpolation Model", category="model/loaders")
def frame_interpolation_model_loader(model_name: Annotated[str, File("frame_interpolation")]) -> INTERP_MODEL:
    """A network that makes frames between two, in a file of its own."""
    return Recipe("frame_interpolator", "frame_interpolation", model_name)


@node(
    "FrameInterpolate",
    "Run Frame Interpolation Model",
    category="video",
    search_aliases=("rife", "film", "frame interpolation", "slow motion", "interpolate frames", "vfi"),
)
async def frame_interpolate(
    interp_model: INTERP_MODEL,
    images: IMAGE,
    multiplier: Annotated[int, Int(2, min=2, max=16)],
    runtime: RUNTIME,
) -> IMAGE:
    """A video of `multiplier` times as many frames, those between made by the network.

    Return (B·multiplier − multiplier + 1,H,W,3); one frame as it is. Errors: NodeError for frames that are too small.
    """
    frames = images[..., :3]
    count, height, width = frames.shape[:3]
    if count < 2:
        return images
    family = await runtime.family(interp_model)
    if min(height, width) < family.smallest:
        raise NodeError(
            f"the images are {width}×{height}; {family.title} takes sides of {family.smallest} pixels and more"
        )
    allow((count - 1) * multiplier + 1, height, width, 3)
    pixels = frames.movedim(-1, 1).float()
    pixels = pad(pixels, (0, -width % family.multiple, 0, -height % family.multiple), mode="reflect")
    parts = [pixels[i : i + TOGETHER + 1] for i in range(0, count - 1, TOGETHER)]
    shares = tuple(i / multiplier for i in range(1, multiplier))
    found = await runtime.ask_image_model(interp_model, parts, shares=shares)
    return await asyncio.to_thread(_joined, frames, [one["frames"][:, :, :height, :width] for one in found])


def _joined(frames: Tensor, between: Sequence[Tensor]) -> Tensor:
    """Return frames (B,H,W,3) with those between, S (3,H,W) after each but the last."""
    made = torch.unflatten(torch.cat(list(between)).movedim(1, -1), 0, (len(frames) - 1, -1))
    whole = torch.cat([frames[:-1].unsqueeze(1), made], dim=1).flatten(0, 1)
    return torch.cat([whole, frames[-1:]]).clamp(0, 1)
