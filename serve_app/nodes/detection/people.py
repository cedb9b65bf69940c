"""People's keypoints as POSE_KEYPOINT: frames as OpenPose writes them, each a canvas with the people on it.

A network finds 133 points of a person in COCO-WholeBody's order; here they have OpenPose's, with a neck between the
shoulders. Source: Jin et al. 2020, arXiv:2007.11858; Cao et al. 2019, arXiv:1812.08008.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, TypeAlias

import numpy as np

from serve_app.errors import NodeError
from serve_app.nodes.detection.heatmaps import Array

Person: TypeAlias = Mapping[str, Any]
Frame: TypeAlias = Mapping[str, Any]

SHOULDERS, NECK = (5, 6), 17
SURE = 0.3
"""The score above which both shoulders are there for a neck."""
MOVED = {
    1: 17,
    2: 6,
    3: 8,
    4: 10,
    6: 7,
    7: 9,
    8: 12,
    9: 14,
    10: 16,
    12: 13,
    13: 15,
    14: 2,
    15: 1,
    16: 4,
    17: 3,
}
"""Of each place of OpenPose's body that differs: the place in COCO's, with the neck behind it."""
EYES = (14, 15)
FARTHEST = 1_000_000
"""Pixels that a point may lie from the first one."""

PARTS: Mapping[str, int] = {
    "pose_keypoints_2d": 18,
    "foot_keypoints_2d": 6,
    "face_keypoints_2d": 68,
    "hand_right_keypoints_2d": 21,
    "hand_left_keypoints_2d": 21,
}
"""A person's parts in order, and how many points are drawn of each. A face has the eyes behind its own points."""
_WRITTEN = {**PARTS, "face_keypoints_2d": 70}


def person_of(points: Array, scores: Array) -> dict[str, list[float]]:
    """Return a person, of points (133,2) in pixels and scores (133,)."""
    left, right = SHOULDERS
    there = scores[left] > SURE and scores[right] > SURE
    neck = min(scores[left], scores[right]) if there else 0
    points = np.insert(points, NECK, (points[left] + points[right]) / 2, axis=0)
    scores = np.insert(scores, NECK, neck)
    order = np.arange(len(points))
    order[list(MOVED)] = list(MOVED.values())
    rows = np.concatenate([points, scores[:, None]], axis=1)[order]
    person, first = {}, 0
    for name, count in PARTS.items():
        part = rows[first : first + count]
        if name == "face_keypoints_2d":
            part = np.concatenate([part, rows[list(EYES)]])
        person[name] = part.flatten().tolist()
        first += count
    return person


def points_of(person: Person) -> tuple[Array, Array]:
    """Return a person's points (134,2) in pixels and scores (134,), in OpenPose's order; feet may be left out.

    Errors: NodeError for a part of another length.
    """
    rows = [_rows(person, name)[:count] for name, count in PARTS.items()]
    whole = np.concatenate(rows)
    return whole[:, :2], whole[:, 2]


def face_of(person: Person) -> Array | None:
    """Return the points (70,2) of a person's face with the eyes, None without one. Errors: NodeError."""
    return _rows(person, "face_keypoints_2d")[:, :2] if person.get("face_keypoints_2d") else None


def check_frames(keypoints: Any) -> Sequence[Frame]:
    """Return what is linked as frames. Errors: NodeError for what has no canvas or no people."""
    frames = keypoints if isinstance(keypoints, list) else [keypoints]
    for number, frame in enumerate(frames):
        sides = [frame.get(f"canvas_{side}") for side in ("width", "height")] if isinstance(frame, Mapping) else [None]
        if not all(isinstance(side, int) and side > 0 for side in sides) or not isinstance(frame.get("people"), list):
            raise NodeError(
                f"frame {number} of keypoints is {str(frame)[:100]!r}; it must have canvas_width, canvas_height and "
                "a list of people"
            )
    return frames


def _rows(person: Person, name: str) -> Array:
    count = _WRITTEN[name]
    given = person.get(name) or (() if name != "foot_keypoints_2d" else (0.0,) * 3 * count)
    if len(given) != 3 * count:
        raise NodeError(f"{name} of a person has {len(given)} numbers; it must have {3 * count}, x, y and score each")
    rows = np.array(given, dtype=np.float32).reshape(count, 3)
    if not (np.abs(rows) < FARTHEST).all():
        raise NodeError(f"{name} of a person has a number that is not between -{FARTHEST:,} and {FARTHEST:,}")
    return rows
