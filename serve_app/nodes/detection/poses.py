"""The nodes of SDPose: people's poses in images, drawn, and where their faces are."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, TypeAlias

import numpy as np
import torch
from torch import Tensor

from serve_app.execution.size import allow
from serve_app.images import resize
from serve_app.nodes.conditioning.lotus import lotus_conditioning
from serve_app.nodes.declare import node
from serve_app.nodes.detection.heatmaps import MISSING, Array, keypoints_of
from serve_app.nodes.detection.people import check_frames, face_of, person_of, points_of
from serve_app.nodes.detection.pose_drawing import Style, draw_person
from serve_app.nodes.image.bounding_boxes import Box, Found, boxes_by_image
from serve_app.nodes.inputs import Bool, Float, InputType, Int
from serve_app.nodes.sockets import BOUNDING_BOX, IMAGE, MODEL, RUNTIME, VAE
from serve_app.values import PoseSearch

POSE_KEYPOINT: TypeAlias = Annotated[list[dict[str, Any]], InputType("POSE_KEYPOINT")]
"""A frame each image: canvas_width and canvas_height in pixels, and people, as `people` has them."""
CATEGORY = "image/detection"
EMPTY = 64
"""The sides of what is drawn of no frames."""
RISES, SINKS = 3, 4
"""A face's box grows upwards by three quarters of what it grows in height, and downwards by one."""

Drawn: TypeAlias = Annotated[bool, Bool(True)]
Width: TypeAlias = Annotated[int, Int(4, min=1, max=10, step=1)]


@node(
    "SDPoseKeypointExtractor",
    "SDPose Keypoint Extractor",
    category=CATEGORY,
    return_names=("keypoints",),
    search_aliases=("openpose", "pose detection", "preprocessor", "keypoints", "sdpose"),
    description="Finds people's poses in images by SDPose.",
)
async def sdpose_keypoint_extractor(
    model: MODEL,
    vae: VAE,
    image: IMAGE,
    batch_size: Annotated[int, Int(16, min=1, max=10000, step=1)],
    runtime: RUNTIME,
    bboxes: Found | None = None,
) -> POSE_KEYPOINT:
    """People's poses, a frame each image: one of the whole image, or one of each box.

    batch_size: of whole images that are looked at together. The last image's boxes are also those of images beyond.
    Errors: NodeError for a model that finds no poses.
    """
    family = await runtime.family(model)
    family.check_search(PoseSearch(torch.empty(0), torch.empty(0), 0, 0))
    size: tuple[int, int] = family.image_size
    images = image[..., :3].float()
    count, height, width = images.shape[:3]
    boxes = boxes_by_image(bboxes) if bboxes else []
    looks = [
        (number, cut)
        for number in range(count)
        for cut in _cuts(boxes[min(number, len(boxes) - 1)] if boxes else (), width, height)
    ]
    at_once = 1 if boxes else batch_size
    allow(min(at_once, len(looks)), size[1], size[0], 3)
    text = lotus_conditioning()[0][0]
    people: list[list[dict[str, list[float]]]] = [[] for _ in range(count)]
    for first in range(0, len(looks), at_once):
        batch = looks[first : first + at_once]
        pixels = await asyncio.to_thread(_pixels, images, batch, size)
        latents = await runtime.encode(vae, pixels)
        heatmaps = await runtime.search(model, PoseSearch(latents, text, first, len(looks)))
        found = await asyncio.to_thread(_keypoints, heatmaps, size)
        for (number, cut), (points, scores) in zip(batch, found, strict=True):
            people[number].append(person_of(_in_image(points, cut, size), scores))
    return [{"canvas_width": width, "canvas_height": height, "people": of_image} for of_image in people]


def _keypoints(heatmaps: Tensor, size: tuple[int, int]) -> list[tuple[Array, Array]]:
    return [keypoints_of(one, size) for one in heatmaps]


_Cut: TypeAlias = tuple[int, int, int, int]
"""Left, top, right and bottom in pixels."""


def _cuts(boxes: Sequence[Box], width: int, height: int) -> list[_Cut]:
    """Return what is looked at of an image: each box, but those that hold nothing of it; all without boxes."""
    if not boxes:
        return [(0, 0, width, height)]
    cuts = [
        (
            max(0, int(box["x"])),
            max(0, int(box["y"])),
            min(width, int(box["x"] + box["width"])),
            min(height, int(box["y"] + box["height"])),
        )
        for box in boxes
    ]
    return [cut for cut in cuts if cut[2] > cut[0] and cut[3] > cut[1]]


