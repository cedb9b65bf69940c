"""Where loops begin and end in a graph: which start an end closes, which nodes are between, and what is wrong.

The nodes themselves are in `nodes/logic/loops.py`. Source: the facts of ComfyUI 0.38's `validate_loops`.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Sequence

from serve_app.errors import NodeError
from serve_app.graph.graph import Graph, Link

START, END = "StartLoop", "EndLoop"
MOST_LOOPS = 50
"""Of loops before an end: to find what one closes, all before it are looked at."""


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
        dependent, stack = set(), [start]
        while stack:
            for consumer in consumers.get(stack.pop(), ()):
                if consumer not in dependent:
                    dependent.add(consumer)
                    stack.append(consumer)
        return [node_id for node_id in before if node_id in dependent]

    def sources(self, node_id: str) -> dict[str, None]:
        """Return all nodes that a node depends on, in a fixed order."""
        if node_id not in self._before:
            found: dict[str, None] = {}
            stack = [node_id]
            while stack:
                for source in self._links(stack.pop()):
                    if source not in found:
                        found[source] = None
                        stack.append(source)
            self._before[node_id] = found
        return self._before[node_id]

    def _is(self, node_id: str, class_type: str) -> bool:
        return self._class_of(node_id) == class_type


def closing(graph: Graph, outputs: Collection[str]) -> tuple[list[str], list[tuple[str, str]]]:
    """Return the ends of the loops that outputs lie in, and the nodes that are wrong, each with the reason.

    No link asks for such an end, but without it the loop would not run. graph: without circles. outputs: the output
    nodes that are wanted; loops that none of them needs or lies in are not looked at.
    """
    if not any(node.class_type in (START, END) for node in graph.nodes.values()):
        return [], []
    loops = Loops(
        lambda node_id: [link.node_id for _, link in graph.nodes[node_id].links() if link.node_id in graph.nodes],
        lambda node_id: graph.nodes[node_id].class_type,
    )
    needed = {*outputs, *(source for output in outputs for source in loops.sources(output))}
    ends = [node.id for node in graph.nodes.values() if node.class_type == END]
    asked = [end for end in ends if end in needed or not loops.sources(end).keys().isdisjoint(outputs)]
    open_ = {node_id for node_id in needed if graph.nodes[node_id].class_type == START}
    wrong: list[tuple[str, str]] = []
    bodies: dict[str, tuple[str, set[str]]] = {}
    for end in asked:
        try:
            start = loops.start_of(end)
        except NodeError as error:
            wrong.append((end, str(error)))
            return [], wrong
        bodies[end] = start, {start, *loops.between(start, end)}
        open_.discard(start)
    wrong += [(start, "no End Loop closes it") for start in sorted(open_)]
    for end, (start, body) in bodies.items():
        accumulate = graph.nodes[end].inputs.get("accumulate")
        if isinstance(accumulate, Link) and accumulate.node_id in body:
            wrong.append((end, f"accumulate depends on node {accumulate.node_id}, which is in the loop"))
        wrong += ((output, reason) for output, reason in _escapes(loops, outputs, start, end, body))
    return [end for end in asked if end not in needed], wrong


def _escapes(
    loops: Loops, outputs: Collection[str], start: str, end: str, body: Collection[str]
) -> Iterator[tuple[str, str]]:
    """Yield the outputs that depend on a loop's nodes and not on its end alone, and why that is wrong."""
    for output in outputs:
        before = loops.sources(output)
        if output not in body and start in before and end not in before:
            yield (
                output,
                f"it is in the loop that begins with node {start}, and node {end} does not end it: connect it to a "
                "termination of the End Loop",
            )
