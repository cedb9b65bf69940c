"""Scenes: one or two flat shapes on a coloured card in a white frame, their pixels and captions that describe them.

The home of everything the tiny checkpoint knows. A scene holds what a caption can say; where exactly a shape stands is
drawn within JITTER when it is rendered. Pure numpy: it knows no network.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product
from math import cos, pi, sin
from random import Random
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

Array: TypeAlias = NDArray[np.float32]
Mask: TypeAlias = NDArray[np.bool_]

SIDE = 96
"""Pixels along one side of a picture."""

FRAME = 8
"""Pixels of white on each side: one latent cell. A VAE this narrow normalises every channel over the whole picture,
which hides a flat picture's colour; what is known to be white gives it back."""

JITTER = 2
"""How many pixels a shape may stand away from its place, along each axis."""

COLOURS: dict[str, tuple[int, int, int]] = {
    "red": (220, 40, 40),
    "green": (40, 170, 70),
    "blue": (40, 80, 220),
    "yellow": (245, 210, 50),
    "purple": (150, 60, 190),
    "black": (25, 25, 30),
}
SHAPES = ("circle", "square", "triangle", "star", "ring")
SIZES = {"small": 12.0, "large": 18.0}
"""Distance in pixels from a shape's centre to its outermost point."""

PLACES = {"left": (-18, 0), "right": (18, 0), "top": (0, -18), "bottom": (0, 18), "middle": (0, 0)}
"""Offset of a shape's centre from the picture's, in pixels (x, y)."""

PHRASES = {
    "left": "on the left",
    "right": "on the right",
    "top": "at the top",
    "bottom": "at the bottom",
    "middle": "in the middle",
}


LINE = 4.0
"""How wide an outlined shape's line is, in pixels."""


@dataclass(frozen=True, slots=True)
class Thing:
    """A shape on the card; each field is a word of the vocabulary above."""

    shape: str
    colour: str
    size: str
    place: str


@dataclass(frozen=True, slots=True)
class Scene:
    """What a picture shows: things of colours other than the background's."""

    things: tuple[Thing, ...]
    background: str


def draw_scene(random: Random) -> Scene:
    """Draw a scene that is not held out; one in five has two things, side by side or one above the other."""
    while True:
        background, *colours = random.sample(list(COLOURS), 3)
        places = [random.choice(list(PLACES))]
        if random.random() < 0.2:
            places = random.choice([["left", "right"], ["top", "bottom"]])
        things = tuple(
            Thing(random.choice(SHAPES), colour, random.choice(list(SIZES)), place)
            for colour, place in zip(colours, places, strict=False)
        )
        scene = Scene(things, background)
        if not is_held_out(scene):
            return scene


def single_scenes() -> list[Scene]:
    """Return every scene of one thing, in a fixed order."""
    return [
        Scene((Thing(shape, colour, size, place),), background)
        for shape, colour, size, place, background in product(SHAPES, COLOURS, SIZES, PLACES, COLOURS)
        if colour != background
    ]


def is_held_out(scene: Scene) -> bool:
    """Whether the scene is kept from training: one combination in seven of a single thing's five words."""
    if len(scene.things) != 1:
        return False
    (thing,) = scene.things
    words = (
        list(COLOURS).index(thing.colour),
        list(COLOURS).index(scene.background),
        SHAPES.index(thing.shape),
        list(PLACES).index(thing.place),
        list(SIZES).index(thing.size),
    )
    return sum(weight * word for weight, word in zip((1, 3, 2, 5, 4), words, strict=True)) % 7 == 0


def caption(scene: Scene, random: Random) -> str:
    """Describe a scene in one of several ways, sometimes leaving out size, place or background."""
    if random.random() < 0.08:
        return random.choice([f"{scene.background} background", f"a {scene.background} background"])
    things = [_phrase(thing, random) for thing in scene.things]
    random.shuffle(things)
    text = random.choice([" and ", ", "]).join(things)
    if random.random() < 0.12:
        return text
    return random.choice(
        [
            f"{text}, {scene.background} background",
            f"{text} on a {scene.background} background",
            f"{scene.background} background, {text}",
        ]
    )


def full_caption(scene: Scene) -> str:
    """Describe everything in a scene, in the plainest order."""
    things = " and ".join(f"a {t.size} {t.colour} {t.shape} {PHRASES[t.place]}" for t in scene.things)
    return f"{things}, {scene.background} background"


def _phrase(thing: Thing, random: Random) -> str:
    words = [thing.colour, thing.shape]
    if random.random() < 0.8:
        words.insert(0, thing.size)
    if random.random() < 0.8:
        words.insert(0, "a")
    if random.random() < 0.85:
        words.append(PHRASES[thing.place])
    return " ".join(words)


