"""The nodes of SAM 3: masks of what texts, boxes and points show, in images and through videos."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Annotated, Any

import torch
from torch import Tensor
from torch.nn.functional import interpolate

from serve_app.errors import NodeError
from serve_app.execution.size import allow
from serve_app.nodes.declare import node
from serve_app.nodes.image.match_size import as_planes
from serve_app.nodes.inputs import Bool, Float, InputType, Int, Text
from serve_app.nodes.sockets import (
    BOUNDING_BOX,
    CONDITIONING,
    IMAGE,
    MASK,
    MODEL,
    RUNTIME,
    SAM3_TRACK_DATA,
)
from serve_app.values import Detection, Tracking

CATEGORY = "image/detection"
SIDE = 1008
"""Sides of the masks that are followed."""
_Share = Float(0.5, min=0.0, max=1.0, step=0.01)
_WHOLE = {"x": 0, "y": 0, "width": 512, "height": 512}
"""What the page begins a box with."""
_Boxes = InputType("BOUNDING_BOX", {"default": _WHOLE, "socketless": True, "forceInput": True})


@node(
    "SAM3_Detect",
    "SAM3 Detect",
    category=CATEGORY,
    return_names=("masks", "bboxes"),
    search_aliases=("sam3", "segment anything", "open vocabulary", "text detection", "segment"),
)
async def sam3_detect(
    model: MODEL,
    image: IMAGE,
    threshold: Annotated[float, _Share],
    refine_iterations: Annotated[int, Int(2, min=0, max=5)],
    individual_masks: Annotated[bool, Bool(False)],
    runtime: RUNTIME,
    conditioning: CONDITIONING | None = None,
    bboxes: Annotated[Any, _Boxes] = None,
    positive_coords: Annotated[str | None, Text(forceInput=True, multiline=False)] = None,
    negative_coords: Annotated[str | None, Text(forceInput=True, multiline=False)] = None,
) -> tuple[MASK, BOUNDING_BOX]:
    """Masks of what texts name, boxes surround or points show.

    Return masks (B,H,W), of all that is in an image, or of each thing by itself, those of one image after another's;
    and the boxes of what texts name, a list for each image. Errors: NodeError for boxes and points that are none.
    """
    count, height, width = image.shape[:3]
    allow(count, height, width)
    request = Detection(
        image,
        conditioning,
        _boxes(bboxes, count, height, width),
        _points(positive_coords, "positive_coords", height, width),
        _points(negative_coords, "negative_coords", height, width),
        threshold,
        refine_iterations,
    )
    found = await runtime.search(model, request)
    if individual_masks:
        allow(sum(len(of.masks) for of in found), height, width)
        masks = torch.cat([of.masks for of in found])
    else:
        masks = torch.stack([of.masks.any(0).float() for of in found])
    return masks, [of.boxes for of in found]


@node(
    "SAM3_VideoTrack",
    "Run SAM3 Video Track",
    category=CATEGORY,
    return_names=("track_data",),
    search_aliases=("sam3", "video", "track", "propagate"),
)
async def sam3_video_track(
    images: IMAGE,
    model: MODEL,
    detection_threshold: Annotated[float, _Share],
    max_objects: Annotated[int, Int(4, min=0, max=64)],
    detect_interval: Annotated[int, Int(1, min=1)],
    runtime: RUNTIME,
    initial_mask: MASK | None = None,
    conditioning: CONDITIONING | None = None,
) -> SAM3_TRACK_DATA:
    """Things followed through a video: those of masks in its first image, and those that texts name.

    Errors: NodeError with neither masks nor a conditioning.
    """
    if initial_mask is None and not conditioning:
        raise NodeError("neither initial_mask nor conditioning is given; one of them says what is followed")
    initial = None if initial_mask is None else as_planes(initial_mask)
    allow(len(images), max(max_objects, 0 if initial is None else len(initial)), SIDE, SIDE // 8)
    request = Tracking(images, conditioning, initial, detection_threshold, max_objects, detect_interval)
    made: dict[str, Any] = await runtime.search(model, request)
    return {**made, "orig_size": tuple(images.shape[1:3])}


@node("SAM3_TrackToMask", "SAM3 Track to Mask", category=CATEGORY, return_names=("masks",))
def sam3_track_to_mask(track_data: SAM3_TRACK_DATA, object_indices: Annotated[str, Text("", multiline=False)]) -> MASK:
    """The masks of things that were followed, as one.

    Return (T,H,W) of the size of the images. object_indices: numbers of things with commas between them; "": of all.
    """
    height, width = track_data["orig_size"]
    chosen = with_things(track_data, object_indices)
    bits = chosen["packed_masks"]
    allow(track_data["n_frames"], height, width)
    if bits is None:
        return torch.zeros(track_data["n_frames"], height, width)
    masks = torch.stack([things_of(of_frame).any(0) for of_frame in bits])[:, None].float()
    return interpolate(masks, (height, width), mode="bilinear", align_corners=False)[:, 0]


def things_of(bits: Tensor) -> Tensor:
    """Return masks (…,h,w) of their bits (…,h,w/8)."""
    places = torch.tensor([1 << bit for bit in range(8)], dtype=torch.uint8)
    return (bits[..., None] & places).bool().flatten(-2)


def with_things(track_data: Mapping[str, Any], chosen: str) -> dict[str, Any]:
    """Return SAM3_TRACK_DATA of some things alone. chosen: as `sam3_track_to_mask`'s; what is no number is left out."""
    count = 0 if track_data["packed_masks"] is None else track_data["packed_masks"].shape[1]
    if not chosen.strip():
        return with_order(track_data, range(count))
    numbers = [int(part) for part in map(str.strip, chosen.split(",")) if part.isdecimal()]
    return with_order(track_data, [number for number in numbers if number < count])


