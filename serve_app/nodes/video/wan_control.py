"""The nodes of conditioning for Wan by a control video: both editions of Wan Fun Control, and VACE.

Source: Jiang et al. 2025, "VACE: All-in-One Video Creation and Editing", arXiv:2503.07598.
"""

from __future__ import annotations

from typing import Annotated

import torch
from torch import Tensor
from torch.nn.functional import interpolate, pad, pixel_unshuffle

from serve_app.errors import NodeError
from serve_app.execution.runtime import Runtime
from serve_app.execution.size import allow
from serve_app.nodes.declare import node
from serve_app.nodes.image.match_size import as_planes, resize
from serve_app.nodes.inputs import Float
from serve_app.nodes.latent.empty import BatchSize, cells_in_time, empty_video
from serve_app.nodes.sockets import CLIP_VISION_OUTPUT, CONDITIONING, IMAGE, INT, LATENT, MASK, RUNTIME, VAE
from serve_app.nodes.video.wan import (
    CATEGORY,
    GREY,
    PAIR_AND_LATENT,
    Height,
    Length,
    Width,
    both,
    by_cell,
    sized,
    unknown,
    video_vae,
)
from serve_app.recipe.recipe import Recipe
from serve_app.sampling.guidance.conditioning import with_more
from serve_app.sampling.latents.latent_formats import WAN, WAN_22
from serve_app.sampling.latents.latents import LatentFormat

CONTROL = f"{CATEGORY}/fun control"


@node("WanFunControlToVideo", category=CONTROL, function="encode", return_names=PAIR_AND_LATENT)
async def wan_fun_control_to_video(
    positive: CONDITIONING,
    negative: CONDITIONING,
    vae: VAE,
    width: Width,
    height: Height,
    length: Length,
    batch_size: BatchSize,
    runtime: RUNTIME,
    clip_vision_output: CLIP_VISION_OUTPUT | None = None,
    start_image: IMAGE | None = None,
    control_video: IMAGE | None = None,
) -> tuple[CONDITIONING, CONDITIONING, LATENT]:
    """A video to go by, and what a video begins with, for Wan 2.1 Fun's model of control.

    Return both conditionings with latents of both, the channels' means where there are none, and empty latents.

    Errors: NodeError for another VAE than Wan 2.1's.
    """
    if start_image is not None or control_video is not None:
        await video_vae(runtime, vae, WAN)
    latents = empty_video(width, height, length, batch_size)
    image = await _beside(runtime, vae, WAN, latents, (width, height, length), control_video, start_image)
    conditionings = both(positive, negative, concat_latent_image=image, clip_vision_output=clip_vision_output)
    return *conditionings, {"samples": latents}


@node("Wan22FunControlToVideo", category=CONTROL, function="encode", return_names=PAIR_AND_LATENT)
async def wan22_fun_control_to_video(
    positive: CONDITIONING,
    negative: CONDITIONING,
    vae: VAE,
    width: Width,
    height: Height,
    length: Length,
    batch_size: BatchSize,
    runtime: RUNTIME,
    ref_image: IMAGE | None = None,
    control_video: IMAGE | None = None,
) -> tuple[CONDITIONING, CONDITIONING, LATENT]:
    """A video to go by, and an image to refer to, for Wan 2.2 Fun's models of control.

    Return both conditionings with the video's latents, a mask and the image's latents, and empty latents.

    Errors: NodeError for another VAE than Wan 2.1's and 2.2's.
    """
    family = await video_vae(runtime, vae, WAN, WAN_22)
    made = WAN_22 if family.latent_channels == WAN_22.channels else WAN
    latents = empty_video(width, height, length, batch_size, made.channels, made.factor)
    image = await _beside(runtime, vae, made, latents, (width, height, length), control_video)
    mask = by_cell(unknown(latents))
    conditionings = both(
        positive, negative, concat_latent_image=image, concat_mask=mask, concat_mask_index=made.channels
    )
    if ref_image is not None:
        reference = await runtime.encode(vae, sized(ref_image[:1], width, height))
        conditionings = (
            with_more(conditionings[0], reference_latents=reference),
            with_more(conditionings[1], reference_latents=reference),
        )
    return *conditionings, {"samples": latents}


