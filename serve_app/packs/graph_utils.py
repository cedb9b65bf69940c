"""`comfy_execution.graph_utils` and `comfy_execution.graph` for node packs: building the subgraphs that nodes return.

Source: the facts of ComfyUI 0.3.64's modules of these names.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from serve_app.errors import NodeError
from serve_app.execution.call import ExecutionBlocker
from serve_app.execution.executing import executing
from serve_app.execution.expansion import DependencyCycleError, DynamicPrompt, as_link
from serve_app.graph.graph import Link


class NodeInputError(NodeError):
    """A node asks for an input that it does not have."""


class NodeNotFoundError(NodeError):
    """There is no node of that id."""


def is_link(value: Any) -> bool:
    """Whether a value of a prompt is [node id, slot]."""
    return isinstance(as_link(value), Link)


class Node:
    """A node of a subgraph in the making."""

    def __init__(self, id: str, class_type: str, inputs: dict[str, Any]) -> None:
        self.id, self.class_type, self.inputs = id, class_type, inputs
        self.override_display_id: str | None = None

    def out(self, index: int) -> list[Any]:
        """Return a link to an output slot."""
        return [self.id, index]

    def set_input(self, key: str, value: Any) -> None:
        """Set an input; None takes it away."""
        if value is None:
            self.inputs.pop(key, None)
        else:
            self.inputs[key] = value

    def get_input(self, key: str) -> Any:
        """Return an input, or None."""
        return self.inputs.get(key)

    def set_override_display_id(self, override_display_id: str) -> None:
        """Set the node that displays this one's progress."""
        self.override_display_id = override_display_id

    def serialize(self) -> dict[str, Any]:
        """Return the node as wire JSON."""
        wire: dict[str, Any] = {"class_type": self.class_type, "inputs": self.inputs}
        if self.override_display_id is not None:
            wire["override_display_id"] = self.override_display_id
        return wire


class GraphBuilder:
    """A subgraph in the making. Without a prefix its ids begin with the running node's, NODE.ELEMENT.SUBGRAPH."""

    def __init__(self, prefix: str | None = None) -> None:
        self.prefix = GraphBuilder.alloc_prefix() if prefix is None else prefix
        self.nodes: dict[str, Node] = {}
        self.id_gen = 1

    @classmethod
    def set_default_prefix(cls, prefix_root: str, call_index: int, graph_index: int = 0) -> None:
        """Do nothing: the prefix is that of the node that runs."""

    @classmethod
    def alloc_prefix(
        cls, root: str | None = None, call_index: int | None = None, graph_index: int | None = None
    ) -> str:
        """Return a new prefix; what is given replaces the running node's part."""
        call = executing()
        own = (".0.0." if call is None else call.prefix()).rsplit(".", 3)
        given = (root, call_index, graph_index)
        return ".".join(str(old if new is None else new) for old, new in zip(own, given, strict=False)) + "."

    def node(self, class_type: str, id: str | None = None, **kwargs: Any) -> Node:
        """Add a node, or return the one that has this id."""
        if id is None:
            id = str(self.id_gen)
            self.id_gen += 1
        return self.nodes.setdefault(self.prefix + id, Node(self.prefix + id, class_type, kwargs))

    def lookup_node(self, id: str) -> Node | None:
        """Return a node by its id without the prefix, or None."""
        return self.nodes.get(self.prefix + id)

    def finalize(self) -> dict[str, Any]:
        """Return the subgraph as wire JSON, for a node's "expand"."""
        return {node_id: node.serialize() for node_id, node in self.nodes.items()}

    def replace_node_output(self, node_id: str, index: int, new_value: Any) -> None:
        """Put a value in the place of every link to an output; None takes the inputs away."""
        for node in self.nodes.values():
            for key in [k for k, v in node.inputs.items() if is_link(v) and v == [self.prefix + node_id, index]]:
                node.set_input(key, new_value)

    def remove_node(self, id: str) -> None:
        """Take a node away."""
        del self.nodes[self.prefix + id]


def add_graph_prefix(
    graph: Mapping[str, Any], outputs: Sequence[Any], prefix: str
) -> tuple[dict[str, Any], tuple[Any, ...]]:
    """Return a subgraph and its results with a prefix before every id."""

    def prefixed(value: Any) -> Any:
        return [prefix + value[0], value[1]] if is_link(value) else value

    nodes = {
        prefix + node_id: {
            "class_type": wire["class_type"],
            "inputs": {name: prefixed(value) for name, value in wire.get("inputs", {}).items()},
        }
        for node_id, wire in graph.items()
    }
    return nodes, tuple(prefixed(value) for value in outputs)


__all__ = [
    "DependencyCycleError",
    "DynamicPrompt",
    "ExecutionBlocker",
    "GraphBuilder",
    "Node",
    "NodeInputError",
    "NodeNotFoundError",
    "add_graph_prefix",
    "is_link",
]
