"""The nodes of tone curves, and of the histograms beneath them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any

import torch
from torch import Tensor

from serve_app.errors import NodeError
from serve_app.nodes.declare import node
from serve_app.nodes.inputs import InputType
from serve_app.nodes.sockets import HISTOGRAM, IMAGE

LEVELS = 256
LUMINANCE = (0.2126, 0.7152, 0.0722)
"""Of red, green and blue. Source: ITU-R BT.709."""


@dataclass(frozen=True)
class Curve:
    """A tone curve through points (x, y), by x; its text is as ComfyUI's. linear: straight between them, not smooth."""

    points: list[tuple[float, float]]
    linear: bool = False

    def __repr__(self) -> str:
        return f"{'LinearCurve' if self.linear else 'MonotoneCubicCurve'}(points={self.points})"


@node(
    "CurveEditor",
    "Curve Editor",
    category="utilities",
    function="edit",
    return_types=("CURVE",),
    return_names=("curve",),
    has_intermediate_output=True,
)
def curve_editor(
    curve: Annotated[
        Mapping[str, Any] | Sequence[Sequence[float]] | Curve,
        InputType(
            "CURVE",
            {"default": {"points": [[0.0, 0.0], [1.0, 1.0]], "interpolation": "monotone_cubic"}, "socketless": True},
        ),
    ],
    histogram: HISTOGRAM | None = None,
) -> Any:
    """A curve drawn on the page. Return the curve that was drawn, and show the histogram on the page.

    curve: of older pages its points alone. Errors: NodeError for what has no points.
    """
    made = curve if isinstance(curve, Curve) else _drawn(curve)
    return (made,) if histogram is None else {"ui": {"histogram": list(histogram)}, "result": (made,)}


def _drawn(curve: Mapping[str, Any] | Sequence[Sequence[float]]) -> Curve:
    drawn = curve if isinstance(curve, Mapping) else {"points": curve}
    try:
        points = sorted(((float(x), float(y)) for x, y in drawn["points"]), key=lambda point: point[0])
    except (KeyError, TypeError, ValueError) as error:
        raise NodeError(f"curve is {str(curve)[:200]!r}; it must have points [x, y]") from error
    return Curve(points, linear=drawn.get("interpolation") == "linear")


@node(
    "ImageHistogram",
    "Image Histogram",
    category="utilities",
    function="count",
    return_types=("HISTOGRAM",) * 5,
    return_names=("rgb", "luminance", "red", "green", "blue"),
)
def image_histogram(image: IMAGE) -> tuple[list[int], ...]:
    """How many pixels have each level.

    Return 256 numbers each, of the first image: the channels' mean, luminance, red, green and blue.
    """
    red, green, blue = channels = image[0, ..., :3].movedim(-1, 0)
    luminance = sum(share * channel for share, channel in zip(LUMINANCE, (red, green, blue), strict=True))
    colours = [_counts(channel) for channel in channels]
    mean = torch.stack(colours).sum(0) // 3
    return tuple(counts.tolist() for counts in (mean, _counts(luminance), *colours))


def _counts(plane: Any) -> Tensor:
    return torch.bincount((plane * (LEVELS - 1)).clamp(0, LEVELS - 1).long().flatten(), minlength=LEVELS)
