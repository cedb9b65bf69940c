"""The files that a graph names, whose look-up may be slow in a remote store."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from serve_app.graph.dynamic import opened
from serve_app.graph.graph import Graph, Node
from serve_app.graph.spec import NodeSpec

FEW_NODES = 50


def named_files(nodes: Iterable[Node], specs: Mapping[str, NodeSpec]) -> set[tuple[str, str]]:
    """Return (folder, name) of every file that a constant of a known class names."""
    return {
        (declared.folder, value)
        for node in nodes
        if node.class_type in specs
        for declared in opened(specs[node.class_type], node.inputs).inputs
        if declared.folder is not None and isinstance(value := node.inputs.get(declared.name), str)
    }


def is_quick(graph: Graph, specs: Mapping[str, NodeSpec]) -> bool:
    """Whether validating a graph is faster than starting a thread: it is small, and needs no store."""
    return len(graph.nodes) <= FEW_NODES and not named_files(graph.nodes.values(), specs)