@node(
    "WanVaceToVideo",
    category=f"{CATEGORY}/vace",
    function="encode",
    return_names=(*PAIR_AND_LATENT, "trim_latent"),
    search_aliases=("video conditioning", "video control"),
)
async def wan_vace_to_video(
    positive: CONDITIONING,
    negative: CONDITIONING,
    vae: VAE,
    width: Width,
    height: Height,
    length: Length,
    batch_size: BatchSize,
    strength: Annotated[float, Float(1.0, min=0.0, max=1000.0, step=0.01)],
    runtime: RUNTIME,
    control_video: IMAGE | None = None,
    control_masks: MASK | None = None,
    reference_image: IMAGE | None = None,
) -> tuple[CONDITIONING, CONDITIONING, LATENT, INT]:
    """A video to go by, which of it is to be made anew, and an image to refer to, for VACE's models.

    Return both conditionings with one more control, empty latents, and how many of these are the reference's.

    Errors: NodeError for another VAE than Wan 2.1's, and for sides that are no multiples of its cells.
    """
    await video_vae(runtime, vae, WAN)
    if width % WAN.factor or height % WAN.factor:
        raise NodeError(f"width {width} and height {height} must be multiples of {WAN.factor}")
    video = _whole(control_video, (width, height, length), 3, GREY)
    mask = _whole(None if control_masks is None else _as_images(control_masks), (width, height, length), 1, 1.0)
    apart = video - GREY
    kept = await runtime.encode(vae, (apart * (1 - mask)).add_(GREY))
    made = await runtime.encode(vae, (apart * mask).add_(GREY))
    frames = torch.cat([kept, made], dim=1)
    # The pixels of a cell become channels, row by row.
    pixels = pixel_unshuffle(mask.movedim(-1, 1), WAN.factor).movedim(0, 1)[None]
    cells = interpolate(pixels, size=(cells_in_time(length), *pixels.shape[-2:]), mode="nearest-exact")
    trimmed = 0
    if reference_image is not None:
        reference = await runtime.encode(vae, sized(reference_image[:1], width, height))
        nothing = WAN.from_model(torch.zeros_like(reference))
        frames = torch.cat([torch.cat([reference, nothing], dim=1), frames], dim=2)
        trimmed = reference.shape[2]
        cells = torch.cat([torch.zeros_like(cells[:, :, :trimmed]), cells], dim=2)
    options = {"vace_frames": frames, "vace_mask": cells, "vace_strength": strength}
    shape = (batch_size, WAN.channels, cells.shape[2], height // WAN.factor, width // WAN.factor)
    allow(*shape)
    return with_more(positive, **options), with_more(negative, **options), {"samples": torch.zeros(shape)}, trimmed


async def _beside(
    runtime: Runtime,
    vae: Recipe,
    made: LatentFormat,
    latents: Tensor,
    size: tuple[int, int, int],
    *videos: Tensor | None,
) -> Tensor:
    """Return latents (B,2c,T,h,w) of two videos, as long as empty ones; the channels' means where there is none.

    size: width, height and length of a video in pixels and images.
    """
    width, height, length = size
    allow(2, *latents.shape)
    beside = made.from_model(torch.zeros_like(latents)).repeat(1, 2, 1, 1, 1)
    for half, video in zip(beside.chunk(2, dim=1), videos, strict=False):
        if video is not None:
            encoded = await runtime.encode(vae, sized(video[:length], width, height))
            half[:, :, : encoded.shape[2]] = encoded[:, :, : half.shape[2]]
    return beside


def _whole(video: Tensor | None, size: tuple[int, int, int], channels: int, filling: float) -> Tensor:
    """Return images (F,H,W,channels) of a size, filled up to its length. size: width, height and length."""
    width, height, length = size
    allow(length, height, width, channels)
    if video is None:
        return torch.full((length, height, width, channels), filling)
    resized = resize(video[:length, ..., :channels], width, height, "bilinear", "center")
    return pad(resized, (0,) * 7 + (length - len(resized),), value=filling)


def _as_images(mask: Tensor) -> Tensor:
    """Return a mask (H,W), (N,H,W) or (N,1,H,W) as images (N,H,W,1)."""
    return as_planes(mask).unsqueeze(-1)
