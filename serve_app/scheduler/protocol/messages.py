"""The protocol between the scheduler and its replicas: messages to a replica, and its reports.

Plain data, which goes between processes by the types that are declared here (`deployments/codec.py`). The machine
decides. The ingress's protocol is in `client.py`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol, TypeAlias

from serve_app.errors import Problem
from serve_app.graph.graph import Node, Origin
from serve_app.graph.plan import Task, TaskId
from serve_app.graph.spec import NodeSpec
from serve_app.packs.routes import PackFrame, PackRoute
from serve_app.recipe.recipe import Recipe
from serve_app.scheduler.core.backoff import Owner
from serve_app.scheduler.protocol.cluster_view import HostStats
from serve_app.store.files.reserved import Contents


@dataclass(frozen=True, slots=True)
class ReplicaInfo:
    """A replica as it registers. slots: the tasks it runs at once. routes: of its pool's node packs.

    notes: for operators, such as packs that could not be imported. rank_hosts: other hosts than its own that have ranks
    of it.
    """

    replica_id: str
    pool: str
    slots: int
    routes: tuple[PackRoute, ...] = ()
    notes: tuple[str, ...] = ()
    rank_hosts: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Assign:
    """Message: run this task."""

    task: Task


@dataclass(frozen=True, slots=True)
class Interrupt:
    """Message: stop this task at its next evaluation; it is answered by TaskStopped."""

    task_id: TaskId


@dataclass(frozen=True, slots=True)
class HandOver:
    """Message: save the states of all runs, and stop every task; each is answered by TaskHandedOver."""


@dataclass(frozen=True, slots=True)
class Free:
    """Message: once no task runs, evict weights, results or both."""

    weights: bool
    results: bool


@dataclass(frozen=True, slots=True)
class Warm:
    """Message: load the weights of these models, "folder/name", while tasks run; followed by ResidentWeights."""

    models: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Prefetch:
    """Message: load these models into free memory; followed by ResidentWeights if any was loaded.

    Replaces the last one; without recipes it cancels that. spare: model files that must not be evicted, as queued jobs
    need them.
    """

    recipes: tuple[Recipe, ...] = ()
    spare: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Forget:
    """Message: evict the values of these signatures, since files that they name are deleted. Answered by Evicted."""

    signatures: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Export:
    """Message: export the value of this signature for other replicas. Answered by Exported or Evicted."""

    signature: str


@dataclass(frozen=True, slots=True)
class Deliver:
    """Message: a wanted value. value: as in Exported (an object ref on Ray, else the value itself)."""

    signature: str
    value: Any


@dataclass(frozen=True, slots=True)
class Compute:
    """Message: compute a wanted value, since no replica has or computes it."""

    signature: str


@dataclass(frozen=True, slots=True)
class Check:
    """Message: run VALIDATE_INPUTS and IS_CHANGED of these nodes, before a job is accepted. Answered by Checked.

    nodes: the whole graph, since a node may need the types of its links. node_ids: those to check.
    """

    check_id: int
    nodes: Mapping[str, Node]
    node_ids: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class SocketFrame:
    """Message: a client's frame on a websocket route of a node pack, which the replica serves."""

    socket: str
    frame: PackFrame


Message: TypeAlias = (
    Assign | Interrupt | HandOver | Export | Deliver | Compute | Check | Free | Warm | Prefetch | Forget | SocketFrame
)


@dataclass(frozen=True, slots=True)
class NodeStarted:
    """A node runs. origin: of an expanded node, here and in the reports below."""

    task_id: TaskId
    node_id: str
    origin: Origin | None = None


@dataclass(frozen=True, slots=True)
class NodeProgressed:
    """A node has done `value` of `maximum` units."""

    task_id: TaskId
    node_id: str
    value: float
    maximum: float
    origin: Origin | None = None


@dataclass(frozen=True, slots=True)
class NodeFinished:
    """The replica has a node's values, under the signature. ui: the ui dict of an output node, else None.

    computed: whether it ran for this task, rather than being cached.
    """

    task_id: TaskId
    node_id: str
    signature: str
    ui: Mapping[str, Any] | None
    origin: Origin | None = None
    computed: bool = True


@dataclass(frozen=True, slots=True)
class NodesCached:
    """Nodes that need not run, since their values are stored, or cached by a ComfyUI that runs the task."""

    task_id: TaskId
    nodes: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class NodeBlocked:
    """A node was skipped, for a reason that its client gets; the job continues."""

    task_id: TaskId
    node_id: str
    class_type: str
    message: str


PROGRESS_TEXT = "progress_text"
"""The type of the message with a text about a node, {"text": TEXT}, which ComfyUI's page shows on it."""


@dataclass(frozen=True, slots=True)
class NodeSentMessage:
    """A message from a node to its job's client. data: a JSON value."""

    task_id: TaskId
    node_id: str
    type: str
    data: Any


