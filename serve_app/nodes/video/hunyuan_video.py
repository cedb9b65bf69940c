"""The nodes of HunyuanVideo 1.5: empty latents, and conditioning for first images.

Its autoencoder makes a cell of four images in time and 16 pixels a side. Source: Wu et al. 2025, arXiv:2511.18870.
"""

from __future__ import annotations

from typing import Annotated, TypeAlias

import torch
from torch import Tensor

from serve_app.nodes.declare import node
from serve_app.nodes.inputs import MAX_RESOLUTION, Int
from serve_app.nodes.latent.empty import FRAMES, BatchSize, cells_in_time, empty_video
from serve_app.nodes.sampling.ksampler import FACTOR
from serve_app.nodes.sockets import CLIP_VISION_OUTPUT, CONDITIONING, IMAGE, LATENT, RUNTIME, VAE
from serve_app.nodes.video.wan import PAIR_AND_LATENT, both, sized, video_vae
from serve_app.sampling.latents.latent_formats import HUNYUAN_VIDEO_15

Width: TypeAlias = Annotated[int, Int(848, min=16, max=MAX_RESOLUTION, step=16)]
Height: TypeAlias = Annotated[int, Int(480, min=16, max=MAX_RESOLUTION, step=16)]


def _empty(width: int, height: int, length: int, batch_size: int) -> Tensor:
    return empty_video(width, height, length, batch_size, HUNYUAN_VIDEO_15.channels, HUNYUAN_VIDEO_15.factor)


@node(
    "EmptyHunyuanVideo15Latent",
    "Empty HunyuanVideo 1.5 Latent",
    category="model/latent/hunyuan video",
    function="generate",
    required=("batch_size",),
)
def empty_hunyuan_video15_latent(
    width: Width,
    height: Height,
    length: Annotated[int, Int(25, min=1, max=MAX_RESOLUTION, step=FRAMES)],
    batch_size: BatchSize = 1,
) -> LATENT:
    """Empty latents of a video of HunyuanVideo 1.5."""
    return {"samples": _empty(width, height, length, batch_size), FACTOR: HUNYUAN_VIDEO_15.factor}


@node("HunyuanVideo15ImageToVideo", category="model/conditioning/hunyuan video", return_names=PAIR_AND_LATENT)
async def hunyuan_video15_image_to_video(
    positive: CONDITIONING,
    negative: CONDITIONING,
    vae: VAE,
    width: Width,
    height: Height,
    length: Annotated[int, Int(33, min=1, max=MAX_RESOLUTION, step=FRAMES)],
    batch_size: BatchSize,
    runtime: RUNTIME,
    start_image: IMAGE | None = None,
    clip_vision_output: CLIP_VISION_OUTPUT | None = None,
) -> tuple[CONDITIONING, CONDITIONING, LATENT]:
    """What a video begins with, for a model that is shown it beside what it samples.

    Return both conditionings with the images and what is seen in them, and empty latents of the video.

    Errors: NodeError for a VAE of another family.
    """
    latents = _empty(width, height, length, batch_size)
    image = mask = None
    if start_image is not None:
        await video_vae(runtime, vae, HUNYUAN_VIDEO_15)
        start = sized(start_image[:length], width, height)
        encoded = await runtime.encode(vae, start)
        image = torch.zeros_like(latents)
        image[:, :, : encoded.shape[2]] = encoded
        mask = torch.ones(1, 1, *latents.shape[2:])
        mask[:, :, : cells_in_time(len(start))] = 0
    seen = clip_vision_output
    conditionings = both(positive, negative, concat_latent_image=image, concat_mask=mask, clip_vision_output=seen)
    return *conditionings, {"samples": latents}
