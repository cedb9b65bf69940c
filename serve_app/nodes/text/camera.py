"""The node that describes in words where a camera stands around a subject."""

from __future__ import annotations

from bisect import bisect_right
from math import cos, radians, sin
from typing import Annotated, Any

from serve_app.nodes.declare import node
from serve_app.nodes.inputs import Float, InputType, Int, Text
from serve_app.nodes.sockets import IMAGE, STRING

AROUND = (
    *("front view", "front-right quarter view", "right side view", "back-right quarter view"),
    *("back view", "back-left quarter view", "left side view", "front-left quarter view"),
)
"""Every 45 degrees, the first about 0."""
HEIGHTS = ((-15, 15, 45), ("low-angle shot", "eye-level shot", "elevated shot", "high-angle shot"))
"""Where one begins after another, in degrees, and their names."""
DISTANCES = ((2, 6), ("wide shot", "medium shot", "close-up"))
"""The same by zoom."""
CENTRE = {"x": 0.0, "y": 0.5, "z": 0.0}
"""Of the subject, a cube of side 1 on the ground."""
FAR, NEAR, MOST_ZOOM = 6.0, 3.2, 10.0
FIELD_OF_VIEW = 35.0


@node(
    "CameraAngle",
    "Camera Angle",
    category="3d",
    function="look",
    return_names=("camera_info", "prompt"),
    description="Chooses from where a subject is seen; returns the camera, and the shot in words for a prompt.",
    search_aliases=("multi angle", "camera view", "orbit camera", "shot angle", "camera prompt"),
)
def camera_angle(
    horizontal_angle: Annotated[int, Int(0, min=0, max=360, step=1)],
    vertical_angle: Annotated[int, Int(0, min=-30, max=60, step=1)],
    zoom: Annotated[float, Float(5.0, min=0.0, max=MOST_ZOOM, step=0.1)],
    image: IMAGE | None = None,
    view: Annotated[str, Text("", multiline=False, socketless=True, widgetType="CAMERA_ANGLE_VIEW")] = "",
) -> tuple[Annotated[dict[str, Any], InputType("LOAD3D_CAMERA")], STRING]:
    """A camera around a subject.

    Return the camera and the shot's name. Angles are in degrees; image and view are for the page alone.
    """
    around, up = radians(horizontal_angle), radians(vertical_angle)
    distance = FAR - (FAR - NEAR) * zoom / MOST_ZOOM
    direction = {"x": cos(up) * sin(around), "y": sin(up), "z": cos(up) * cos(around)}
    camera = {
        "position": {axis: CENTRE[axis] + distance * share for axis, share in direction.items()},
        "target": dict(CENTRE),
        "zoom": 1.0,
        "cameraType": "perspective",
        "fov": FIELD_OF_VIEW,
    }
    side = AROUND[int((horizontal_angle % 360 + 22.5) // 45) % len(AROUND)]
    return camera, f"{side} {_named(HEIGHTS, vertical_angle)} {_named(DISTANCES, zoom)}"


def _named(terms: tuple[tuple[int, ...], tuple[str, ...]], value: float) -> str:
    starts, names = terms
    return names[bisect_right(starts, value)]
