"""The nodes that say where, when and how strongly the entries of a CONDITIONING count.

They only write an entry's options; `sampling/guidance/conditioning.py` reads them.
"""

from __future__ import annotations

from typing import Annotated, TypeAlias

from serve_app.nodes.declare import node
from serve_app.nodes.inputs import Choice, Float, Int
from serve_app.nodes.sockets import CONDITIONING, MASK
from serve_app.sampling.guidance.conditioning import with_options

CELL = 8
"""Pixels that a cell of latents is wide and high."""

Side: TypeAlias = Annotated[int, Int(64, min=64, max=16384, step=CELL)]
Offset: TypeAlias = Annotated[int, Int(0, min=0, max=16384, step=CELL)]
ShareSide: TypeAlias = Annotated[float, Float(1.0, min=0, max=1.0, step=0.01)]
ShareOffset: TypeAlias = Annotated[float, Float(0, min=0, max=1.0, step=0.01)]
Strength: TypeAlias = Annotated[float, Float(1.0, min=0.0, max=10.0, step=0.01)]


@node("ConditioningSetArea", "Conditioning (Set Area)", category="model/conditioning/transform", function="append")
def conditioning_set_area(
    conditioning: CONDITIONING, width: Side, height: Side, x: Offset, y: Offset, strength: Strength
) -> CONDITIONING:
    """Entries that count in a rectangle of pixels. Return the entries with an area in cells and a strength."""
    area = (height // CELL, width // CELL, y // CELL, x // CELL)
    return with_options(conditioning, area=area, strength=strength, set_area_to_bounds=False)


@node(
    "ConditioningSetAreaPercentage",
    "Conditioning (Set Area with Percentage)",
    category="model/conditioning/transform",
    function="append",
)
def conditioning_set_area_percentage(
    conditioning: CONDITIONING, width: ShareSide, height: ShareSide, x: ShareOffset, y: ShareOffset, strength: Strength
) -> CONDITIONING:
    """Entries that count in a rectangle whose sides are shares of the image's.

    Return the entries with an area in shares and a strength.
    """
    area = ("percentage", height, width, y, x)
    return with_options(conditioning, area=area, strength=strength, set_area_to_bounds=False)


@node(
    "ConditioningSetAreaStrength",
    "Conditioning (Set Area Strength)",
    category="model/conditioning/transform",
    function="append",
)
def conditioning_set_area_strength(conditioning: CONDITIONING, strength: Strength) -> CONDITIONING:
    """Entries that count more or less beside others. Return the entries with a strength."""
    return with_options(conditioning, strength=strength)


@node(
    "ConditioningSetMask",
    "Conditioning (Set Mask)",
    category="model/conditioning/transform",
    function="append",
    order=("conditioning", "mask", "strength"),
)
def conditioning_set_mask(
    conditioning: CONDITIONING,
    mask: MASK,
    set_cond_area: Annotated[str, Choice(["default", "mask bounds"])],
    strength: Strength,
) -> CONDITIONING:
    """Entries that count as strongly as a mask says.

    Return the entries with a mask (N,H,W), and whether only the area that bounds it is evaluated.
    """
    mask = mask[None] if mask.ndim < 3 else mask
    to_bounds = set_cond_area != "default"
    return with_options(conditioning, mask=mask, set_area_to_bounds=to_bounds, mask_strength=strength)


@node("ConditioningSetTimestepRange", category="model/conditioning/transform", function="set_range")
def conditioning_set_timestep_range(
    conditioning: CONDITIONING,
    start: Annotated[float, Float(0.0, min=0.0, max=1.0, step=0.001)],
    end: Annotated[float, Float(1.0, min=0.0, max=1.0, step=0.001)],
) -> CONDITIONING:
    """Entries that count during a part of the sampling.

    Return the entries with the shares of the noise levels, from the top, that they count between.
    """
    return with_options(conditioning, start_percent=start, end_percent=end)