def _pixels(images: Tensor, looks: Sequence[tuple[int, _Cut]], size: tuple[int, int]) -> Tensor:
    """Return cuts of images (B,H,W,3), squeezed into one size, (N,h,w,3)."""
    width, height = size
    made = []
    for number, (left, top, right, bottom) in looks:
        cut = images[number, top:bottom, left:right][None]
        shrinks = height <= cut.shape[1] and width <= cut.shape[2]
        made.append(resize(cut, width, height, "area" if shrinks else "bilinear"))
    return torch.cat(made)


def _in_image(points: Array, cut: _Cut, size: tuple[int, int]) -> Array:
    """Return points (K,2) of a squeezed cut as those of the image."""
    left, top, right, bottom = cut
    missing = points[:, 0] < 0
    scaled = np.stack(
        [points[:, 0] / (size[0] / (right - left)) + left, points[:, 1] / (size[1] / (bottom - top)) + top], axis=-1
    )
    scaled[missing] = MISSING
    return scaled


@node(
    "SDPoseDrawKeypoints",
    "SDPose Draw Keypoints",
    category=CATEGORY,
    search_aliases=("openpose", "pose detection", "preprocessor", "keypoints", "pose"),
)
def sdpose_draw_keypoints(
    keypoints: POSE_KEYPOINT,
    draw_body: Drawn,
    draw_hands: Drawn,
    draw_face: Drawn,
    draw_feet: Annotated[bool, Bool(False)],
    stick_width: Width,
    face_point_size: Annotated[int, Int(3, min=1, max=10, step=1)],
    score_threshold: Annotated[float, Float(0.3, min=0.0, max=1.0, step=0.01)],
    draw_head: Drawn,
) -> IMAGE:
    """People's poses on black, an image each frame, of the first one's size. Errors: NodeError for what is no pose."""
    frames = check_frames(keypoints)
    if not frames:
        return torch.zeros(1, EMPTY, EMPTY, 3)
    width, height = frames[0]["canvas_width"], frames[0]["canvas_height"]
    allow(len(frames), height, width, 3)
    style = Style(
        draw_body,
        draw_head,
        draw_feet,
        draw_face,
        draw_hands,
        stick_width,
        face_point_size,
        score_threshold,
    )
    canvases = np.zeros((len(frames), height, width, 3), dtype=np.uint8)
    for canvas, frame in zip(canvases, frames, strict=True):
        for person in frame["people"]:
            draw_person(canvas, *points_of(person), style)
    return torch.from_numpy(canvases).float() / 255.0


@node(
    "SDPoseFaceBBoxes",
    "SDPose Face Bounding Boxes",
    category=CATEGORY,
    return_names=("bboxes",),
    search_aliases=("face bbox", "face bounding box", "pose", "keypoints"),
)
def sdpose_face_b_boxes(
    keypoints: POSE_KEYPOINT,
    scale: Annotated[
        float,
        Float(1.5, min=1.0, max=10.0, step=0.1, tooltip="How many times the area of a face its box has."),
    ],
    force_square: Annotated[bool, Bool(True, tooltip="Makes boxes as high as they are wide.")],
) -> BOUNDING_BOX:
    """Boxes around people's faces, a list each frame. Errors: NodeError for what is no pose."""
    made = []
    for frame in check_frames(keypoints):
        size = frame["canvas_width"], frame["canvas_height"]
        faces = [face for person in frame["people"] if (face := face_of(person)) is not None]
        boxes = [_face_box(face, size, scale, square=force_square) for face in faces]
        made.append([box for box in boxes if box is not None])
    return made


def _face_box(face: Array, size: tuple[int, int], scale: float, *, square: bool) -> Mapping[str, int] | None:
    """Return a box around points (N,2) within a canvas, None where it holds nothing."""
    width, height = size
    points = face / np.array(size, dtype=np.float32) * np.array(size)
    (left, top), (right, bottom) = points.min(axis=0), points.max(axis=0)
    wide, high = right - left, bottom - top
    if wide <= 0 or high <= 0:
        return None
    area = wide * high * scale
    wider = (math.sqrt(area * (wide / high)) - wide) / 2
    higher = (math.sqrt(area * (high / wide)) - high) / SINKS
    x1, x2 = int(max(left - wider, 0)), int(min(right + wider, width))
    y1, y2 = int(max(top - RISES * higher, 0)), int(min(bottom + higher, height))
    if x2 <= x1 or y2 <= y1:
        return None
    if square and x2 - x1 != y2 - y1:
        side = max(x2 - x1, y2 - y1)
        half = side // 2
        x1, y1 = max(0, (x1 + x2) // 2 - half), max(0, (y1 + y2) // 2 - half)
        x2, y2 = min(width, x1 + side), min(height, y1 + side)
        # Where the canvas ends, the box moves back into it.
        x1, y1 = max(0, x2 - side), max(0, y2 - side)
    return {"x": x1, "y": y1, "width": x2 - x1, "height": y2 - y1}
