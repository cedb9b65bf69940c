"""Draws people's keypoints as DWPose does: limbs as ellipses, hands as rainbows, a face as dots.

Whole pixels are set, so that what is drawn is ComfyUI's to the pixel where that has no OpenCV, which it does not
install. Sources: Yang et al. 2023, arXiv:2307.15880; Bresenham 1965, "Algorithm for computer control of a plotter".
"""

from __future__ import annotations

import colorsys
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np

from serve_app.nodes.detection.heatmaps import Array

Canvas: TypeAlias = np.ndarray[Any, np.dtype[np.uint8]]
Colour: TypeAlias = tuple[int, int, int]
Corners: TypeAlias = np.ndarray[Any, np.dtype[np.int64]]

COLOURS: Sequence[Colour] = (
    *((255, 0, 0), (255, 85, 0), (255, 170, 0), (255, 255, 0), (170, 255, 0), (85, 255, 0), (0, 255, 0)),
    *((0, 255, 85), (0, 255, 170), (0, 255, 255), (0, 170, 255), (0, 85, 255), (0, 0, 255), (85, 0, 255)),
    *((170, 0, 255), (255, 0, 255), (255, 0, 170), (255, 0, 85)),
)
"""Of limbs and of the body's points, by their number."""
LIMBS = ((1, 2), (1, 5), (2, 3), (3, 4), (5, 6), (6, 7), (1, 8), (8, 9), (9, 10), (1, 11), (11, 12), (12, 13))
HEAD = ((1, 0), (0, 14), (14, 16), (0, 15), (15, 17))
OF_HEAD, NECK = frozenset((0, 14, 15, 16, 17)), 1
BODY, FEET, FACE = range(18), range(18, 24), range(24, 92)
HANDS = (range(92, 113), range(113, 134))
FINGERS = tuple(
    (0 if joint == 0 else first + joint - 1, first + joint) for first in range(1, 21, 4) for joint in range(4)
)
"""From the wrist along each finger, thumb first."""
POINT = 4
"""The radius of a point of a body, a foot or a hand."""
BLUE, WHITE = (0, 0, 255), (255, 255, 255)
_COSINES, _SINES = (np.array([turn(math.radians(degree)) for degree in range(361)]) for turn in (math.cos, math.sin))
AT_EDGE = 0.01
"""Hands and faces have no point nearer to the left or upper edge."""


@dataclass(frozen=True, slots=True)
class Style:
    """What is drawn. stick: half the width of a limb; dot: radius of a face's points; least: score, both in pixels."""

    body: bool
    head: bool
    feet: bool
    face: bool
    hands: bool
    stick: int
    dot: int
    least: float


def draw_person(canvas: Canvas, points: Array, scores: Array, style: Style) -> None:
    """Draw a person's points (134,2) with scores (134,) on a canvas (H,W,3)."""
    height, width = (int(side) for side in canvas.shape[:2])

    def sure(*numbers: int) -> bool:
        return all(bool(scores[number] >= style.least) for number in numbers)

    def inside(x: int, y: int) -> bool:
        return 0 <= x < width and 0 <= y < height

    def clear(x: int, y: int) -> bool:
        return x > AT_EDGE and y > AT_EDGE and inside(x, y)

    def dots(numbers: Sequence[int], allowed: Callable[[int, int], bool], radius: int, colour: Colour | None) -> None:
        for number in filter(sure, numbers):
            x, y = (int(side) for side in points[number])
            if allowed(x, y):
                _disc(canvas, x, y, radius, COLOURS[number % len(COLOURS)] if colour is None else colour)

    for number, ends in enumerate((*LIMBS, *HEAD)):
        if (style.body if number < len(LIMBS) else style.head) and sure(*ends):
            _limb(canvas, points[ends[0]], points[ends[1]], style.stick, COLOURS[number])
    if style.body or style.head:
        shown = [n for n in BODY if (style.head if n in OF_HEAD else style.body or n == NECK)]
        dots(shown, inside, POINT, None)
    if style.feet:
        dots(FEET, inside, POINT, None)
    for hand in HANDS if style.hands else ():
        for number, (start, end) in enumerate(FINGERS):
            ends = (hand[start], hand[end])
            a, b = ((int(points[n][0]), int(points[n][1])) for n in ends)
            if sure(*ends) and clear(*a) and clear(*b):
                red, green, blue = (int(part * 255) for part in colorsys.hsv_to_rgb(number / len(FINGERS), 1.0, 1.0))
                _line(canvas, a, b, (red, green, blue))
        dots(hand, clear, POINT, BLUE)
    if style.face:
        dots(FACE, clear, style.dot, WHITE)


