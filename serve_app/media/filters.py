"""FFmpeg's filters on single frames: rotation by the display matrix, and padding."""

from __future__ import annotations

import itertools
from fractions import Fraction
from typing import Any

from serve_app.media.container import pyav

Steps = tuple[tuple[str, str], ...]

TURNS: dict[int, Steps] = {
    1: (("transpose", "cclock"),),
    2: (("hflip", ""), ("vflip", "")),
    3: (("transpose", "clock"),),
}
"""Filters by the number of counterclockwise quarter turns."""


class Filters:
    """Filters for the frames of one stream with a time base, cached by size and format."""

    def __init__(self, time_base: Fraction) -> None:
        self._time_base = time_base
        self._graphs: dict[tuple[Steps, int, int, str], tuple[Any, Any, Any]] = {}

    def upright(self, frame: Any) -> Any:
        """Return a frame turned as its display matrix says."""
        steps = TURNS.get(round(frame.rotation / 90) % 4)
        return frame if steps is None else self._through(steps, frame)

    def padded(self, frame: Any, multiple: int) -> Any:
        """Return a frame whose sides are multiples of a number, its last column and row repeated."""
        width, height = (-(-side // multiple) * multiple for side in (frame.width, frame.height))
        edges = f"left=0:right={width - frame.width}:top=0:bottom={height - frame.height}:mode=smear"
        return self._through((("pad", f"{width}:{height}:0:0"), ("fillborders", edges)), frame)

    def _through(self, steps: Steps, frame: Any) -> Any:
        key = (steps, frame.width, frame.height, frame.format.name)
        if key not in self._graphs:
            graph = pyav().filter.Graph()
            about = {"width": frame.width, "height": frame.height, "format": frame.format.name}
            nodes = [graph.add_buffer(**about, time_base=self._time_base)]
            nodes += [graph.add(name, arguments or None) for name, arguments in steps]
            nodes.append(graph.add("buffersink"))
            for before, after in itertools.pairwise(nodes):
                before.link_to(after)
            graph.configure()
            self._graphs[key] = (graph, nodes[0], nodes[-1])
        _, source, sink = self._graphs[key]
        source.push(frame)
        return sink.pull()
