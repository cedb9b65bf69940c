"""The nodes of LTX-2's videos: frame rates, images that a video begins with, and how images are made ready.

Latents are (B,c,T,h,w): the first cell in time is of one image, each of the others of FRAMES. In masks, 1 is what is to
be made, 0 what is given. Source: HaCohen et al. 2026, arXiv:2601.03233.
"""

from __future__ import annotations

from io import BytesIO
from typing import Annotated, Any, TypeAlias

import numpy as np
import torch
from torch import Tensor

from serve_app.errors import NodeError
from serve_app.execution.executing import check_cancelled
from serve_app.execution.runtime import Runtime
from serve_app.execution.size import allow
from serve_app.media.container import pyav
from serve_app.nodes.declare import node
from serve_app.nodes.inputs import MAX_RESOLUTION, Bool, Float, Int
from serve_app.nodes.sampling.ksampler import FACTOR
from serve_app.nodes.sockets import CONDITIONING, IMAGE, LATENT, RUNTIME, VAE
from serve_app.nodes.video.wan import both, sized, video_vae
from serve_app.recipe.recipe import Recipe
from serve_app.sampling.latents.latent_formats import LTX2
from serve_app.values import Latent

CATEGORY = "model/conditioning/ltxv"
FRAMES, PIXELS = LTX2.frames, LTX2.factor

Width: TypeAlias = Annotated[int, Int(768, min=64, max=MAX_RESOLUTION, step=PIXELS)]
Height: TypeAlias = Annotated[int, Int(512, min=64, max=MAX_RESOLUTION, step=PIXELS)]
Rows: TypeAlias = Annotated[int, Int(1, min=1, max=4096)]
Strength: TypeAlias = Annotated[float, Float(1.0, min=0.0, max=1.0)]


def empty_video(width: int, height: int, length: int, rows: int) -> Tensor:
    """Return empty latents of videos. Errors: NodeError for some that would be too large."""
    shape = rows, LTX2.channels, (length - 1) // FRAMES + 1, height // PIXELS, width // PIXELS
    allow(*shape)
    return torch.zeros(shape)


def mask_of(latent: Latent) -> Tensor:
    """Return a latent's noise mask by frame, which callers may change; ones (B,1,T,1,1) without one."""
    mask: Tensor | None = latent.get("noise_mask")
    samples: Tensor = latent["samples"]
    return torch.ones(samples.shape[0], 1, samples.shape[2], 1, 1) if mask is None else mask.clone()


async def begun(runtime: Runtime, vae: Recipe, latent: Latent, image: Tensor, strength: float) -> Latent:
    """Return a latent that begins with an image, which is kept by its strength. Errors: NodeError for another VAE."""
    await video_vae(runtime, vae, LTX2)
    samples: Tensor = latent["samples"]
    if samples.ndim != 5:
        raise NodeError(f"the latent is {tuple(samples.shape)}, and LTX-2's videos have five axes")
    height, width = (side * PIXELS for side in samples.shape[-2:])
    start = await runtime.encode(vae, sized(image, width, height))
    count = start.shape[2]
    if count > samples.shape[2]:
        raise NodeError(f"the images are {count} cells in time, and the video has {samples.shape[2]}")
    made, mask = samples.clone(), mask_of(latent)
    made[:, :, :count] = start
    mask[:, :, :count] = 1.0 - strength
    return {"samples": made, "noise_mask": mask}


@node("EmptyLTXVLatentVideo", category="model/latent/ltxv")
def empty_ltxv_latent_video(
    width: Width,
    height: Height,
    length: Annotated[int, Int(97, min=1, max=MAX_RESOLUTION, step=FRAMES)],
    batch_size: Rows,
) -> LATENT:
    """Empty latents of videos."""
    return {"samples": empty_video(width, height, length, batch_size), FACTOR: PIXELS}


@node("LTXVImgToVideo", category=CATEGORY, return_names=("positive", "negative", "latent"))
async def ltxv_img_to_video(
    positive: CONDITIONING,
    negative: CONDITIONING,
    vae: VAE,
    image: IMAGE,
    width: Width,
    height: Height,
    length: Annotated[int, Int(97, min=FRAMES + 1, max=MAX_RESOLUTION, step=FRAMES)],
    batch_size: Rows,
    strength: Strength,
    runtime: RUNTIME,
) -> tuple[CONDITIONING, CONDITIONING, LATENT]:
    """Latents of videos that begin with an image. Return them after both conditionings, which stay as they are."""
    empty = {"samples": empty_video(width, height, length, batch_size)}
    return positive, negative, await begun(runtime, vae, empty, image, strength)


@node("LTXVImgToVideoInplace", category=CATEGORY, return_names=("latent",))
async def ltxv_img_to_video_inplace(
    vae: VAE,
    image: IMAGE,
    latent: LATENT,
    strength: Strength,
    bypass: Annotated[bool, Bool(False, tooltip="Bypass the conditioning.")],
    runtime: RUNTIME,
) -> LATENT:
    """Latents of a video whose beginning is an image. Return them as given if they are to stay so."""
    return latent if bypass else await begun(runtime, vae, latent, image, strength)


@node("LTXVConditioning", category=CATEGORY, return_names=("positive", "negative"))
def ltxv_conditioning(
    positive: CONDITIONING,
    negative: CONDITIONING,
    frame_rate: Annotated[float, Float(25.0, min=0.0, max=1000.0, step=0.01)],
) -> tuple[CONDITIONING, CONDITIONING]:
    """Both conditionings with the frames of a second of the video."""
    return both(positive, negative, frame_rate=frame_rate)


@node("LTXVPreprocess", "LTXV Preprocess", category="video/preprocessors", return_names=("output_image",))
def ltxv_preprocess(
    image: IMAGE,
    img_compression: Annotated[int, Int(35, min=0, max=100, tooltip="Amount of compression to apply on image.")],
) -> IMAGE:
    """Images as a video's encoder leaves them, as LTX was trained. Return them with even sides."""
    if img_compression == 0:
        return image
    made = []
    for one in image:
        check_cancelled()
        made.append(_compressed(one, img_compression))
    return torch.stack(made)


def _compressed(image: Tensor, crf: int) -> Tensor:
    """Return an image (H,W,C) after a round trip through H.264."""
    height, width = (side // 2 * 2 for side in image.shape[:2])
    pixels: np.ndarray[Any, Any] = (image[:height, :width, :3] * 255.0).byte().numpy()
    av, file = pyav(), BytesIO()
    with av.open(file, "w", format="mp4") as container:
        stream = container.add_stream("libx264", rate=1, options={"crf": str(crf), "preset": "veryfast"})
        stream.height, stream.width = height, width
        frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(pixels), format="rgb24").reformat(format="yuv420p")
        container.mux(stream.encode(frame))
        container.mux(stream.encode())
    with av.open(BytesIO(file.getvalue())) as container:
        decoded = next(container.decode(video=0)).to_ndarray(format="rgb24")
    return torch.from_numpy(decoded).to(image.dtype) / 255.0