def _disc(canvas: Canvas, x: int, y: int, radius: int, colour: Colour) -> None:
    top, left = max(0, y - radius), max(0, x - radius)
    part = canvas[top : y + radius + 1, left : x + radius + 1]
    rows, columns = np.ogrid[top : top + part.shape[0], left : left + part.shape[1]]
    part[(columns - x) ** 2 + (rows - y) ** 2 <= radius**2] = colour


def _line(canvas: Canvas, start: tuple[int, int], end: tuple[int, int], colour: Colour) -> None:
    """Draw a line three pixels wide."""
    for x, y in _between(start, end):
        canvas[max(0, y - 1) : y + 2, max(0, x - 1) : x + 2] = colour


def _between(start: tuple[int, int], end: tuple[int, int]) -> Iterator[tuple[int, int]]:
    """Yield the pixels of a line, by Bresenham."""
    (x, y), (to_x, to_y) = start, end
    wide, high = abs(to_x - x), abs(to_y - y)
    right, down = (1 if x < to_x else -1), (1 if y < to_y else -1)
    error = wide - high
    yield x, y
    while (x, y) != end:
        twice = 2 * error
        if twice > -high:
            error -= high
            x += right
        if twice < wide:
            error += wide
            y += down
        yield x, y


def _limb(canvas: Canvas, start: Array, end: Array, stick: int, colour: Colour) -> None:
    """Draw an ellipse from one point (2,) to another, but none shorter than a pixel."""
    (x, y), (to_x, to_y) = start, end
    length = math.sqrt((y - to_y) ** 2 + (x - to_x) ** 2)
    if length < 1:
        return
    angle = math.radians(int(math.degrees(math.atan2(y - to_y, x - to_x))) % 360)
    middle = int((x + to_x) / 2), int((y + to_y) / 2)
    _fill(canvas, _ellipse(middle, (int(length / 2) + 0.5, stick + 0.5), angle), colour)


def _ellipse(middle: tuple[int, int], axes: tuple[float, float], angle: float) -> tuple[Corners, Corners]:
    """Return the x and y of the corners of an ellipse's polygon, one a degree, in whole pixels. angle: in radians."""
    cosine, sine = math.cos(angle), math.sin(angle)
    along, across = axes[0] * _COSINES, axes[1] * _SINES
    x = np.rint(middle[0] + along * cosine - across * sine)
    y = np.rint(middle[1] + along * sine + across * cosine)
    return x.astype(np.int64), y.astype(np.int64)


def _fill(canvas: Canvas, corners: tuple[Corners, Corners], colour: Colour) -> None:
    """Fill a polygon, row by row between the edges that a row crosses; an edge's lower end is not of it."""
    height, width = canvas.shape[:2]
    xs, ys = corners
    left, right = max(0, int(np.min(xs))), min(width, int(np.max(xs)) + 1)
    top, bottom = max(0, int(np.min(ys))), min(height, int(np.max(ys)) + 1)
    if left >= right or top >= bottom:
        return
    to_xs, to_ys = np.roll(xs, -1), np.roll(ys, -1)
    falls = ys <= to_ys
    (x, to_x), (y, to_y) = (
        (np.where(falls, begin, end), np.where(falls, end, begin)) for begin, end in ((xs, to_xs), (ys, to_ys))
    )
    first = np.maximum(y, top)
    counts = np.maximum(np.minimum(to_y, bottom) - first, 0)
    # Every row that an edge crosses, edge after edge.
    edge = np.repeat(np.arange(len(xs)), counts)
    row = first[edge] + np.arange(len(edge)) - np.repeat(counts.cumsum() - counts, counts)
    column = np.ceil(x[edge] + (row - y[edge]) * (to_x - x)[edge] / (to_y - y)[edge]).astype(np.int64)
    crossed = np.zeros((bottom - top, right - left + 1), dtype=np.int32)
    np.add.at(crossed, (row - top, np.clip(column, left, right) - left), 1)
    canvas[top:bottom, left:right][crossed[:, :-1].cumsum(axis=1) % 2 == 1] = colour
