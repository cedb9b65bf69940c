"""Which files a graph names: asking about them may be slow, as their store may be far away."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from serve_app.graph.dynamic import opened
from serve_app.graph.graph import Graph, Node
from serve_app.graph.spec import NodeSpec

FEW_NODES = 50


def named_files(nodes: Iterable[Node], specs: Mapping[str, NodeSpec]) -> set[tuple[str, str]]:
    """Return (folder, name) of every file that a constant of a known class stands for."""
    return {
        (declared.folder, value)
        for node in nodes
        if node.class_type in specs
        for declared in opened(specs[node.class_type], node.inputs).inputs
        if declared.folder is not None and isinstance(value := node.inputs.get(declared.name), str)
    }


def is_quick(graph: Graph, specs: Mapping[str, NodeSpec]) -> bool:
    """Whether reading a graph takes less time than a thread for it: it is small, and no store is asked."""
    return len(graph.nodes) <= FEW_NODES and not named_files(graph.nodes.values(), specs)
