"""The nodes of Kandinsky 5: a text for each encoder, first images, and first frames as bright as those after them.

Source: Arkhipkin et al. 2025, arXiv:2511.14993.
"""

from __future__ import annotations

from typing import Annotated

import torch

from serve_app.errors import NodeError
from serve_app.nodes.conditioning.text_encoders import Line
from serve_app.nodes.declare import node
from serve_app.nodes.inputs import MAX_RESOLUTION, Int
from serve_app.nodes.latent.empty import FRAMES, BatchSize, cells_in_time, empty_video
from serve_app.nodes.sockets import CLIP, CONDITIONING, IMAGE, LATENT, RUNTIME, VAE
from serve_app.nodes.video.wan import both, sized, video_vae
from serve_app.sampling.latents.latent_formats import HUNYUAN_VIDEO
from serve_app.values import Texts

CATEGORY = "model/conditioning/kandinsky"
MEAN_BOUNDS, SPREAD_BOUNDS = (0.3, 0.35), (0.35, 0.5)
"""How far below and above its own a first frame's mean and deviation may come."""


@node("CLIPTextEncodeKandinsky5", "CLIP Text Encode (Kandinsky 5)", category=CATEGORY)
async def clip_text_encode_kandinsky5(clip: CLIP, clip_l: Line, qwen25_7b: Line, runtime: RUNTIME) -> CONDITIONING:
    """A text for each of Kandinsky 5's encoders."""
    return await runtime.encode_text(clip, Texts(l=clip_l, qwen25_7b=qwen25_7b))


@node("Kandinsky5ImageToVideo", category=CATEGORY, return_names=("positive", "negative", "latent", "cond_latent"))
async def kandinsky5_image_to_video(
    positive: CONDITIONING,
    negative: CONDITIONING,
    vae: VAE,
    width: Annotated[int, Int(768, min=16, max=MAX_RESOLUTION, step=16)],
    height: Annotated[int, Int(512, min=16, max=MAX_RESOLUTION, step=16)],
    length: Annotated[int, Int(121, min=1, max=MAX_RESOLUTION, step=FRAMES)],
    batch_size: BatchSize,
    runtime: RUNTIME,
    start_image: IMAGE | None = None,
) -> tuple[CONDITIONING, CONDITIONING, LATENT, LATENT]:
    """What a video begins with, for a model that has it in the place of the first frames that it samples.

    Return both conditionings with the images, empty latents of the video, and the images' latents, none without images.

    Errors: NodeError for a VAE of another family.
    """
    latents = empty_video(width, height, length, batch_size)
    if start_image is None:
        return positive, negative, {"samples": latents}, {"samples": latents[:, :, :0]}
    await video_vae(runtime, vae, HUNYUAN_VIDEO)
    start = sized(start_image[:length], width, height)
    encoded = await runtime.encode(vae, start)
    mask = torch.ones(1, 1, *latents.shape[2:])
    mask[:, :, : cells_in_time(len(start_image))] = 0
    conditionings = both(positive, negative, time_dim_replace=encoded, concat_mask=mask)
    return *conditionings, {"samples": latents}, {"samples": encoded}


@node("NormalizeVideoLatentStart", category="model/conditioning", return_names=("latent",))
def normalize_video_latent_start(
    latent: LATENT,
    start_frame_count: Annotated[int, Int(4, min=1, max=MAX_RESOLUTION, step=1)],
    reference_frame_count: Annotated[int, Int(5, min=1, max=MAX_RESOLUTION, step=1)],
) -> LATENT:
    """A video whose first latent frames have the mean and the deviation of those after them, within bounds.

    Errors: NodeError where no frames come after the first ones.
    """
    samples: torch.Tensor = latent["samples"]
    if samples.shape[2] <= 1:
        return latent
    first = samples[:, :, :start_frame_count]
    after = samples[:, :, start_frame_count : start_frame_count + min(reference_frame_count, samples.shape[2] - 1)]
    if not after.shape[2]:
        raise NodeError(
            f"the video has {samples.shape[2]} latent frames, and none after the first {start_frame_count} to take the "
            "mean of; lower start_frame_count"
        )
    mean, spread = first.mean(dim=(1, 3, 4), keepdim=True), first.std(dim=(1, 3, 4), keepdim=True)
    wanted_mean = after.mean().clamp(mean - MEAN_BOUNDS[0], mean + MEAN_BOUNDS[1])
    wanted_spread = after.std().clamp(spread - SPREAD_BOUNDS[0], spread + SPREAD_BOUNDS[1])
    changed = (first - mean) / (spread + 1e-8) * wanted_spread + wanted_mean
    return {**latent, "samples": torch.cat([changed, samples[:, :, start_frame_count:]], dim=2)}
