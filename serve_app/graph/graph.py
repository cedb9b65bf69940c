"""A parsed workflow: nodes by id, links as values. Immutable once made."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Annotated, Any, TypeAlias


@dataclass(frozen=True, slots=True)
class Link:
    """The value of an input that comes from another node's output slot."""

    node_id: str
    slot: int


@dataclass(frozen=True, slots=True)
class BadLink:
    """The value of an input that is a bare list but no valid link. value: the list."""

    value: Any


InputValue: TypeAlias = Annotated[Any, Link, BadLink]
"""The value of an input: a constant, which is any JSON value, or one of these classes."""


@dataclass(frozen=True, slots=True)
class Origin:
    """The origin of a node that another one made.

    display: the node that displays its progress. parent: the node that made it. real: the submitted node that it
    derives from.
    """

    display: str
    parent: str
    real: str


@dataclass(frozen=True, slots=True)
class Node:
    """One node: its class and inputs, each a constant, a Link, or a BadLink, which is refused.

    fingerprint: the result of its class's IS_CHANGED; part of the node's signature.
    """

    id: str
    class_type: str
    inputs: Mapping[str, InputValue]
    fingerprint: Any = None

    def links(self) -> Iterator[tuple[str, Link]]:
        """Yield (input name, link) for every linked input."""
        return ((name, value) for name, value in self.inputs.items() if isinstance(value, Link))


@dataclass(frozen=True, slots=True)
class Graph:
    """A workflow. Acyclic and complete once `validate` has passed it."""

    nodes: Mapping[str, Node]

    def ancestors(self, targets: Iterable[str]) -> list[str]:
        """Return the targets and their ancestors in topological order. Errors: KeyError for an unknown id."""
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
