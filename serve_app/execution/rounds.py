"""Rounds of a job: a node may queue its job's own workflow again, which then runs once more within the job.

ComfyUI makes another prompt of it, with the same node objects: an object may keep a film open of which each prompt
reads a part. Here it stays one job, with one owner and one end; a cancellation stops all remaining rounds, and a job
that loses its replica restarts at its first round, since open files are lost.
"""

from __future__ import annotations

import copy
import itertools
from collections import defaultdict
from collections.abc import Callable, Collection, Mapping
from typing import Any

from serve_app.errors import NodeError
from serve_app.graph.graph import Link, Node
from serve_app.graph.parse import parse
from serve_app.graph.plan import Task
from serve_app.graph.spec import NodeSpec
from serve_app.store.tenants.credentials import without_credentials

_NUMBERS = itertools.count()


class Rounds:
    """The rounds of one task. spec: returns a node's spec. prompt, count: of the running round, counted from 1.

    Its methods may be called from any thread.
    """

    def __init__(self, task: Task, spec: Callable[[Node], NodeSpec]) -> None:
        self._task = task
        self._spec = spec
        self._next: Mapping[str, Any] | None = None
        self.prompt: Mapping[str, Any] = task.prompt
        self.count = 1
        self._number = next(_NUMBERS)

    @property
    def queued(self) -> bool:
        """Whether another round follows."""
        return self._next is not None

    def item(self) -> tuple[Any, ...]:
        """Return the running round as an item of ComfyUI's queue; nodes may change it.

        It is (number, job id, prompt, extra_data, targets, credentials); each round has a number of its own.
        """
        extra_data = copy.deepcopy(without_credentials(self._task.extra_data))
        prompt = copy.deepcopy(dict(self.prompt))
        return (self._number, self._task.id.job_id, prompt, extra_data, list(self._task.targets), {})

    def queue(self, prompt: Any) -> None:
        """Queue another round. Errors: NodeError for another workflow, or one that several pools run."""
        self._changed(prompt)
        self._next = copy.deepcopy(prompt)

    def begin_next(self) -> frozenset[str]:
        """Begin the queued round; return the nodes of the task to compute again."""
        if self._next is None:
            return frozenset()
        changed = self._changed(self._next)
        self.prompt, self._next = self._next, None
        self.count += 1
        self._number = next(_NUMBERS)
        return dependents(self._task.nodes, changed)

    def _changed(self, prompt: Any) -> set[str]:
        """Return the nodes whose inputs in a prompt differ from the running round's."""
        if not isinstance(prompt, Mapping) or prompt.keys() != self.prompt.keys():
            raise NodeError(f"a node may queue the workflow of its own job again, and no other; {_ALLOWED}")
        graph = parse(self.prompt)
        changed = {node_id for node_id in prompt if prompt[node_id] != self.prompt[node_id]}
        for node_id in sorted(changed):
            if self._declared(graph.nodes[node_id]) != self._declared(parse({node_id: prompt[node_id]}).nodes[node_id]):
                raise NodeError(
                    f"a node may not queue its job's workflow again with another node {node_id}; {_ALLOWED}"
                )
        needed = dependents(graph.nodes, changed) & set(graph.ancestors(self._task.targets))
        if elsewhere := sorted(needed - self._task.nodes.keys()):
            classes = ", ".join(sorted({graph.nodes[node_id].class_type for node_id in elsewhere}))
            raise NodeError(
                f"a node may queue its job's workflow again only where one pool runs all of it; not {classes}"
            )
        return changed

    def _declared(self, node: Node) -> tuple[str, dict[str, Any]]:
        """Return a node's class and declared inputs."""
        spec = self._spec(node) if node.id in self._task.nodes else None
        uses = {k: v for k, v in node.inputs.items() if spec is None or isinstance(v, Link) or spec.uses(k)}
        return node.class_type, uses


_ALLOWED = "only values of inputs that its classes do not declare may differ. Submit any other over HTTP"


def dependents(nodes: Mapping[str, Node], of: Collection[str]) -> frozenset[str]:
    """Return these of the nodes, and all nodes that need one of them."""
    consumers: defaultdict[str, list[str]] = defaultdict(list)
    for node in nodes.values():
        for _, link in node.links():
            consumers[link.node_id].append(node.id)
    found: set[str] = set()
    stack = [node_id for node_id in of if node_id in nodes]
    while stack:
        if (node_id := stack.pop()) not in found:
            found.add(node_id)
            stack.extend(consumers[node_id])
    return frozenset(found)