def render(scene: Scene, random: Random | None = None, scale: float = 1.0, outlined: bool = False) -> Array:
    """Return the picture (H,W,3) in 0…1, edges antialiased.

    random: where the jitter comes from; None leaves every thing in its place. scale: of the whole picture, frame
    included. outlined: draw each shape's outline instead of its area.
    """
    side, fine = round(SIDE * scale), 3
    picture = np.broadcast_to(_rgb(scene.background), (side * fine, side * fine, 3)).copy()
    for thing in scene.things:
        at = (random.uniform(-JITTER, JITTER), random.uniform(-JITTER, JITTER)) if random else (0.0, 0.0)
        inside = _depth(thing, at, side * fine) >= 0
        if outlined:
            inside &= _depth(thing, at, side * fine) < LINE
        picture[inside] = _rgb(thing.colour)
    edge = round(FRAME * scale * fine)
    framed = np.ones_like(picture)
    framed[edge:-edge, edge:-edge] = picture[edge:-edge, edge:-edge]
    return np.asarray(framed.reshape(side, fine, side, fine, 3).mean(axis=(1, 3)), np.float32)


def outline(scene: Scene, random: Random | None = None) -> Array:
    """Return white lines (SIDE,SIDE,3) on black along the edges of the things, where `render` puts them."""
    fine = 3
    lines = np.zeros((SIDE * fine, SIDE * fine), np.float32)
    for thing in scene.things:
        at = (random.uniform(-JITTER, JITTER), random.uniform(-JITTER, JITTER)) if random else (0.0, 0.0)
        lines[np.abs(_depth(thing, at, SIDE * fine)) < 1.0] = 1
    shrunk = lines.reshape(SIDE, fine, SIDE, fine).mean(axis=(1, 3))
    return np.repeat(shrunk[..., None], 3, axis=2)


def where_shown(scene: Scene) -> tuple[Sequence[Mask], Mask]:
    """Return the pixels certain to be each thing's, and those certain to be the background's, whatever the jitter."""
    inside = [placements(thing) for thing in scene.things]
    cores = [np.all(masks, axis=0) for masks in inside]
    card = np.zeros((SIDE, SIDE), bool)
    card[FRAME + 1 : -FRAME - 1, FRAME + 1 : -FRAME - 1] = True
    return cores, card & ~np.any([mask for masks in inside for mask in masks], axis=0)


def placements(thing: Thing) -> list[Mask]:
    """Return a thing's pixels (SIDE,SIDE) at the ends and the middle of its jitter."""
    return [_depth(thing, (x, y), SIDE) >= 0 for x, y in product((-JITTER, 0.0, JITTER), repeat=2)]


def deep_inside(thing: Thing) -> Mask:
    """Return the pixels within the thing's outline and not on it, whatever the jitter; a small shape may have none."""
    depths = [_depth(thing, (x, y), SIDE) for x, y in product((-JITTER, 0.0, JITTER), repeat=2)]
    return np.asarray(np.all([depth >= LINE for depth in depths], axis=0))


def _rgb(colour: str) -> Array:
    return np.asarray(COLOURS[colour], np.float32) / np.float32(255)


def _depth(thing: Thing, at: tuple[float, float], resolution: int) -> Array:
    """Return how many pixels deep each point (resolution, resolution) of the picture lies in the shape; < 0 outside."""
    points = (np.arange(resolution, dtype=np.float32) + 0.5) * (SIDE / resolution) - SIDE / 2
    x = points[None, :] - (PLACES[thing.place][0] + at[0])
    y = points[:, None] - (PLACES[thing.place][1] + at[1])
    radius = SIZES[thing.size]
    distance = np.hypot(x, y)
    match thing.shape:
        case "circle":
            depth = radius - distance
        case "ring":
            depth = np.minimum(radius - distance, distance - radius * 0.5)
        case "square":
            depth = radius * 0.85 - np.maximum(abs(x), abs(y))
        case "triangle":
            depth = _polygon(x, y, [(radius, -pi / 2 + i * 2 * pi / 3) for i in range(3)])
        case "star":
            tips = [(radius, -pi / 2 + i * 2 * pi / 5) for i in range(5)]
            depth = _star(x, y, tips, radius * 0.45)
        case _:
            raise ValueError(f"shape '{thing.shape}' is unknown; shapes are {', '.join(SHAPES)}")
    return np.asarray(depth, np.float32)


def _polygon(x: Array, y: Array, corners: Sequence[tuple[float, float]]) -> Array:
    """Return the depth in a convex polygon of corners (radius, angle), clockwise on the screen."""
    points = [(r * cos(a), r * sin(a)) for r, a in corners]
    sides = []
    for (x0, y0), (x1, y1) in zip(points, points[1:] + points[:1], strict=True):
        length = np.hypot(x1 - x0, y1 - y0)
        sides.append(((x1 - x0) * (y - y0) - (y1 - y0) * (x - x0)) / length)
    return np.asarray(np.min(sides, axis=0), np.float32)


def _star(x: Array, y: Array, tips: Sequence[tuple[float, float]], inner: float) -> Array:
    """Return the depth in a star: the union of its kites, each from the centre to one tip."""
    half = pi / len(tips)
    kites = [_polygon(x, y, [(r, a), (inner, a + half), (1e-3, a + pi), (inner, a - half)]) for r, a in tips]
    core = _polygon(x, y, [(inner, a + half) for _, a in tips])
    return np.asarray(np.max([*kites, core], axis=0), dtype=np.float32)
