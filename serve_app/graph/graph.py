"""A parsed workflow: nodes by id, links as values. Immutable once made."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class Link:
    """The value of an input that comes from another node's output slot."""

    node_id: str
    slot: int


@dataclass(frozen=True, slots=True)
class BadLink:
    """The value of an input that is a bare list but no link. value: the list as it was given."""

    value: Any


@dataclass(frozen=True, slots=True)
class Origin:
    """Where a node that another one made comes from.

    display: the node that shows what it does. parent: the node that made it. real: the submitted node it goes back to.
    """

    display: str
    parent: str
    real: str


@dataclass(frozen=True, slots=True)
class Node:
    """One node: its class and inputs, each a constant (any JSON value), a Link, or a BadLink, which is refused.

    fingerprint: what its class said of the world outside the prompt (IS_CHANGED); part of the node's identity.
    """

    id: str
    class_type: str
    inputs: Mapping[str, Any]
    fingerprint: Any = None

    def links(self) -> Iterator[tuple[str, Link]]:
        """Yield (input name, link) for every linked input."""
        return ((name, value) for name, value in self.inputs.items() if isinstance(value, Link))


@dataclass(frozen=True, slots=True)
class Graph:
    """A workflow. Acyclic and complete once `validate` has passed it."""

    nodes: Mapping[str, Node]

    def ancestors(self, targets: Iterable[str]) -> list[str]:
        """Return the targets and all they need, each after what it needs. Errors: KeyError for an unknown id."""
        order: dict[str, None] = {}
        stack = [(node_id, False) for node_id in reversed(list(targets))]
        while stack:
            node_id, ready = stack.pop()
            if node_id in order:
                continue
            if ready:
                order[node_id] = None
                continue
            stack.append((node_id, True))
            stack.extend((link.node_id, False) for _, link in self.nodes[node_id].links() if link.node_id not in order)
        return list(order)
