"""The nodes of conditioning for Wan's image-to-video: first and last images.

A video is a batch of images (F,H,W,C) here, and one latent (1,c,T,h,w): the first cell in time is of one image, each of
the others of FRAMES. In masks, 1 is what is to be made, 0 what is given. Source: Wan team 2025, arXiv:2503.20314.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Annotated, Any, TypeAlias

import torch
from torch import Tensor

from serve_app.errors import NodeError
from serve_app.execution.runtime import Runtime
from serve_app.execution.size import allow
from serve_app.nodes.declare import node
from serve_app.nodes.image.match_size import resize
from serve_app.nodes.inputs import MAX_RESOLUTION, Int
from serve_app.nodes.latent.empty import FRAMES, BatchSize, cells_in_time, empty_video
from serve_app.nodes.sockets import CLIP_VISION_OUTPUT, CONDITIONING, IMAGE, LATENT, RUNTIME, VAE
from serve_app.recipe.recipe import Recipe
from serve_app.sampling.guidance.conditioning import with_options
from serve_app.sampling.latents.latent_formats import WAN_22
from serve_app.sampling.latents.latents import LatentFormat
from serve_app.values import ClipVisionOutput, Conditioning

CATEGORY = "model/conditioning/wan"
GREY = 0.5
"""Stands where no image is given."""
PAIR_AND_LATENT = ("positive", "negative", "latent")
"""The names of what these nodes return."""

Width: TypeAlias = Annotated[int, Int(832, min=16, max=MAX_RESOLUTION, step=16)]
Height: TypeAlias = Annotated[int, Int(480, min=16, max=MAX_RESOLUTION, step=16)]
Length: TypeAlias = Annotated[int, Int(81, min=1, max=MAX_RESOLUTION, step=FRAMES)]


async def video_vae(runtime: Runtime, vae: Recipe, *formats: LatentFormat) -> Any:
    """Return the family of a VAE of videos, whose latents are of one of the formats, if any are named.

    Errors: NodeError for another VAE.
    """
    family = await runtime.family(vae)
    words = "{} channels with cells of {} pixels".format
    made = words(family.latent_channels, family.factor)
    wanted = [words(known.channels, known.factor) for known in formats]
    if not family.frames or (wanted and made not in wanted):
        kind = "videos" if family.frames else "images alone"
        that = f", that makes {' or '.join(wanted)}" if wanted else ""
        raise NodeError(f"the VAE is one of {kind} and makes {made}; this node takes one of videos{that}")
    return family


def sized(images: Tensor, width: int, height: int) -> Tensor:
    """Return the colours (F,height,width,3) of images, cut to the proportions of the size."""
    return resize(images[..., :3], width, height, "bilinear", "center")


def both(positive: Conditioning, negative: Conditioning, **options: Any) -> tuple[Conditioning, Conditioning]:
    """Return both with options set, but for those that are None."""
    given = {name: value for name, value in options.items() if value is not None}
    return with_options(positive, **given), with_options(negative, **given)


def unknown(latents: Tensor) -> Tensor:
    """Return a mask (1,1,F,h,w) by image of a video of which nothing is given; the first cell has FRAMES as well."""
    _, _, cells, height, width = latents.shape
    allow(cells * FRAMES, height, width)
    return torch.ones(1, 1, cells * FRAMES, height, width)


def by_cell(mask: Tensor) -> Tensor:
    """Return a mask (1,1,F,h,w) by image with the images of a cell as its channels, (1,FRAMES,T,h,w)."""
    return mask.view(1, -1, FRAMES, *mask.shape[-2:]).transpose(1, 2)


@node("WanImageToVideo", category=CATEGORY, function="encode", return_names=PAIR_AND_LATENT)
async def wan_image_to_video(
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
) -> tuple[CONDITIONING, CONDITIONING, LATENT]:
    """What a video begins with, for a model that is shown it beside what it samples.

    Return both conditionings with the images, grey after the last, and empty latents of the video.

    Errors: NodeError for a VAE of images alone.
    """
    latents = empty_video(width, height, length, batch_size)
    image = mask = None
    if start_image is not None:
        await video_vae(runtime, vae)
        start = sized(start_image[:length], width, height)
        allow(length, height, width, 3)
        video = torch.full((length, height, width, 3), GREY)
        video[: len(start)] = start
        image = await runtime.encode(vae, video)
        mask = torch.ones(1, 1, latents.shape[2], *image.shape[-2:])
        mask[:, :, : cells_in_time(len(start))] = 0
    seen = clip_vision_output
    conditionings = both(positive, negative, concat_latent_image=image, concat_mask=mask, clip_vision_output=seen)
    return *conditionings, {"samples": latents}


@node("WanFirstLastFrameToVideo", category=CATEGORY, function="encode", return_names=PAIR_AND_LATENT)
async def wan_first_last_frame_to_video(
    positive: CONDITIONING,
    negative: CONDITIONING,
    vae: VAE,
    width: Width,
    height: Height,
    length: Length,
    batch_size: BatchSize,
    runtime: RUNTIME,
    clip_vision_start_image: CLIP_VISION_OUTPUT | None = None,
    clip_vision_end_image: CLIP_VISION_OUTPUT | None = None,
    start_image: IMAGE | None = None,
    end_image: IMAGE | None = None,
) -> tuple[CONDITIONING, CONDITIONING, LATENT]:
    """What a video begins and ends with, for a model that is shown it beside what it samples.

    Return both conditionings with the images, grey between them, and empty latents of the video.

    Errors: NodeError for a VAE of images alone.
    """
    family = await video_vae(runtime, vae)
    latents = empty_video(width, height, length, batch_size, family.latent_channels, family.factor)
    allow(length, height, width, 3)
    video, mask = torch.full((length, height, width, 3), GREY), unknown(latents)
    if start_image is not None:
        start = sized(start_image[:length], width, height)
        video[: len(start)] = start
        # The first cell has an image where others have FRAMES.
        mask[:, :, : len(start) + FRAMES - 1] = 0
    if end_image is not None:
        end = sized(end_image[-length:], width, height)
        video[-len(end) :] = end
        mask[:, :, -len(end) :] = 0
    conditionings = both(
        positive,
        negative,
        concat_latent_image=await runtime.encode(vae, video),
        concat_mask=by_cell(mask),
        clip_vision_output=_seen_together(clip_vision_start_image, clip_vision_end_image),
    )
    return *conditionings, {"samples": latents}


@node("WanFunInpaintToVideo", category=f"{CATEGORY}/fun inpaint", function="encode", return_names=PAIR_AND_LATENT)
async def wan_fun_inpaint_to_video(
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
    end_image: IMAGE | None = None,
) -> tuple[CONDITIONING, CONDITIONING, LATENT]:
    """What a video begins and ends with, for Wan Fun's model that paints what is between.

    Return what `WanFirstLastFrameToVideo` does of them.
    """
    return await wan_first_last_frame_to_video(
        positive,
        negative,
        vae,
        width,
        height,
        length,
        batch_size,
        runtime,
        clip_vision_output,
        None,
        start_image,
        end_image,
    )


@node("Wan22ImageToVideoLatent", category=CATEGORY, function="encode")
async def wan22_image_to_video_latent(
    vae: VAE,
    width: Annotated[int, Int(1280, min=32, max=MAX_RESOLUTION, step=32)],
    height: Annotated[int, Int(704, min=32, max=MAX_RESOLUTION, step=32)],
    length: Annotated[int, Int(49, min=1, max=MAX_RESOLUTION, step=FRAMES)],
    batch_size: BatchSize,
    runtime: RUNTIME,
    start_image: IMAGE | None = None,
) -> LATENT:
    """Latents of a video of Wan 2.2's VAE, of which the first images may be given.

    Return the images' latents, that are not to be sampled, and the channels' means after them.

    Without images, zeros, one of them however many are asked for, as ComfyUI's. Errors: NodeError for another VAE.
    """
    latents = empty_video(width, height, length, 1, WAN_22.channels, WAN_22.factor)
    if start_image is None:
        return {"samples": latents}
    await video_vae(runtime, vae, WAN_22)
    start = await runtime.encode(vae, sized(start_image[:length], width, height))
    latents, mask = WAN_22.from_model(latents), torch.ones_like(latents[:, :1])
    latents[:, :, : start.shape[2]] = start
    mask[:, :, : start.shape[2]] = 0
    allow(batch_size, *latents.shape[1:])
    repeated = (batch_size, 1, 1, 1, 1)
    return {"samples": latents.repeat(repeated), "noise_mask": mask.repeat(repeated)}


def _seen_together(first: ClipVisionOutput | None, last: ClipVisionOutput | None) -> ClipVisionOutput | None:
    """Return what is seen in two images as the tokens of one, or in the one that there is."""
    if first is None or last is None:
        return first or last
    names = ("last_hidden_state", "penultimate_hidden_states")
    return replace(first, **{name: torch.cat([getattr(first, name), getattr(last, name)], dim=-2) for name in names})
