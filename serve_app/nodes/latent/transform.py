"""The nodes that move latents about: turn, mirror, crop, cut, trim and join. A noise mask does not move along."""

from __future__ import annotations

from typing import Annotated, TypeAlias

import torch

from serve_app.nodes.declare import node
from serve_app.nodes.image.match_size import fit_batch
from serve_app.nodes.inputs import MAX_RESOLUTION, Choice, Int
from serve_app.nodes.sockets import LATENT

DIMS = {"x": -1, "y": -2, "t": -3}
"""Which dimension a direction is; t is the frame of a video's latents, and the channel of an image's."""


@node("LatentRotate", "Rotate Latent", category="model/latent/transform", function="rotate")
def latent_rotate(
    samples: LATENT, rotation: Annotated[str, Choice(["none", "90 degrees", "180 degrees", "270 degrees"])]
) -> LATENT:
    """Latents turned clockwise by a multiple of 90 degrees.

    Return the latents turned; at 90 and 270 degrees their sides are exchanged.
    """
    turns = 0 if rotation == "none" else int(rotation.split()[0]) // 90
    return {**samples, "samples": torch.rot90(samples["samples"], turns, dims=(3, 2))}


@node("LatentFlip", "Flip Latent", category="model/latent/transform", function="flip")
def latent_flip(
    samples: LATENT, flip_method: Annotated[str, Choice(["x-axis: vertically", "y-axis: horizontally"])]
) -> LATENT:
    """Latents mirrored. Return the latents upside down, or left for right."""
    return {**samples, "samples": samples["samples"].flip(2 if flip_method.startswith("x") else 3)}


Side: TypeAlias = Annotated[int, Int(512, min=64, max=MAX_RESOLUTION, step=8)]
Start: TypeAlias = Annotated[int, Int(0, min=0, max=MAX_RESOLUTION, step=8)]


@node("LatentCrop", "Crop Latent", category="model/latent/transform", function="crop")
def latent_crop(samples: LATENT, width: Side, height: Side, x: Start, y: Start) -> LATENT:
    """A rectangle of the latents, given in pixels.

    Return what lies in the rectangle, moved so that at least 64 pixels of each side do.
    """
    latents: torch.Tensor = samples["samples"]
    # Latents under 64 pixels give a negative start, which counts from the end as any slice does, in ComfyUI too.
    left, top = min(x // 8, latents.shape[3] - 8), min(y // 8, latents.shape[2] - 8)
    cropped = latents[:, :, top : top + height // 8, left : left + width // 8].clone()
    return {**samples, "samples": cropped}


@node("LatentConcat", category="model/latent/advanced", function="op")
def latent_concat(
    samples1: LATENT, samples2: LATENT, dim: Annotated[str, Choice(["x", "-x", "y", "-y", "t", "-t"])]
) -> LATENT:
    """Two latents side by side.

    Return the second after the first along dim, or before it with a minus. The first says how many there are.
    """
    pair = [samples1["samples"], fit_batch(samples2["samples"], samples1["samples"].shape[0])]
    if dim.startswith("-"):
        pair.reverse()
    return {**samples1, "samples": torch.cat(pair, dim=DIMS[dim[-1]])}


@node("LatentCut", category="model/latent/advanced", function="op")
def latent_cut(
    samples: LATENT,
    dim: Annotated[str, Choice(["x", "y", "t"])],
    index: Annotated[int, Int(0, min=-MAX_RESOLUTION, max=MAX_RESOLUTION, step=1)],
    amount: Annotated[int, Int(1, min=1, max=MAX_RESOLUTION, step=1)],
) -> LATENT:
    """A stretch of the latents along one dimension.

    Return amount columns from index on, or as many as there are; a negative index counts from the end.
    """
    latents: torch.Tensor = samples["samples"]
    size = latents.shape[DIMS[dim]]
    start = min(index, size - 1) if index >= 0 else max(size + index, 0)
    return {**samples, "samples": latents.narrow(DIMS[dim], start, min(amount, size - start)).clone()}


@node("TrimVideoLatent", "Trim Video Latent", category="model/latent", function="trim")
def trim_video_latent(samples: LATENT, trim_amount: Annotated[int, Int(0, min=0, max=99999)]) -> LATENT:
    """A video's latents without the first in time. Return the latents from cell trim_amount in time on."""
    return {**samples, "samples": samples["samples"][:, :, trim_amount:].clone()}
