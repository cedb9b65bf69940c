"""What a picture shows, told from its pixels alone: the judge of the trained checkpoint. It knows no network."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from training.scenes import COLOURS, SHAPES, Array, Mask, Scene, Thing, deep_inside, placements, where_shown

NAMES = (*COLOURS, "white")
_PALETTE = np.array([*COLOURS.values(), (255, 255, 255)], np.float32) / 255


@dataclass(frozen=True, slots=True)
class Verdict:
    """Shares, 0…1, of the pixels that have the asked colour: where each thing should be, and elsewhere on the card."""

    things: tuple[float, ...]
    background: float

    @property
    def things_shown(self) -> bool:
        """Whether each thing's colour dominates where it should be."""
        return all(share > 0.5 for share in self.things)

    @property
    def background_shown(self) -> bool:
        """Whether the background's colour dominates elsewhere."""
        return self.background > 0.5

    @property
    def shown(self) -> bool:
        """Whether the picture is the scene, as far as colours in places tell."""
        return self.things_shown and self.background_shown


def nearest_colours(image: Array) -> NDArray[np.intp]:
    """Return for each pixel of an image (H,W,3) in 0…1 the index in NAMES of the nearest colour."""
    distances = np.square(image[..., None, :] - _PALETTE).sum(-1)
    return np.asarray(distances.argmin(-1))


def judge(image: Array, scene: Scene) -> Verdict:
    """Compare an image (SIDE,SIDE,3) in 0…1 with the scene it was asked to show."""
    found = nearest_colours(image)
    cores, elsewhere = where_shown(scene)
    things = [
        float((found[core] == NAMES.index(thing.colour)).mean())
        for core, thing in zip(cores, scene.things, strict=True)
    ]
    return Verdict(tuple(things), float((found[elsewhere] == NAMES.index(scene.background)).mean()))


def shape_shown(image: Array, thing: Thing) -> str:
    """Return which shape the pixels of the thing's colour resemble most, at its place and size: the greatest overlap.

    Overlap is intersection over union, the best of several placements within the jitter.
    """
    found = nearest_colours(image) == NAMES.index(thing.colour)
    return max(SHAPES, key=lambda shape: max(_overlap(found, mask) for mask in placements(replace(thing, shape=shape))))


def hollow(image: Array, scene: Scene) -> float:
    """Return the share of pixels deep inside the scene's things that have the background's colour: 1 for outlines."""
    found = nearest_colours(image)
    inside = np.any([deep_inside(thing) for thing in scene.things], axis=0)
    return float((found[inside] == NAMES.index(scene.background)).mean())


def _overlap(found: Mask, wanted: Mask) -> float:
    return float(np.sum(found & wanted)) / float(np.sum(found | wanted))
