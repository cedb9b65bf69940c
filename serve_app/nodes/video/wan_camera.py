"""The nodes of Wan Fun's camera models: a camera's path as rays through every pixel, and what a video begins with.

A ray is six numbers, its Plücker coordinates. Sources: Sitzmann et al. 2021, arXiv:2106.02634; He et al. 2024
(CameraCtrl), arXiv:2404.02101.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Annotated

import torch
from torch import Tensor

from serve_app.execution.size import allow
from serve_app.nodes.declare import node
from serve_app.nodes.inputs import Combo, Float, InputType
from serve_app.nodes.latent.empty import FRAMES, BatchSize, empty_video
from serve_app.nodes.sockets import CLIP_VISION_OUTPUT, CONDITIONING, IMAGE, INT, LATENT, RUNTIME, VAE
from serve_app.nodes.video.wan import (
    CATEGORY,
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
from serve_app.sampling.latents.latent_formats import WAN

CAMERA = f"{CATEGORY}/camera"
EMBEDDING = "WAN_CAMERA_EMBEDDING"
_RAY = 6

_PATHS: Mapping[str, tuple[float, tuple[float, float, float]]] = {
    "Static": (0.0, (0, 0, 0)),
    "Pan Up": (0.0, (0, -1, 0)),
    "Pan Down": (0.0, (0, 1, 0)),
    "Pan Left": (0.0, (-1, 0, 0)),
    "Pan Right": (0.0, (1, 0, 0)),
    "Zoom In": (0.0, (0, 0, 2)),
    "Zoom Out": (0.0, (0, 0, -2)),
    "Anti Clockwise (ACW)": (-1.0, (0, 0, 0)),
    "ClockWise (CW)": (1.0, (0, 0, 0)),
}
"""How a camera turns around its axis and moves right, down and forward, each in the units below."""
_TURN, _WAY = math.pi / 3, 1.5
_PROPORTIONS = 1280 / 720
"""Width over height of the images that focal lengths are shares of."""

_Share = Float(0.5, min=0.0, max=1.0, step=1e-9, advanced=True)
_Centre = Float(0.5, min=0.0, max=1.0, step=0.01, advanced=True)


@node(
    "WanCameraEmbedding",
    category=CAMERA,
    function="encode",
    return_types=(EMBEDDING, "INT", "INT", "INT"),
    return_names=("camera_embedding", "width", "height", "length"),
)
def wan_camera_embedding(
    camera_pose: Annotated[str, Combo(_PATHS, default="Static")],
    width: Width,
    height: Height,
    length: Length,
    speed: Annotated[float, Float(1.0, min=0.0, max=10.0, step=0.1)] = 1.0,
    fx: Annotated[float, _Share] = 0.5,
    fy: Annotated[float, _Share] = 0.5,
    cx: Annotated[float, _Centre] = 0.5,
    cy: Annotated[float, _Centre] = 0.5,
) -> tuple[Tensor, INT, INT, INT]:
    """A camera that moves evenly, by the rays through its pixels, (1,24,T,height,width): those of FRAMES images a cell.

    speed: times the path's own. fx, fy: focal lengths; cx, cy: the axis's place, in shares of an image.
    """
    allow(length + FRAMES, height, width, _RAY)
    share = torch.arange(length) / length * speed
    turns, way = _PATHS[camera_pose]
    proportions = width / height
    across = fx * max(1.0, _PROPORTIONS / proportions) * width
    down = fy * max(1.0, proportions / _PROPORTIONS) * height
    rays = _rays(
        share * turns * _TURN,
        share[:, None] * torch.tensor(way, dtype=torch.float32) * _WAY,
        (torch.arange(width) + 0.5 - cx * width) / across,
        (torch.arange(height) + 0.5 - cy * height) / down,
    )
    # The first cell is of one image, which stands for all.
    filled = torch.cat([rays[:1].expand(FRAMES - 1, -1, -1, -1), rays])
    whole = filled[: len(filled) // FRAMES * FRAMES].view(-1, FRAMES, *filled.shape[1:])
    # (T,FRAMES,6,H,W) -> (1,6·FRAMES,T,H,W)
    return whole.permute(2, 1, 0, 3, 4).flatten(0, 1)[None], width, height, length


@node("WanCameraImageToVideo", category=CAMERA, function="encode", return_names=PAIR_AND_LATENT)
async def wan_camera_image_to_video(
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
    camera_conditions: Annotated[Tensor | None, InputType(EMBEDDING)] = None,
) -> tuple[CONDITIONING, CONDITIONING, LATENT]:
    """What a video begins with, and the camera's path.

    Return both conditionings with both, and empty latents of the video. Errors: NodeError for another VAE.
    """
    latents = empty_video(width, height, length, batch_size)
    image = mask = None
    if start_image is not None:
        await video_vae(runtime, vae, WAN)
        start = sized(start_image[:length], width, height)
        encoded = await runtime.encode(vae, start)
        image = WAN.from_model(torch.zeros_like(latents))
        image[:, :, : encoded.shape[2]] = encoded
        known = unknown(latents)
        known[:, :, : len(start) + FRAMES - 1] = 0
        mask = by_cell(known)
    conditionings = both(
        positive,
        negative,
        concat_latent_image=image,
        concat_mask=mask,
        camera_conditions=camera_conditions,
        clip_vision_output=clip_vision_output,
    )
    return *conditionings, {"samples": latents}


def _rays(turned: Tensor, moved: Tensor, x: Tensor, y: Tensor) -> Tensor:
    """Return the rays (n,6,H,W) of a camera in n places: moment, then direction.

    turned: (n,) radians around its axis; moved: (n,3). x: (W,), y: (H,), of pixels at distance 1.
    """
    at = torch.stack([*torch.meshgrid(y, x, indexing="ij")][::-1], dim=-1)
    ahead = torch.nn.functional.normalize(torch.nn.functional.pad(at, (0, 1), value=1.0), dim=-1)
    cos, sin, zero, one = turned.cos(), turned.sin(), torch.zeros_like(turned), torch.ones_like(turned)
    turn = torch.stack([cos, -sin, zero, sin, cos, zero, zero, zero, one], dim=1).view(-1, 3, 3)
    directions = torch.einsum("hwj,nij->nhwi", ahead, turn)
    moments = torch.linalg.cross(moved[:, None, None].expand_as(directions), directions)
    return torch.cat([moments, directions], dim=-1).permute(0, 3, 1, 2)
