"""The nodes of Wan's models that move points along tracks: Wan-Move and ATI.

TRACKS is {"track_path": (F,N,2) in pixels, "track_visibility": (F,N) or (F,1)}. Sources: Chu et al. 2025 (Wan-Move),
arXiv:2512.08765; Wang et al. 2025 (ATI), arXiv:2505.22944.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Annotated, Any, TypeAlias

import torch
from torch import Tensor
from torch.nn.functional import grid_sample, pad

from serve_app.errors import NodeError
from serve_app.execution.size import allow
from serve_app.nodes.declare import node
from serve_app.nodes.inputs import Bool, Combo, Float, InputType, Int, Text
from serve_app.nodes.latent.empty import FRAMES, BatchSize, empty_video
from serve_app.nodes.sockets import CLIP_VISION_OUTPUT, CONDITIONING, IMAGE, INT, LATENT, MASK, RUNTIME, VAE
from serve_app.nodes.video.wan import (
    CATEGORY,
    GREY,
    PAIR_AND_LATENT,
    Height,
    Length,
    Width,
    both,
    sized,
    video_vae,
    wan_image_to_video,
)
from serve_app.sampling.latents.latent_formats import WAN

MOVE = f"{CATEGORY}/move"
TRACKS: TypeAlias = Annotated[Mapping[str, Tensor], InputType("TRACKS")]
PATH, VISIBLE = "track_path", "track_visibility"
POINTS = 121
"""Points of a track that ATI is trained on."""

_Share: TypeAlias = Annotated[float, Float(0.0, min=0.0, max=1.0, step=0.01)]
_Whole: TypeAlias = Annotated[float, Float(1.0, min=0.0, max=1.0, step=0.01)]
_Half: TypeAlias = Annotated[float, Float(0.5, min=0.0, max=1.0, step=0.01)]
_PACES: Mapping[str, Callable[[Tensor], Tensor]] = {
    "linear": lambda t: t,
    "ease_in": lambda t: t**2,
    "ease_out": lambda t: 1 - (1 - t) ** 2,
    "ease_in_out": lambda t: t * t * (3 - 2 * t),
    "constant": torch.zeros_like,
}
"""How far along its way a point is by the share of the time."""


@node(
    "GenerateTracks",
    "Generate Video Tracks",
    category=MOVE,
    function="generate",
    return_names=("TRACKS", "track_length"),
)
def generate_tracks(
    width: Annotated[int, Int(832, min=16, max=4096, step=16)],
    height: Annotated[int, Int(480, min=16, max=4096, step=16)],
    start_x: _Share,
    start_y: _Share,
    end_x: _Whole,
    end_y: _Whole,
    num_frames: Annotated[int, Int(81, min=1, max=1024)],
    num_tracks: Annotated[int, Int(5, min=1, max=100)],
    track_spread: Annotated[float, Float(0.025, min=0.0, max=1.0, step=0.001)],
    bezier: Annotated[bool, Bool(False)],
    mid_x: _Half,
    mid_y: _Half,
    interpolation: Annotated[str, Combo(_PACES)],
    track_mask: MASK | None = None,
) -> tuple[TRACKS, INT]:
    """Tracks beside each other along a straight way, or a curve of Bézier's through a point that draws it.

    Return the tracks and their length. track_spread: between neighbours, in shares of the mean side. track_mask: the
    images with any of it are those where points are visible.
    """
    allow(num_frames, num_tracks, 2)
    size = torch.tensor([float(width), float(height)])
    start, middle, end = (torch.tensor(point) * size for point in ((start_x, start_y), (mid_x, mid_y), (end_x, end_y)))
    t = _PACES[interpolation](torch.linspace(0, 1, num_frames))[:, None]
    if bezier:
        way = (1 - t) ** 2 * start + 2 * (1 - t) * t * middle + t**2 * end
        ahead = 2 * (1 - t) * (middle - start) + 2 * t * (end - middle)
    else:
        way, ahead = start + (end - start) * t, (end - start).expand(num_frames, -1)
    across = torch.stack([-ahead[:, 1], ahead[:, 0]], dim=1)
    length = across.norm(dim=1, keepdim=True)
    across = torch.where(length > 0, across / length, torch.tensor([1.0, 0.0]))
    apart = (torch.arange(num_tracks) - (num_tracks - 1) / 2) * track_spread * float(size.mean())
    path = way[:, None] + across[:, None] * apart[:, None]
    return {PATH: path, VISIBLE: _visible(track_mask, num_frames, num_tracks)}, num_frames


@node(
    "WanMoveTracksFromCoords",
    category=MOVE,
    function="read",
    return_names=("TRACKS", "track_length"),
)
def wan_move_tracks_from_coords(
    track_coords: Annotated[str, Text("[]", forceInput=True, multiline=False)] = "[]", track_mask: MASK | None = None
) -> tuple[TRACKS, INT]:
    """Tracks that are written as JSON: lists of {"x", "y"} in pixels. Errors: NodeError for anything else."""
    tracks = _read(track_coords)
    if not tracks or not tracks[0]:
        raise NodeError("track_coords holds no track; it must be a JSON list of lists of {x, y}")
    length = min(map(len, tracks))
    path = torch.tensor([[[x, y] for x, y in track[:length]] for track in tracks]).movedim(0, 1)
    return {PATH: path, VISIBLE: _visible(track_mask, length, len(tracks))}, length


@node("WanMoveConcatTrack", category=MOVE, function="concatenate")
def wan_move_concat_track(tracks_1: TRACKS, tracks_2: TRACKS | None = None) -> TRACKS:
    """All tracks of both. Errors: NodeError for tracks of different lengths."""
    if tracks_2 is None:
        return tracks_1
    lengths = [len(tracks[PATH]) for tracks in (tracks_1, tracks_2)]
    if lengths[0] != lengths[1]:
        raise NodeError(f"the tracks are {lengths[0]} and {lengths[1]} images long; they must be equally long")
    return {name: torch.cat([tracks_1[name], tracks_2[name]], dim=1) for name in (PATH, VISIBLE)}


@node("WanMoveTrackToVideo", category=MOVE, function="encode", return_names=PAIR_AND_LATENT)
async def wan_move_track_to_video(
    positive: CONDITIONING,
    negative: CONDITIONING,
    vae: VAE,
    strength: Annotated[float, Float(1.0, min=0.0, max=100.0, step=0.01)],
    width: Width,
    height: Height,
    length: Length,
    batch_size: BatchSize,
    start_image: IMAGE,
    runtime: RUNTIME,
    tracks: TRACKS | None = None,
    clip_vision_output: CLIP_VISION_OUTPUT | None = None,
) -> tuple[CONDITIONING, CONDITIONING, LATENT]:
    """What a video begins with, and the tracks along which its parts move.

    Return both conditionings with the first image's latents moved along the tracks, and empty latents. Where tracks
    meet in a cell the later one holds. Errors: NodeError for a VAE of images alone.
    """
    plain, without, latent = await wan_image_to_video(
        positive, negative, vae, width, height, length, batch_size, runtime, clip_vision_output, start_image
    )
    if tracks is None or not strength or not plain:
        return plain, without, latent
    given: Tensor = plain[0][1]["concat_latent_image"]
    moved = given.clone()
    path, visible = tracks[PATH][:length:FRAMES], tracks[VISIBLE][:length:FRAMES].expand(-1, tracks[PATH].shape[1])
    shown = visible & (path >= 0).all(dim=2) & (path < torch.tensor([width, height])).all(dim=2)
    cells = torch.where(shown[..., None], path // WAN.factor, -1.0).long()
    for x, y, seen in zip(cells[..., 0].T, cells[..., 1].T, shown.T, strict=True):
        at = seen[1:].nonzero()[:, 0] + 1
        at = at[at < moved.shape[2]]
        # A point that the first image does not show is its last cell's, as indices of -1 are.
        source, target = given[:, :, 0, y[0], x[0]][..., None], (slice(None), slice(None), at, y[at], x[at])
        moved[target] = given[target] + (source - given[target]) * strength
    return *both(plain, without, concat_latent_image=moved), latent


@node("WanTrackToVideo", category=MOVE, function="encode", return_names=PAIR_AND_LATENT)
async def wan_track_to_video(
    positive: CONDITIONING,
    negative: CONDITIONING,
    vae: VAE,
    tracks: Annotated[str, Text("[]", multiline=True)],
    width: Width,
    height: Height,
    length: Length,
    batch_size: BatchSize,
    temperature: Annotated[float, Float(220.0, min=1.0, max=1000.0, step=0.1, advanced=True)],
    topk: Annotated[int, Int(2, min=1, max=10, advanced=True)],
    start_image: IMAGE,
    runtime: RUNTIME,
    clip_vision_output: CLIP_VISION_OUTPUT | None = None,
) -> tuple[CONDITIONING, CONDITIONING, LATENT]:
    """What a video begins with, and tracks of points, as JSON, for ATI's model.

    Return both conditionings with latents in which the first image's are spread around each track, and empty latents.

    temperature: how narrowly; topk: how many tracks a cell is made of. Errors: NodeError for tracks that are no JSON.
    """
    read = _read(tracks)
    if not read:
        return await wan_image_to_video(
            positive, negative, vae, width, height, length, batch_size, runtime, clip_vision_output, start_image
        )
    await video_vae(runtime, vae, WAN)
    latents = empty_video(width, height, length, batch_size)
    allow(length, height, width, 3)
    images = sized(start_image[:batch_size], width, height)
    spread = []
    for image in images:
        video = torch.full((length, height, width, 3), GREY)
        video[0] = image
        encoded = WAN.to_model(await runtime.encode(vae, video))[0]
        spread.append(_spread(encoded, _points(read, (width, height), length - 1), temperature, topk))
    numbers = [number % len(spread) for number in range(batch_size)]
    image = WAN.from_model(torch.stack([spread[number][0] for number in numbers]))
    mask = torch.stack([1 - spread[number][1] for number in numbers])[:, None].expand(-1, FRAMES, -1, -1, -1)
    conditionings = both(
        positive, negative, concat_latent_image=image, concat_mask=mask, clip_vision_output=clip_vision_output
    )
    return *conditionings, {"samples": latents}


def _visible(mask: Tensor | None, frames: int, tracks: int) -> Tensor:
    """Return whether points are visible, (F,N). Errors: NodeError for a mask of another number of images."""
    if mask is None:
        return torch.ones(frames, tracks, dtype=torch.bool)
    if len(mask) != frames:
        raise NodeError(f"track_mask has {len(mask)} images, and the tracks are {frames} long; they must be equal")
    return (mask > 0).flatten(1).any(dim=1)[:, None].expand(-1, tracks)


def _read(text: str) -> list[list[tuple[float, float]]]:
    """Return the points of tracks that are written as JSON, of one or of several. Errors: NodeError."""
    try:
        found: Any = json.loads(text.replace("'", '"') or "[]")
        listed = [found] if found and isinstance(found[0], Mapping) else found
        return [[(float(point["x"]), float(point["y"])) for point in track] for track in listed]
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise NodeError(f"tracks must be a JSON list of lists of {{x, y}}, and cannot be read so: {error}") from error


def _points(tracks: Sequence[Sequence[tuple[float, float]]], size: tuple[int, int], frames: int) -> Tensor:
    """Return tracks (1+frames,N,3): x and y from the centre in half short sides, and whether they are visible.

    Tracks are cut or filled to POINTS, which the images of a video share evenly.
    """
    filled = [
        pad(torch.tensor([[*point, 1.0] for point in track[:POINTS]]), (0, 0, 0, max(0, POINTS - len(track))))
        for track in tracks
    ]
    every = torch.stack(filled, dim=1)
    every[..., :2] = (every[..., :2] - torch.tensor(size) / 2) / min(size) * 2
    common = math.gcd(POINTS - 1, frames)
    later = (torch.arange(frames) * ((POINTS - 1) // common) + 1) // max(1, frames // common)
    return torch.cat([every[:1], every[1:][later.clamp(max=POINTS - 2)]])


def _spread(video: Tensor, points: Tensor, temperature: float, topk: int) -> tuple[Tensor, Tensor]:
    """Return a video's latents (C,T,h,w) with the first frame's moved along tracks, and how much of each is those."""
    height, width = video.shape[-2:]
    short = min(height, width)
    axes = [torch.linspace(-side / short, side / short, side) for side in (height, width)]
    cells = torch.stack([*torch.meshgrid(*axes, indexing="ij")][::-1], dim=-1)
    by_cell = points[1:].view(-1, FRAMES, *points.shape[1:])
    seen = by_cell[..., 2].sum(dim=1)
    at = (by_cell[..., :2] * by_cell[..., 2:]).sum(dim=1) / (seen[..., None] + 1e-5)
    weights = torch.stack(
        [
            torch.exp(-(own - cells[:, :, None]).pow(2).sum(dim=-1) * temperature) * there.clamp(max=1)
            for own, there in zip(at, seen, strict=True)
        ]
    )
    best, which = weights.topk(min(topk, weights.shape[-1]), dim=-1)
    first = (points[0, :, :2] / torch.tensor([width / short, height / short])).clamp(-1, 1)
    features = grid_sample(video[None, :, 0], first[None, None], padding_mode="zeros", align_corners=False)[0, :, 0]
    moved = (features[:, which] * best).sum(dim=-1)
    total = best.sum(dim=-1)
    mixed = moved + video[:, 1:] * (1 - total.clamp(max=1))
    return torch.cat([video[:, :1], mixed], dim=1), torch.cat([torch.ones_like(total[:1]), total])
