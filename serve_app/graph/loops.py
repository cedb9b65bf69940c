"""Where loops begin and end in a graph: which start an end closes, which nodes are between, and what is wrong.

The nodes themselves are in `nodes/logic/loops.py`. Source: the facts of ComfyUI 0.38's `validate_loops`.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Sequence

from serve_app.errors import NodeError
from serve_app.graph.graph import Graph, Link

START, END = "StartLoop", "EndLoop"
MOST_LOOPS = 50
"""Of loops in a graph, or before an end: to find what one closes, all before it are looked at."""


class Loops:
    """The loops of a graph without circles. links: the sources of a node; class_of: its class."""

    def __init__(self, links: Callable[[str], Sequence[str]], class_of: Callable[[str], str]) -> None:
        self._links, self._class_of = links, class_of
        self._before: dict[str, dict[str, None]] = {}
        self._starts: dict[str, str] = {}

    def start_of(self, end: str) -> str:
        """Return the innermost start before an end that no other end before it closes. Errors: NodeError without."""
        if end not in self._starts:
            self._starts[end] = self._start_of(end)
        return self._starts[end]

    def _start_of(self, end: str) -> str:
        before = self.sources(end)
        if (loops := sum(self._is(node_id, START) for node_id in before)) > MOST_LOOPS:
            raise NodeError(f"{loops} loops begin before it; {MOST_LOOPS} may")
        if (ends := sum(self._is(node_id, END) for node_id in before)) > MOST_LOOPS:
            raise NodeError(f"{ends} loops end before it; {MOST_LOOPS} may")
        closed = {self.start_of(node_id) for node_id in before if self._is(node_id, END)}
        starts = [node_id for node_id in before if self._is(node_id, START) and node_id not in closed]
        inner = [one for one in starts if not any(one in self.sources(other) for other in starts)]
        if not inner:
            raise NodeError("no Start Loop is before it")
        return inner[0]

    def between(self, start: str, end: str) -> list[str]:
        """Return the nodes that depend on the start and that the end depends on."""
        before = self.sources(end)
        consumers: dict[str, list[str]] = {}
        for node_id in before:
            for source in self._links(node_id):
                consumers.setdefault(source, []).append(node_id)
        dependent = _reached([start], lambda node_id: consumers.get(node_id, ()))
        return [node_id for node_id in before if node_id in dependent]

    def sources(self, node_id: str) -> dict[str, None]:
        """Return all nodes that a node depends on, in a fixed order."""
        if node_id not in self._before:
            self._before[node_id] = _reached([node_id], self._links)
        return self._before[node_id]

    def _is(self, node_id: str, class_type: str) -> bool:
        return self._class_of(node_id) == class_type


def _reached(beginnings: Iterable[str], next_of: Callable[[str], Iterable[str]]) -> dict[str, None]:
    """Return the nodes that others lead to, step by step, in a fixed order."""
    found: dict[str, None] = {}
    stack = list(beginnings)
    while stack:
        for node_id in next_of(stack.pop()):
            if node_id not in found:
                found[node_id] = None
                stack.append(node_id)
    return found


def closing(graph: Graph, outputs: Collection[str]) -> tuple[list[str], list[tuple[str, str]]]:
    """Return the ends of the loops that outputs lie in, and the nodes that are wrong, each with the reason.

    No link asks for such an end, but without it the loop would not run. graph: without circles. outputs: the output
    nodes that are wanted; loops that none of them needs or lies in are not looked at. The work grows with the number of
    loops, and not with that of outputs, times the nodes.
    """
    starts, ends = ([node.id for node in graph.nodes.values() if node.class_type == kind] for kind in (START, END))
    for found in (starts, ends):
        if len(found) > MOST_LOOPS:
            return [], [(found[-1], f"it is one of {len(found)}; a graph may have {MOST_LOOPS}")]
    if not starts and not ends:
        return [], []
    links = {
        node.id: [link.node_id for _, link in node.links() if link.node_id in graph.nodes]
        for node in graph.nodes.values()
    }
    consumers: dict[str, list[str]] = {}
    for node_id, before in links.items():
        for source in before:
            consumers.setdefault(source, []).append(node_id)
    loops = Loops(links.__getitem__, lambda node_id: graph.nodes[node_id].class_type)
    wanted = set(outputs)
    needed = wanted | _reached(wanted, links.__getitem__).keys()
    asked = [end for end in ends if end in needed or not loops.sources(end).keys().isdisjoint(wanted)]
    open_ = needed.intersection(starts)
    wrong: list[tuple[str, str]] = []
    bodies: dict[str, tuple[str, set[str]]] = {}
    for end in asked:
        try:
            start = loops.start_of(end)
        except NodeError as error:
            return [], [(end, str(error))]
        bodies[end] = start, {start, *loops.between(start, end)}
        open_.discard(start)
    wrong += [(start, "no End Loop closes it") for start in sorted(open_)]
    for end, (start, body) in bodies.items():
        accumulate = graph.nodes[end].inputs.get("accumulate")
        if isinstance(accumulate, Link) and accumulate.node_id in body:
            wrong.append((end, f"accumulate depends on node {accumulate.node_id}, which is in the loop"))
        after, ended = (_reached([one], lambda node_id: consumers.get(node_id, ())) for one in (start, end))
        wrong += [
            (
                output,
                f"it is in the loop that begins with node {start}, and node {end} does not end it: connect it to a "
                "termination of the End Loop",
            )
            for output in outputs
            if output in after and output not in ended and output not in body
        ]
    return [end for end in asked if end not in needed], wrong
