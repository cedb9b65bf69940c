"""The nodes of Wan Animate 2: who is to move, and the video after which they do."""

from __future__ import annotations

from typing import Annotated, Any

import torch

from serve_app.errors import NodeError
from serve_app.execution.size import allow
from serve_app.nodes.declare import node
from serve_app.nodes.image.match_size import resize
from serve_app.nodes.inputs import MAX_RESOLUTION, Combo, Float, Int
from serve_app.nodes.latent.empty import BatchSize, empty_video
from serve_app.nodes.sockets import CLIP_VISION_OUTPUT, CONDITIONING, IMAGE, INT, LATENT, MODEL, RUNTIME, VAE
from serve_app.nodes.video.wan import CATEGORY, GREY, PAIR_AND_LATENT, Height, Length, Width, both, video_vae
from serve_app.sampling.guidance.conditioning import with_options
from serve_app.sampling.latents.latent_formats import WAN
from serve_app.values import Conditioning

CONTINUED = 1
"""Images of an earlier video that the next one goes on from."""

_Strength = Float(1.0, min=0.0, max=10.0, step=0.01)


@node(
    "WanAnimate2ToVideo",
    category=f"{CATEGORY}/animate",
    return_names=(*PAIR_AND_LATENT, "trim_latent", "trim_image", "video_frame_offset"),
    description="Has who is seen in a reference image move as someone moves in a video: face, body and hands.",
    experimental=True,
)
async def wan_animate2_to_video(
    positive: CONDITIONING,
    negative: CONDITIONING,
    vae: VAE,
    width: Width,
    height: Height,
    length: Length,
    batch_size: BatchSize,
    video_frame_offset: Annotated[int, Int(0, min=0, max=MAX_RESOLUTION, step=1)],
    pose_strength: Annotated[float, _Strength],
    pose_start_percent: Annotated[float, Float(0.0, min=0.0, max=1.0, step=0.01)],
    pose_end_percent: Annotated[float, Float(1.0, min=0.0, max=1.0, step=0.01)],
    reference_image_strength: Annotated[float, _Strength],
    runtime: RUNTIME,
    reference_image: IMAGE | None = None,
    pose_video: IMAGE | None = None,
    clip_vision_output: CLIP_VISION_OUTPUT | None = None,
    positive_pose: CONDITIONING | None = None,
    clip_vision_output_pose: CLIP_VISION_OUTPUT | None = None,
    continue_motion: IMAGE | None = None,
) -> tuple[CONDITIONING, CONDITIONING, LATENT, INT, INT, INT]:
    """A reference and the video that moves it, for one video or the next part of a longer one.

    Return both conditionings; empty latents with a frame in front for the reference; how many of these are cut off
    before decoding; images that are in the part before too; and where the next part begins in the pose video.

    Errors: NodeError for a pose video that ends before the part begins, an end of its influence before the start, or
    another VAE than Wan 2.1's.
    """
    if pose_start_percent > pose_end_percent:
        raise NodeError(
            f"pose_start_percent is {pose_start_percent}, after pose_end_percent, {pose_end_percent}; it must not be"
        )
    await video_vae(runtime, vae, WAN)
    allow(length + 1, height, width, 3)
    reference = torch.zeros(1, height, width, 3)
    if reference_image is not None:
        reference = resize(reference_image[:1, ..., :3], width, height, "area", "center")
    video, earlier = torch.full((length, height, width, 3), GREY), 0
    if continue_motion is not None:
        before = resize(continue_motion[-CONTINUED:, ..., :3], width, height, "area", "center")
        video_frame_offset = max(0, video_frame_offset - len(before))
        video[: len(before)] = before
        earlier = (len(before) - 1) // WAN.frames + 1
    if pose_video is not None and len(pose_video) <= video_frame_offset:
        raise NodeError(
            f"pose_video has {len(pose_video)} images, and the part begins at {video_frame_offset}: nothing is left"
        )
    subject = await runtime.encode(vae, reference)
    shown = torch.cat([subject, await runtime.encode(vae, video)], dim=2)
    mask = torch.ones(1, 1, *shown.shape[2:])
    mask[:, :, : subject.shape[2] + earlier] = 0
    strength = None if reference_image_strength == 1.0 else reference_image_strength
    positive, negative = both(
        positive,
        negative,
        concat_latent_image=shown,
        concat_mask=mask,
        clip_vision_output=clip_vision_output,
        reference_strength=strength,
    )
    moving: dict[str, Any] = {"clip_vision_output_pose": clip_vision_output_pose or clip_vision_output}
    if pose_video is not None:
        part = resize(pose_video[video_frame_offset:][:length, ..., :3], width, height, "area", "center")
        part = torch.cat([part, part[-1:].expand(length - len(part), -1, -1, -1)])
        moving["pose_video_latent"] = await runtime.encode(vae, part)
    # Of both: the other video is the same, with or without guidance.
    if told := (positive if positive_pose is None else positive_pose):
        moving["cross_attn_pose"] = told[0][0]
    if pose_strength != 1.0:
        moving["pose_strength"] = pose_strength
    moving = {name: value for name, value in moving.items() if value is not None}
    between = pose_start_percent, pose_end_percent
    positive, negative = (_during(one, moving, *between) for one in (positive, negative))
    latents = empty_video(width, height, length, batch_size)
    samples = torch.cat([latents.new_zeros(*latents.shape[:2], subject.shape[2], *latents.shape[3:]), latents], dim=2)
    cut = max(0, earlier * WAN.frames - 3)
    return positive, negative, {"samples": samples}, subject.shape[2], cut, video_frame_offset + length


def _during(conditioning: Conditioning, moving: dict[str, Any], start: float, end: float) -> Conditioning:
    """Return a conditioning with options between two shares of the sampling, and without them before and after."""
    if start <= 0.0 and end >= 1.0:
        return with_options(conditioning, **moving)
    parts = with_options(conditioning, **moving, start_percent=start, end_percent=end)
    if start > 0.0:
        parts += with_options(conditioning, start_percent=0.0, end_percent=start)
    if end < 1.0:
        parts += with_options(conditioning, start_percent=end, end_percent=1.0)
    return parts


@node(
    "WanAnimate2Cache",
    category=f"{CATEGORY}/animate",
    description="Keeps nothing here: what a cache would hold is computed in each step, exactly and in no memory.",
    experimental=True,
)
def wan_animate2_cache(
    model: MODEL,
    device: Annotated[str, Combo(["cpu", "gpu"], default="cpu")],
    dtype: Annotated[str, Combo(["default", "int8", "int4"], default="default")],
) -> MODEL:
    """The model as it is: ComfyUI keeps what blocks read of the pose video from one step to the next, perhaps rounded.

    A batch here has rows of several jobs, and weights that stream, beside which a cache of that size has no room.
    """
    return model
