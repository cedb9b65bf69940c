"""The nodes of SCAIL 2: who is to be seen, how they move, and which of them is which by the colours of masks."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any

import torch
from torch import Tensor
from torch.nn.functional import interpolate

from serve_app.execution.size import allow
from serve_app.nodes.declare import node
from serve_app.nodes.image.match_size import as_planes, resize
from serve_app.nodes.inputs import MAX_RESOLUTION, Bool, Combo, Float, InputType, Int, Text
from serve_app.nodes.latent.empty import FRAMES, BatchSize, empty_video
from serve_app.nodes.sockets import (
    CLIP_VISION_OUTPUT,
    CONDITIONING,
    IMAGE,
    INT,
    LATENT,
    RUNTIME,
    SAM3_TRACK_DATA,
    VAE,
)
from serve_app.nodes.video.sam3 import things_of, with_order, with_things
from serve_app.nodes.video.wan import CATEGORY, PAIR_AND_LATENT, both, video_vae
from serve_app.sampling.guidance.conditioning import with_more
from serve_app.sampling.latents.latent_formats import WAN
from serve_app.values import Conditioning

CELL = 8
"""Pixels of a latent cell along each side."""
_LIT, _SEEN = 225 / 255, 0.1
"""From which value on a channel of a mask is lit; above which a pixel shows someone."""
_COLOURS = ((1, 1, 1), (1, 0, 0), (0, 1, 0), (0, 0, 1), (1, 1, 0), (1, 0, 1), (0, 1, 1))
"""The colours that the network tells apart, in its order."""
_PALETTE = ((0, 0, 1), (1, 0, 0), (0, 1, 0), (1, 0, 1), (0, 1, 1), (1, 1, 0))
"""The colours that it was trained with for the first person, the second and so on."""
_SHOWN = 0.5
"""Above which a mask shows someone."""
_GAP = 1e-5
"""Between ranges of a schedule, so that no level is in two."""

_Side = Int(512, min=32, max=MAX_RESOLUTION, step=32)
_Share = Float(0.0, min=0.0, max=1.0, step=0.01)


@node(
    "WanSCAILToVideo",
    category=f"{CATEGORY}/scail",
    function="encode",
    return_names=(*PAIR_AND_LATENT, "video_frame_offset"),
    experimental=True,
)
async def wan_scail_to_video(
    positive: CONDITIONING,
    negative: CONDITIONING,
    vae: VAE,
    width: Annotated[int, _Side],
    height: Annotated[int, Int(896, min=32, max=MAX_RESOLUTION, step=32)],
    length: Annotated[int, Int(81, min=1, max=MAX_RESOLUTION, step=FRAMES)],
    batch_size: BatchSize,
    pose_strength: Annotated[float, Float(1.0, min=0.0, max=10.0, step=0.01)],
    pose_start: Annotated[float, _Share],
    pose_end: Annotated[float, Float(1.0, min=0.0, max=1.0, step=0.01)],
    video_frame_offset: Annotated[int, Int(0, min=0, max=MAX_RESOLUTION, step=1)],
    previous_frame_count: Annotated[int, Int(5, min=1, max=MAX_RESOLUTION, step=FRAMES)],
    runtime: RUNTIME,
    pose_video: IMAGE | None = None,
    pose_video_mask: IMAGE | None = None,
    replacement_mode: Annotated[bool, Bool(False)] = False,
    reference_image: IMAGE | None = None,
    reference_image_mask: IMAGE | None = None,
    clip_vision_output: CLIP_VISION_OUTPUT | None = None,
    previous_frames: IMAGE | None = None,
) -> tuple[CONDITIONING, CONDITIONING, LATENT, INT]:
    """A part of a video of those seen in references, the main one first, who move as in a video of poses.

    Return both conditionings, the latents, which begin with the end of the part before where that is given, and the
    frame at which the next part begins.

    replacement_mode: they take the place of others in the video. Errors: NodeError for another VAE than Wan 2.1's.
    """
    latents, more = empty_video(width, height, length, batch_size), {}
    await video_vae(runtime, vae, WAN)
    positive, negative = both(
        positive, negative, ref_mask_flag=not replacement_mode, clip_vision_output=clip_vision_output
    )
    before = None if previous_frames is None or not len(previous_frames) else previous_frames[-previous_frame_count:]
    if before is not None:
        video_frame_offset = max(0, video_frame_offset - len(before))
    if reference_image is not None:
        images = resize(reference_image[..., :3], width, height, "bicubic", "center")
        masks = None
        if reference_image_mask is not None:
            masks = resize(reference_image_mask[..., :3], width, height, "nearest-exact", "center")
            # The last mask is that of all references after it.
            masks = masks[torch.arange(len(images)).clamp(max=len(masks) - 1)]
        if replacement_mode and masks is not None:
            images = images * (masks.amax(dim=-1, keepdim=True) > _SEEN)
        for image in torch.split(images, 1):
            seen = await runtime.encode(vae, image)
            positive, negative = (with_more(one, reference_latents=seen) for one in (positive, negative))
        if masks is not None:
            by_image = [by_colour(mask) for mask in torch.split(masks, 1)]
            ordered = torch.cat([*by_image[1:], by_image[0]], dim=1)
            unmasked = ordered.new_zeros(1, latents.shape[2], *ordered.shape[2:])
            positive, negative = both(positive, negative, ref_mask_28ch=torch.cat([ordered, unmasked], dim=1))
    poses, pose_masks = (_from(video, video_frame_offset) for video in (pose_video, pose_video_mask))
    if there := [len(video) for video in (poses, pose_masks) if video is not None]:
        kept = (min(*there, length) - 1) // FRAMES * FRAMES + 1
        poses, pose_masks = (
            None if video is None else resize(video[:kept, ..., :3], width // 2, height // 2, "area", "center")
            for video in (poses, pose_masks)
        )
        if poses is not None:
            found = await runtime.encode(vae, poses) * pose_strength
            positive, negative = (_within(one, pose_start, pose_end, found) for one in (positive, negative))
        if pose_masks is not None:
            positive, negative = both(positive, negative, driving_mask_28ch=by_colour(pose_masks))
    if before is not None:
        begun = await runtime.encode(vae, resize(before[..., :3], width, height, "bicubic", "center"))
        count = min(begun.shape[2], latents.shape[2])
        latents[:, :, :count] = begun[:, :, :count]
        mask = torch.ones(1, 1, *latents.shape[2:])
        mask[:, :, :count] = 0.0
        more = {"noise_mask": mask}
    return positive, negative, {"samples": latents, **more}, video_frame_offset + length


def by_colour(images: Tensor) -> Tensor:
    """Return masks (1,F,28,h,w) by latent frame of coloured images (T,H,W,3): seven colours of four images each."""
    lit = images > _LIT
    colours = torch.stack([(lit == torch.tensor(one, dtype=torch.bool)).all(dim=-1) for one in _COLOURS], dim=1).float()
    size = tuple(-(-side // CELL) for side in images.shape[1:3])
    cells = interpolate(colours, size, mode="area")
    whole = torch.cat([cells[:1].expand(FRAMES, -1, -1, -1), cells[1:]])
    return whole.reshape(1, -1, FRAMES * len(_COLOURS), *size)


def _from(video: Tensor | None, first: int) -> Tensor | None:
    return None if video is None or len(video) <= first else video[first:]


def _within(conditioning: Conditioning, start: float, end: float, poses: Tensor) -> Conditioning:
    """Return the entries with poses in a part of the schedule, and as they are in the others."""
    made: Conditioning = []
    for cond, said in conditioning:
        whole = said.get("start_percent", 0.0), said.get("end_percent", 1.0)
        first, last = max(start, whole[0]), min(end, whole[1])
        if first >= last:
            made.append((cond, said))
            continue
        if first > whole[0]:
            made.append((cond, {**said, "start_percent": whole[0], "end_percent": first - _GAP}))
        made.append((cond, {**said, "pose_video_latent": poses, "start_percent": first, "end_percent": last}))
        if last < whole[1]:
            made.append((cond, {**said, "start_percent": last + _GAP, "end_percent": whole[1]}))
    return made


@node(
    "SCAIL2ColoredMask",
    "Create SCAIL-2 Colored Mask",
    category=f"{CATEGORY}/scail",
    return_names=("pose_video_mask", "reference_image_mask"),
    experimental=True,
)
def scail2_colored_mask(
    driving_track_data: SAM3_TRACK_DATA,
    object_indices: Annotated[str, Text("", multiline=False)],
    sort_by: Annotated[str, Combo(["none", "left_to_right", "area"], default="left_to_right")],
    replacement_mode: Annotated[bool, Bool(False)],
    ref_track_data: Annotated[Any, InputType("SAM3_TRACK_DATA,MASK", {"display_name": "reference_masks"})] = None,
) -> tuple[IMAGE, IMAGE]:
    """Who was followed in a video and in reference images, each in a colour of their own.

    Return masks (T,H,W,3) of the video and of the references. object_indices: as SAM3_TrackToMask's, after sorting.
    sort_by: in which order of their first images people get colours; of those first seen together from left to right,
    or the largest first. ref_track_data: people followed in the references, or a mask of one; None: no one.
    """
    behind, behind_references = (1.0, 0.0) if replacement_mode else (0.0, 1.0)
    people = with_things(_sorted(driving_track_data, sort_by), object_indices)
    driven = _coloured(people, behind)
    if isinstance(ref_track_data, Tensor):
        one = as_planes(ref_track_data)
        allow(*one.shape, 3)
        return driven, _painted((one > _SHOWN)[:, None], behind_references)
    if ref_track_data is None:
        height, width = people["orig_size"]
        return driven, torch.full((1, height, width, 3), behind_references)
    return driven, _coloured(with_things(_sorted(ref_track_data, sort_by), object_indices), behind_references)


def _sorted(track_data: Mapping[str, Any], by: str) -> dict[str, Any]:
    """Return SAM3_TRACK_DATA with its things in an order, as `scail2_colored_mask`'s."""
    bits = track_data["packed_masks"]
    if by == "none" or bits is None:
        return dict(track_data)
    keys: dict[int, tuple[int, float]] = {}
    for number, of_frame in enumerate(bits):
        for thing, mask in enumerate(things_of(of_frame).float()):
            if thing not in keys and (area := float(mask.sum())):
                middle = float((mask.sum(0) * torch.arange(mask.shape[1])).sum()) / area
                keys[thing] = (number, middle if by == "left_to_right" else -area)
    last = (len(bits), 0.0)
    return with_order(track_data, sorted(range(bits.shape[1]), key=lambda thing: keys.get(thing, last)))


def _coloured(track_data: Mapping[str, Any], behind: float) -> Tensor:
    """Return the masks (T,H,W,3) of things, each in its colour. behind: the value of what is around them."""
    (height, width), bits = track_data["orig_size"], track_data["packed_masks"]
    allow(track_data["n_frames"], height, width, 3)
    if bits is None:
        return torch.full((track_data["n_frames"], height, width, 3), behind)
    frames = (interpolate(things_of(of_frame)[None].float(), (height, width)) > _SHOWN for of_frame in bits)
    return torch.cat([_painted(frame, behind) for frame in frames])


def _painted(shown: Tensor, behind: float) -> Tensor:
    """Return images (T,H,W,3) of masks (T,N,H,W), of which the first has a cell."""
    colours = torch.tensor(_PALETTE, dtype=torch.float32)
    of_cell = colours[shown.to(torch.uint8).argmax(1) % len(_PALETTE)]
    return torch.where(shown.any(1)[..., None], of_cell, behind)
