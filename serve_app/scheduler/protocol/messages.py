"""What goes between the scheduler and its replicas: messages to a replica, its reports, and the protocol of both.

Plain data that pickles. Nothing here decides anything; `machine.py` does. What clients ask is in `client.py`.
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
from serve_app.recipe import Recipe
from serve_app.scheduler.core.backoff import Owner
from serve_app.scheduler.protocol.cluster_view import HostStats
from serve_app.store.files.reserved import Contents


@dataclass(frozen=True, slots=True)
class ReplicaInfo:
    """A replica as it joins. slots: tasks it runs at once. routes: of the node packs that its pool answers for.

    notes: what an operator should know of it, such as packs that could not be imported.
    """

    replica_id: str
    pool: str
    slots: int
    routes: tuple[PackRoute, ...] = ()
    notes: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Assign:
    """Message: run this task."""

    task: Task


@dataclass(frozen=True, slots=True)
class Interrupt:
    """Message: stop this task at its next evaluation; it is answered by TaskStopped."""

    task_id: TaskId


@dataclass(frozen=True, slots=True)
class Free:
    """Message: once no task runs, let go of weights, of results, or of both."""

    weights: bool
    results: bool


@dataclass(frozen=True, slots=True)
class Warm:
    """Message: load the weights of these models, "folder/name", beside what runs; followed by Resident."""

    models: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Prefetch:
    """Message: load these models into room that nobody needs; followed by Resident where any was loaded.

    It takes the place of the one before; without recipes there is nothing to load any more. spare: the model files that
    queued jobs need, which are not to make way.
    """

    recipes: tuple[Recipe, ...] = ()
    spare: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Forget:
    """Message: let go of the values of these signatures: files that they name are gone. Answered by Evicted."""

    signatures: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Export:
    """Message: send the value of this signature to whoever asked; answered by Exported or Evicted."""

    signature: str


@dataclass(frozen=True, slots=True)
class Deliver:
    """Message: the value you wanted. value: what Exported carried (an object ref on Ray, else the value itself)."""

    signature: str
    value: Any


@dataclass(frozen=True, slots=True)
class Compute:
    """Message: nobody has or makes the value you wanted any more; make it yourself."""

    signature: str


@dataclass(frozen=True, slots=True)
class Check:
    """Message: run what these nodes' classes have to say before a job is accepted; answered by Checked.

    nodes: the whole graph, since a node may ask for the types of what it is linked to. node_ids: whom to ask.
    """

    check_id: int
    nodes: Mapping[str, Node]
    node_ids: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class SocketFrame:
    """Message: a client has said this on a websocket of a node pack's, which the replica answers."""

    socket: str
    frame: PackFrame


Message: TypeAlias = (
    Assign | Interrupt | Export | Deliver | Compute | Check | Free | Warm | Prefetch | Forget | SocketFrame
)


@dataclass(frozen=True, slots=True)
class NodeStarted:
    """origin: of a node that another one made, here and in the reports below."""

    task_id: TaskId
    node_id: str
    origin: Origin | None = None


@dataclass(frozen=True, slots=True)
class NodeProgressed:
    """value of maximum units done, for one node."""

    task_id: TaskId
    node_id: str
    value: float
    maximum: float
    origin: Origin | None = None


@dataclass(frozen=True, slots=True)
class NodeFinished:
    """A node's values are held by the replica under the signature. ui: what an output node shows, else None.

    computed: it ran for this task, and was not there already.
    """

    task_id: TaskId
    node_id: str
    signature: str
    ui: Mapping[str, Any] | None
    origin: Origin | None = None
    computed: bool = True


@dataclass(frozen=True, slots=True)
class NodesCached:
    """Nodes that need not run, since what runs the task has their values from an earlier one."""

    task_id: TaskId
    nodes: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class NodeBlocked:
    """A node was passed over, for a reason that its client is told; the job goes on."""

    task_id: TaskId
    node_id: str
    class_type: str
    message: str


@dataclass(frozen=True, slots=True)
class NodeMessage:
    """A message of a node's own for its client. data: a JSON value."""

    task_id: TaskId
    node_id: str
    type: str
    data: Any


@dataclass(frozen=True, slots=True)
class ClientMessage:
    """A message of a node pack's own for a client, outside any job. data: a JSON value."""

    client_id: str
    type: str
    data: Any


