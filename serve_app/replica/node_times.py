"""Durations of nodes in one replica by class, for metrics."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from time import perf_counter

from serve_app.graph.plan import Task, TaskId

UNREAD = 10_000
"""The most durations kept unread."""
MADE = "(made by a node)"
"""The label of a node that is not in the job's prompt."""


class NodeTimes:
    """Durations of the nodes of one replica's tasks. held: how many results came from the cache."""

    def __init__(self) -> None:
        self.held = 0
        self._durations: deque[tuple[str, float]] = deque(maxlen=UNREAD)
        self._since: dict[tuple[TaskId, str], float] = {}

    def began(self, task: Task, node_id: str) -> None:
        """Note that a node has begun to run."""
        self._since[task.id, node_id] = perf_counter()

    def ended(self, task: Task, node_id: str, *, computed: bool) -> None:
        """Note that a node has ended."""
        since = self._since.pop((task.id, node_id), None)
        if not computed:
            self.held += 1
        elif since is not None:
            node = task.nodes.get(node_id)
            self._durations.append((MADE if node is None else node.class_type, perf_counter() - since))

    def over(self, task_id: TaskId) -> None:
        """Forget the nodes of an ended task."""
        for key in [key for key in self._since if key[0] == task_id]:
            del self._since[key]

    def read(self) -> Iterator[tuple[str, float]]:
        """Yield and remove (class, seconds) of every node that has not been read yet."""
        while self._durations:
            yield self._durations.popleft()
