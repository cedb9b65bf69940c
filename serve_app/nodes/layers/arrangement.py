"""A stack of layers as the page's editor arranged it. It comes from a client: nothing of it is taken unchecked."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from serve_app.nodes.image.regions import rgb
from serve_app.nodes.inputs import MAX_RESOLUTION
from serve_app.nodes.layers.stack import Ground, Layer, finite

_HEX = re.compile(r"#([0-9A-Fa-f]{6}|[0-9A-Fa-f]{3})")


@dataclass(frozen=True, slots=True)
class Arrangement:
    """What was arranged. inputs: the digests of the layers that it was made of. canvas: (w,h)."""

    inputs: Any
    canvas: tuple[int, int]
    ground: Ground | None
    layers: Sequence[Any]
    order: Any

    @classmethod
    def read(cls, given: Any) -> Arrangement | None:
        """Return what the page sent, as JSON or as data; None for none or for what is none."""
        if isinstance(given, str):
            try:
                given = json.loads(given)
            except ValueError:
                return None
        if not isinstance(given, Mapping) or given.get("version", 1) != 1 or not isinstance(given.get("layers"), list):
            return None
        canvas = given.get("canvas")
        sides = [finite(canvas.get(side), 0) for side in ("w", "h")] if isinstance(canvas, Mapping) else []
        if not sides or min(sides) < 0.5:
            return None
        width, height = map(round, sides)
        ground = _ground(given.get("background"))
        return cls(given.get("inputs"), (width, height), ground, given["layers"], given.get("order"))

    def of(self, stack: Sequence[Layer]) -> list[Layer]:
        """Return the layers as they are arranged, the lowest first."""
        given, order = self.layers, self.order
        arranged = [_moved(layer, given[place] if place < len(given) else None) for place, layer in enumerate(stack)]
        if not isinstance(order, list) or not all(type(place) is int for place in order):
            return arranged
        if sorted(order) != list(range(len(given))):
            return arranged
        return [arranged[place] for place in order if place < len(arranged)]


def _moved(layer: Layer, given: Any) -> Layer:
    """Return a layer where an arrangement has it. Its numbers are kept within bounds."""
    given = given if isinstance(given, Mapping) else {}
    place = given.get("transform")
    place = place if isinstance(place, Mapping) else {}
    rows, columns = layer.image.shape[1:3]
    w, h = (finite(place.get(key), side) for key, side in (("w", columns), ("h", rows)))
    mode = given.get("blend")
    return replace(
        layer,
        x=min(max(finite(place.get("x"), 0.0), -MAX_RESOLUTION), MAX_RESOLUTION),
        y=min(max(finite(place.get("y"), 0.0), -MAX_RESOLUTION), MAX_RESOLUTION),
        w=min(w, MAX_RESOLUTION) if w > 0 else columns,
        h=min(h, MAX_RESOLUTION) if h > 0 else rows,
        rotation=finite(place.get("rotation"), 0.0),
        opacity=min(max(finite(given.get("opacity"), 1.0), 0.0), 1.0),
        mode=mode if isinstance(mode, str) else "normal",
        visible=bool(given.get("visible", True)),
        flip_h=bool(given.get("flipH", False)),
        flip_v=bool(given.get("flipV", False)),
    )


def _ground(given: Any) -> Ground | None:
    if not isinstance(given, Mapping) or not given.get("visible", True):
        return None
    return Ground(_colour(given.get("color")), min(max(finite(given.get("opacity"), 1.0), 0.0), 1.0))


def _colour(value: Any) -> tuple[float, float, float]:
    """Return #RRGGBB or #RGB as red, green and blue in 0…1; white for anything else."""
    found = _HEX.fullmatch(value.strip()) if isinstance(value, str) else None
    if found is None:
        return (1.0, 1.0, 1.0)
    digits = found[1] if len(found[1]) == 6 else "".join(2 * digit for digit in found[1])
    return rgb(f"#{digits}")