@dataclass(frozen=True, slots=True)
class NodePreviewed:
    """What a node has come to, as a picture. image: a JPEG, as `Transfer.put` has put it away."""

    task_id: TaskId
    node_id: str
    image: Any
    origin: Origin | None = None


@dataclass(frozen=True, slots=True)
class TaskFinished:
    """took_s: how long it took a slot, without the time that weights were loaded meanwhile; 0 if that is not known."""

    task_id: TaskId
    took_s: float = 0.0


@dataclass(frozen=True, slots=True)
class TaskFailed:
    """A node raised. It ends the job: the same inputs would fail again. inputs: what it was given, as text.

    out_of_memory: the process had no memory for it, which another job's node may have taken.
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
    """An interrupted task has let go of its slot."""

    task_id: TaskId


@dataclass(frozen=True, slots=True)
class SlotReleased:
    """Nothing of the task is to be computed any more: another may begin while the rest of it is stored and reported."""

    task_id: TaskId


@dataclass(frozen=True, slots=True)
class TaskCancelled:
    """A node of the task has cancelled the job by itself."""

    task_id: TaskId


@dataclass(frozen=True, slots=True)
class Want:
    """The replica needs a value that the task named as remote."""

    task_id: TaskId
    signature: str


@dataclass(frozen=True, slots=True)
class Exported:
    signature: str
    value: Any


@dataclass(frozen=True, slots=True)
class Evicted:
    """The replica no longer holds these values."""

    signatures: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Checked:
    """What a check found wrong, and the fingerprints of the nodes that have one."""

    check_id: int
    problems: tuple[Problem, ...]
    fingerprints: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class ResidentWeights:
    """Which recipes' weights the replica holds now, as short names.

    loads: what it has loaded since it last said so, each with the seconds that took.
    """

    recipes: tuple[str, ...]
    loads: tuple[tuple[str, float], ...] = ()


@dataclass(frozen=True, slots=True)
class Draining:
    """What had to stop goes on, so this replica takes no more tasks until it has `Reopened`, or ends.

    tenant, client_id: whose job is to blame. by_job False: none, or none yet. why: for operators.
    """

    tenant: str = ""
    client_id: str | None = None
    by_job: bool = True
    why: str = "a node does not stop"


@dataclass(frozen=True, slots=True)
class NodesLinger:
    """Whose tasks are over here while their nodes go on, all of them each time: they answer for the replica's death."""

    owners: frozenset[Owner]


@dataclass(frozen=True, slots=True)
class Reopened:
    """What went on has stopped after all: the replica stays, and takes tasks again."""


Report: TypeAlias = (
    NodeStarted
    | NodeProgressed
    | NodeFinished
    | NodesCached
    | NodeBlocked
    | NodeMessage
    | ClientMessage
    | NodePreviewed
    | TaskFinished
    | TaskFailed
    | TaskStopped
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
    """What a replica can ask of the scheduler. Errors: StaleEpochError when it must join again."""

    async def join(self, info: ReplicaInfo, specs: list[NodeSpec], host: HostStats) -> int:
        """Register, forgetting any earlier life of this id, and return the scheduler's epoch."""
        ...

    async def poll(self, replica_id: str, epoch: int, after: int) -> list[tuple[int, Message]]:
        """Return (cursor, message) pairs with cursor > after; waits a few seconds for the first, then returns []."""
        ...

    async def report(self, replica_id: str, epoch: int, reports: list[Report], host: HostStats | None) -> None: ...

    async def reserve(
        self, task_id: TaskId, node_id: str, key: str, at_least: int, contents: Contents
    ) -> tuple[int, bool]:
        """Return the first of `count` consecutive counters for files named by `key`, none below at_least.

        The same (job, node, key) gets the same counters again, whatever the attempt, and is told so.
        Errors: StaleAttemptError.
        """
        ...

    async def leave(self, replica_id: str, epoch: int) -> None: ...

    async def report_trouble(self, replica_id: str, pool: str, why: str) -> None:
        """Note that the replica cannot work, and why; what ran there is lost as if it had died.

        Operators see it for some seconds, within which the replica says so again, or until it joins.
        """
        ...
