"""Stacks of layers that are composed beside ComfyUI: items without their pictures, and arrangements of the page."""

from __future__ import annotations

from typing import Any

MODES = [
    "normal",
    "multiply",
    "screen",
    "overlay",
    "darken",
    "lighten",
    "color-dodge",
    "color-burn",
    "hard-light",
    "soft-light",
    "difference",
    "exclusion",
    "linear-dodge",
    "linear-burn",
    "vivid-light",
    "pin-light",
    "linear-light",
    "hard-mix",
    "subtract",
    "divide",
    "grain-extract",
    "grain-merge",
    "hue",
    "saturation",
    "color",
    "luminosity",
]

BELOW: dict[str, Any] = {"seed": 1, "shape": [1, 10, 12, 4], "x": 0, "y": 0, "z_index": 0}
"""Transparent in part."""
CANVAS = (14, 12)


def over(**item: Any) -> list[dict[str, Any]]:
    return [BELOW, {"seed": 2, "shape": [1, 8, 9, 3], "x": 3, "y": 2, "z_index": 1, **item}]


STACKS: dict[str, dict[str, Any]] = {
    **{mode: {"items": over(blend_mode=mode, opacity=0.8), "canvas": CANVAS} for mode in MODES},
    **{
        f"{mode} of black and white": {"items": over(blend_mode=mode, rounded=True), "canvas": CANVAS} for mode in MODES
    },
    "mask of another size": {"items": over(mask=[1, 4, 3]), "canvas": CANVAS},
    "batch under one mask": {"items": over(shape=[2, 8, 9, 4], mask=[1, 8, 9], opacity=0.6), "canvas": CANVAS},
    "turned, flipped and resized": {
        "items": over(rotation=0.6, flip_h=True, flip_v=True, w=7, h=5, x=-2),
        "canvas": CANVAS,
    },
    "sorted by z, as large as it reaches": {"items": [*over(x=20, y=-3), {**BELOW, "seed": 4, "z_index": -1, "x": 2}]},
    "hidden": {"items": over(visible=False), "canvas": CANVAS},
    "arranged": {
        "items": over(),
        "state": {
            "canvas": {"w": 16, "h": 9.6},
            "background": {"color": "#3af", "opacity": 0.7},
            "order": [1, 0],
            "layers": [
                {"opacity": 7, "blend": "overlay", "transform": {"x": 1.5, "y": -2, "w": 10, "h": 12, "rotation": 3}},
                {"flipH": True, "blend": "none such", "transform": {"x": 4, "w": -1}},
            ],
        },
    },
}
"""canvas: (width, height). items: seed, shape, rounded and the shape of a mask in place of tensors."""