@dataclass(frozen=True, slots=True)
class ClientMessage:
    """A message from a node pack to a client, outside any job. data: a JSON value."""

    client_id: str
    type: str
    data: Any


@dataclass(frozen=True, slots=True)
class NodePreviewed:
    """A preview of a node's work. image: a JPEG, as stored by `Transfer.put`."""

    task_id: TaskId
    node_id: str
    image: Any
    origin: Origin | None = None


@dataclass(frozen=True, slots=True)
class TaskFinished:
    """A task has ended. took_s: the seconds that it took a slot, without loading weights; 0 if unknown."""

    task_id: TaskId
    took_s: float = 0.0


@dataclass(frozen=True, slots=True)
class TaskFailed:
    """A node raised, which ends the job: the same inputs would fail again. inputs: of the node, as text.

    out_of_memory: the process ran out of memory, which another job may have used up.
    """

    task_id: TaskId
    node_id: str
    class_type: str
    exception_type: str
    message: str
    traceback: tuple[str, ...]
    inputs: Mapping[str, Any] = field(default_factory=dict)
    out_of_memory: bool = False


@dataclass(frozen=True, slots=True)
class TaskStopped:
    """An interrupted task has ended."""

    task_id: TaskId


@dataclass(frozen=True, slots=True)
class TaskHandedOver:
    """A task has stopped so that another replica can go on with it."""

    task_id: TaskId


@dataclass(frozen=True, slots=True)
class SlotReleased:
    """A task has nothing left to compute: another may start while its results are stored."""

    task_id: TaskId


@dataclass(frozen=True, slots=True)
class TaskCancelled:
    """A node of the task has cancelled its job."""

    task_id: TaskId


@dataclass(frozen=True, slots=True)
class Want:
    """A task needs a value of a remote signature."""

    task_id: TaskId
    signature: str


@dataclass(frozen=True, slots=True)
class Exported:
    signature: str
    value: Any


@dataclass(frozen=True, slots=True)
class Evicted:
    """The replica has evicted these values."""

    signatures: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Checked:
    """The problems that a Check found, and the fingerprints of nodes with IS_CHANGED."""

    check_id: int
    problems: tuple[Problem, ...]
    fingerprints: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class ResidentWeights:
    """The recipes whose weights the replica has loaded, as short names.

    loads: those loaded since the last report, each with its seconds.
    """

    recipes: tuple[str, ...]
    loads: tuple[tuple[str, float], ...] = ()


@dataclass(frozen=True, slots=True)
class Draining:
    """Something did not stop in time, so the replica takes no tasks until it has `Reopened`, or ends.

    tenant, client_id: the owner to charge. by_job False: no job is to blame. why: for operators.
    """

    tenant: str = ""
    client_id: str | None = None
    by_job: bool = True
    why: str = "a node does not stop"


@dataclass(frozen=True, slots=True)
class NodesLinger:
    """The owners whose nodes run on after their tasks, all of them each time: they are charged with its death."""

    owners: frozenset[Owner]


@dataclass(frozen=True, slots=True)
class Reopened:
    """What did not stop has stopped: the replica stays and takes tasks again."""


Report: TypeAlias = (
    NodeStarted
    | NodeProgressed
    | NodeFinished
    | NodesCached
    | NodeBlocked
    | NodeSentMessage
    | ClientMessage
    | NodePreviewed
    | TaskFinished
    | TaskFailed
    | TaskStopped
    | TaskHandedOver
    | SlotReleased
    | TaskCancelled
    | Want
    | Exported
    | Evicted
    | ResidentWeights
    | Checked
    | Draining
    | NodesLinger
    | Reopened
)


class SchedulerForReplicas(Protocol):
    """The scheduler's interface for replicas. Errors: StaleEpochError if the replica must register again."""

    async def join(self, info: ReplicaInfo, specs: list[NodeSpec], host: HostStats) -> int:
        """Register, replacing an earlier process with this id, and return the scheduler's epoch."""
        ...

    async def poll(self, replica_id: str, epoch: int, after: int) -> list[tuple[int, Message]]:
        """Return (cursor, message) pairs with cursor > after; waits a few seconds for the first, then returns []."""
        ...

    async def report(self, replica_id: str, epoch: int, reports: list[Report], host: HostStats | None) -> None: ...

    async def reserve(
        self, task_id: TaskId, node_id: str, key: str, at_least: int, contents: Contents
    ) -> tuple[int, bool]:
        """Return the first of `count` consecutive counters for files named by `key`, none below at_least.

        The same (job, node, key) gets the same counters in every attempt; the bool says so. Errors: StaleAttemptError.
        """
        ...

    async def leave(self, replica_id: str, epoch: int) -> None: ...

    async def report_trouble(self, replica_id: str, pool: str, why: str) -> None:
        """Report that the replica cannot work, and why; its tasks are lost as if it had died.

        Operators see it for some seconds, within which the replica reports it again, or until it registers.
        """
        ...
