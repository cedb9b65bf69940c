"""The node of Bernini: videos and images that a Wan of texts attends to as tokens of their own."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated

import torch
from torch import Tensor

from serve_app.nodes.declare import node
from serve_app.nodes.image.match_size import resize
from serve_app.nodes.inputs import Autogrow, InputType, Int
from serve_app.nodes.latent.empty import FRAMES, BatchSize, empty_video
from serve_app.nodes.sockets import CONDITIONING, IMAGE, LATENT, RUNTIME, VAE
from serve_app.nodes.video.wan import PAIR_AND_LATENT, both, video_vae
from serve_app.sampling.latents.latent_formats import WAN

IMAGES = 8
LONGEST = 8192
"""Pixels of a side, and images of a video."""
MULTIPLE = 16
"""Of the sides of what is encoded, in pixels."""


@node(
    "BerniniConditioning",
    "Bernini Conditioning",
    category="model/conditioning/bernini",
    function="encode",
    return_names=PAIR_AND_LATENT,
    description="Gives Bernini's model a video to edit, a video to insert, and images to refer to; any may be missing.",
)
async def bernini_conditioning(
    positive: CONDITIONING,
    negative: CONDITIONING,
    vae: VAE,
    width: Annotated[int, Int(832, min=16, max=LONGEST, step=16)],
    height: Annotated[int, Int(480, min=16, max=LONGEST, step=16)],
    length: Annotated[int, Int(81, min=1, max=LONGEST, step=FRAMES)],
    batch_size: BatchSize,
    runtime: RUNTIME,
    source_video: IMAGE | None = None,
    reference_video: IMAGE | None = None,
    reference_images: Annotated[
        Mapping[str, Tensor] | None,
        Autogrow(InputType("IMAGE"), name="reference_image", prefix="reference_image_", least=0, most=IMAGES),
    ] = None,
    ref_max_size: Annotated[int, Int(848, min=16, max=LONGEST, step=16)] = 848,
) -> tuple[CONDITIONING, CONDITIONING, LATENT]:
    """A video to edit, at the size of the result, one to insert, and images to refer to, at their own proportions.

    Return both conditionings with their latents, in this order, and empty latents of the video.

    ref_max_size: the longest side of what is not edited, in pixels. Errors: NodeError for another VAE than Wan 2.1's.
    """
    latents = empty_video(width, height, length, batch_size)
    videos = []
    if source_video is not None:
        videos.append(resize(source_video[:length, ..., :3], width, height, "area", "center"))
    if reference_video is not None:
        videos.append(_at_most(reference_video[:length], ref_max_size))
    for _, images in sorted((reference_images or {}).items()):
        videos += [_at_most(image, ref_max_size) for image in torch.split(images, 1)]
    if videos:
        await video_vae(runtime, vae, WAN)
    context = [await runtime.encode(vae, video) for video in videos]
    return *both(positive, negative, context_latents=context or None), {"samples": latents}


def _at_most(images: Tensor, longest: int) -> Tensor:
    """Return images (F,H,W,3) whose sides are multiples of MULTIPLE and at most about `longest`."""
    height, width = images.shape[1:3]
    scale = min(longest / max(height, width), 1.0)
    wide, high = (max(MULTIPLE, round(side * scale / MULTIPLE) * MULTIPLE) for side in (width, height))
    return resize(images[..., :3], wide, high, "area")