def with_order(track_data: Mapping[str, Any], order: Sequence[int]) -> dict[str, Any]:
    """Return SAM3_TRACK_DATA of things in an order, by their numbers."""
    bits, scores = track_data["packed_masks"], track_data["scores"]
    if bits is None or not order:
        return {**track_data, "packed_masks": None, "scores": []}
    kept = [scores[number] for number in order if number < len(scores)]
    return {**track_data, "packed_masks": bits[:, list(order)], "scores": kept}


def _points(text: str | None, name: str, height: int, width: int) -> list[tuple[float, float]]:
    """Return points in 0…1 of a JSON list of {"x", "y"} in pixels. Errors: NodeError."""
    if not text:
        return []
    try:
        return [(float(point["x"]) / width, float(point["y"]) / height) for point in json.loads(text)]
    except (ValueError, TypeError, KeyError) as error:
        raise NodeError(f'{name} is {text[:80]!r}; it is to be a JSON list such as [{{"x": 10, "y": 20}}]') from error


def _boxes(given: Any, count: int, height: int, width: int) -> list[Tensor | None]:
    """Return boxes (N,4) of each image, centre and size in 0…1, or None; [] without any. Errors: NodeError.

    given: a box or boxes of all images, or a list of boxes for each; those after the last have its.
    """
    if isinstance(given, Mapping):
        given = [given]
    if not given:
        return []
    by_image = given if isinstance(given[0], list) else [given] * count
    made = [_of_image(boxes, height, width) for boxes in by_image[:count]]
    return made + [made[-1]] * (count - len(made))


def _of_image(boxes: Any, height: int, width: int) -> Tensor | None:
    try:
        rows = [
            [
                (box["x"] + box["width"] / 2) / width,
                (box["y"] + box["height"] / 2) / height,
                box["width"] / width,
                box["height"] / height,
            ]
            for box in boxes
        ]
        return torch.tensor(rows, dtype=torch.float32) if rows else None
    except (TypeError, KeyError) as error:
        raise NodeError(f"bboxes has {str(boxes)[:80]}; a box has x, y, width and height in pixels") from error
