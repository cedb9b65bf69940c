"""Which replica gets a task. Pure: reads records, changes nothing.

Order of preference: the replica that holds or is computing most of the task's values, then one whose weights are
resident, then the least busy, then the first by name so that the choice is reproducible.
"""

from __future__ import annotations

from collections.abc import Iterable, Set
from dataclasses import dataclass, field

from serve_app.graph.graph import Graph
from serve_app.graph.plan import TaskId
from serve_app.scheduler.messages import ReplicaInfo
from serve_app.scheduler.results import Results


@dataclass(slots=True)
class ReplicaRecord:
    """A replica as the scheduler knows it. recipes: what weights it holds, e.g. "checkpoints/a.safetensors".

    vacated: those of the running tasks that take no slot any more. quarantined: the job that it is kept for alone.
    """

    info: ReplicaInfo
    running: set[TaskId] = field(default_factory=set)
    vacated: set[TaskId] = field(default_factory=set)
    recipes: tuple[str, ...] = ()
    quarantined: str | None = None

    @property
    def free(self) -> bool:
        """Whether it can take one more task of any job."""
        return self.quarantined is None and len(self.running) - len(self.vacated) < self.info.slots

    def runs_only(self, job_id: str) -> bool:
        """Whether nothing of any other job runs on it."""
        return all(task_id.job_id == job_id for task_id in self.running)


def choose(
    replicas: Iterable[ReplicaRecord], signatures: Set[str], constants: Set[str], results: Results
) -> ReplicaRecord:
    """Return the best of the replicas, of which there is one at least, for these node signatures and constants."""

    def score(replica: ReplicaRecord) -> tuple[int, int, int, str]:
        name = replica.info.replica_id
        held = sum(name in results.holders(s) or results.owner(s) in replica.running for s in signatures)
        resident = sum(recipe.rpartition("/")[2] in constants for recipe in replica.recipes)
        return (-held, -resident, len(replica.running), name)

    return min(replicas, key=score)


def constants_of(graph: Graph, nodes: Iterable[str]) -> frozenset[str]:
    """Return the string constants of the nodes: among them are the model file names the task will ask for."""
    values = (value for node_id in nodes for value in graph.nodes[node_id].inputs.values())
    return frozenset(value.rpartition("/")[2] for value in values if isinstance(value, str))
