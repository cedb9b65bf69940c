"""The ancestors of a graph's output nodes, also for invalid graphs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from serve_app.errors import InvalidGraphError
from serve_app.graph.graph import Graph
from serve_app.graph.parse import parse
from serve_app.graph.spec import NodeSpec


def ancestry(
    prompt: Mapping[str, Any], specs: Mapping[str, NodeSpec], targets: Sequence[str] | None = None
) -> dict[str, set[str]]:
    """Return each requested output node with its ancestors; broken links are ignored."""
    try:
        graph = parse(prompt)
    except InvalidGraphError:
        return {}
    wanted = [
        node.id
        for node in graph.nodes.values()
        if node.class_type in specs and specs[node.class_type].output_node and (targets is None or node.id in targets)
    ]
    return {output: _needed(graph, output) for output in wanted}


def _needed(graph: Graph, output: str) -> set[str]:
    needed, stack = {output}, [output]
    while stack:
        for _, link in graph.nodes[stack.pop()].links():
            if link.node_id in graph.nodes and link.node_id not in needed:
                needed.add(link.node_id)
                stack.append(link.node_id)
    return needed
