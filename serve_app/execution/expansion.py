"""Node expansion: nodes may return subgraphs, whose nodes are evaluated in their place.

`DynamicPrompt` is the value of the hidden input DYNPROMPT, so it has wire JSON and ComfyUI's method names. Source: the
facts of ComfyUI 0.3.64's `comfy_execution/graph.py`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from serve_app.errors import NodeError
from serve_app.graph.graph import Link, Node, Origin


class DuplicateNodeError(NodeError):
    """A subgraph uses the id of an existing node."""


class DependencyCycleError(NodeError):
    """Nodes made by a subgraph form a cycle."""


class DynamicPrompt:
    """The submitted prompt and the nodes that its nodes have made so far, by id, as wire JSON."""

    def __init__(self, prompt: Mapping[str, Any]) -> None:
        self._original = prompt
        self._made: dict[str, Mapping[str, Any]] = {}
        self._parents: dict[str, str] = {}
        self._displays: dict[str, str] = {}

    @property
    def grown(self) -> bool:
        """Whether a node has made others."""
        return bool(self._made)

    def get_node(self, node_id: str) -> Mapping[str, Any]:
        """Return a node's wire JSON. Errors: NodeError for an unknown id."""
        found = self._made.get(node_id, self._original.get(node_id))
        if found is None:
            raise NodeError(f"there is no node {node_id!r} in the prompt")
        return found

    def has_node(self, node_id: str) -> bool:
        """Whether a node exists, submitted or made."""
        return node_id in self._made or node_id in self._original

    def get_original_prompt(self) -> Mapping[str, Any]:
        """Return the prompt as it was submitted."""
        return self._original

    def all_node_ids(self) -> set[str]:
        """Return the ids of all nodes."""
        return {*self._original, *self._made}

    def get_parent_node_id(self, node_id: str) -> str | None:
        """Return the node that made this one, or None."""
        return self._parents.get(node_id)

    def get_display_node_id(self, node_id: str) -> str:
        """Return the node of the submitted prompt that displays this one's progress."""
        while node_id in self._displays:
            node_id = self._displays[node_id]
        return node_id

    def get_real_node_id(self, node_id: str) -> str:
        """Return the submitted node that this one comes from."""
        while node_id in self._parents:
            node_id = self._parents[node_id]
        return node_id

    def lineage(self, node_id: str) -> Iterator[str]:
        """Yield the node that made this one, the one that made that, and so on."""
        while (parent := self._parents.get(node_id)) is not None:
            yield parent
            node_id = parent

    def origin(self, node_id: str) -> Origin | None:
        """Return where a made node comes from; None for a submitted one."""
        if node_id not in self._parents:
            return None
        return Origin(self.get_display_node_id(node_id), self._parents[node_id], self.get_real_node_id(node_id))

    def expand(self, parent: str, subgraph: Mapping[str, Any]) -> list[Node]:
        """Add a subgraph that a node returned and return its nodes. Errors: DuplicateNodeError, NodeError."""
        for node_id, wire in subgraph.items():
            if self.has_node(node_id):
                raise DuplicateNodeError(
                    f"it returned a subgraph with a node {node_id!r}, an id that is taken; GraphBuilder makes new ones"
                )
            if not isinstance(wire, Mapping) or not isinstance(wire.get("class_type"), str):
                raise NodeError(f"it returned a subgraph whose node {node_id!r} has no class_type")
        for node_id, wire in subgraph.items():
            self._made[node_id] = wire
            self._parents[node_id] = parent
            self._displays[node_id] = wire.get("override_display_id") or parent
        return [
            Node(node_id, wire["class_type"], {name: as_link(v) for name, v in (wire.get("inputs") or {}).items()})
            for node_id, wire in subgraph.items()
        ]


def as_link(value: Any) -> Any:
    """Return a value of a subgraph with [node id, slot] as a Link; anything else is a constant, lists included."""
    if isinstance(value, list) and len(value) == 2 and isinstance(value[0], str):
        slot = value[1]
        if isinstance(slot, int | float) and not isinstance(slot, bool):
            return Link(value[0], int(slot))
    return value
