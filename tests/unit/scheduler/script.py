"""A small language for the machine's tests: jobs and reports in one line each."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, TypeVar

from serve_app.graph.graph import Graph, Link, Node
from serve_app.graph.plan import Plan, Pool, Task, TaskId, plan
from serve_app.graph.spec import Input, NodeSpec
from serve_app.scheduler.core.events import Command, JobArrived, Persist, Publish, ReplicaJoined, Reported, Send
from serve_app.scheduler.core.machine import Machine
from serve_app.scheduler.protocol.messages import Assign, Message, NodeFinished, ReplicaInfo, TaskFinished
from serve_app.store.database.changes import JobRow

T = TypeVar("T")
LAZY = {"lazy": True}
SPECS = {
    "Load": NodeSpec("Load", (), ("MODEL",), ("MODEL",), (False,)),
    "CheckpointLoaderSimple": NodeSpec("CheckpointLoaderSimple", (), ("MODEL",), ("MODEL",), (False,)),
    "LoraLoaderModelOnly": NodeSpec(
        "LoraLoaderModelOnly", (Input("model", "MODEL"),), ("MODEL",), ("MODEL",), (False,)
    ),
    "Sample": NodeSpec("Sample", (Input("model", "MODEL"),), ("LATENT",), ("LATENT",), (False,), {"r": "RUNTIME"}),
    "Mix": NodeSpec("Mix", (Input("a", "*", options=LAZY), Input("b", "*", options=LAZY)), ("*",), ("*",), (False,)),
    "Save": NodeSpec("Save", (Input("images", "LATENT"),), (), (), (), output_node=True),
}
ONE_POOL = (Pool("gpu", True),)
TWO_POOLS = (Pool("gpu", True, ("Sample",)), Pool("cpu", False, ("Load", "Save", "Mix")))


def chain(seed: object, job: str = "") -> tuple[Graph, dict[str, str]]:
    """Load -> Sample(seed) -> Save, with signatures that depend on the seed alone."""
    nodes = {
        "1": Node("1", "Load", {"name": "a.safetensors"}),
        "2": Node("2", "Sample", {"model": Link("1", 0), "seed": seed}),
        "3": Node("3", "Save", {"images": Link("2", 0)}),
    }
    return Graph(nodes), {"1": "load", "2": f"sample-{seed}", "3": f"save-{seed}{job}"}


def branches(seed: object) -> tuple[Graph, dict[str, str]]:
    """Save <- Mix of two lazy branches Sample <- Mix of two Loads; a Mix asks for what its `asks` says."""
    asks = {0: "a", 1: "b"}.get(seed, "ab")  # type: ignore[call-overload]
    nodes = {
        "1": Node("1", "Load", {"name": "a"}),
        "2": Node("2", "Load", {"name": "b"}),
        "4": Node("4", "Mix", {"a": Link("1", 0), "b": Link("2", 0), "asks": asks}),
        "5": Node("5", "Sample", {"model": Link("4", 0)}),
        "6": Node("6", "Sample", {"model": Link("1", 0)}),
        "7": Node("7", "Mix", {"a": Link("5", 0), "b": Link("6", 0), "asks": asks}),
        "3": Node("3", "Save", {"images": Link("7", 0)}),
    }
    return Graph(nodes), {"1": "load a", "2": "load b", "6": "six"} | {n: f"{n}-{seed}" for n in ("4", "5", "7", "3")}


def two_outputs(seed: object) -> tuple[Graph, dict[str, str]]:
    """The chain with a second Save of the same latents."""
    graph, signatures = chain(seed)
    return Graph({**graph.nodes, "4": Node("4", "Save", {"images": Link("2", 0), "n": 2})}), {**signatures, "4": "four"}


def twins(seed: object) -> tuple[Graph, dict[str, str]]:
    """The chain with a second Load and Sample of the first ones' signatures, whose latents are saved too."""
    graph, signatures = chain(seed)
    nodes = {
        "1b": Node("1b", "Load", {"name": "a.safetensors"}),
        "2b": Node("2b", "Sample", {"model": Link("1b", 0), "seed": seed}),
        "3": Node("3", "Save", {"images": Link("2", 0), "more": Link("2b", 0)}),
    }
    more = {"1b": signatures["1"], "2b": signatures["2"]}
    return Graph({**graph.nodes, **nodes}), {**signatures, **more}


class Script:
    """A machine, its clock, and everything it has asked for so far. graph: the jobs' graph and signatures by seed."""

    def __init__(
        self,
        pools: Sequence[Pool] = ONE_POOL,
        max_attempts: int = 3,
        graph: Callable[[object], tuple[Graph, dict[str, str]]] = chain,
    ) -> None:
        self.graph = graph
        self.machine = Machine(epoch=1, max_attempts=max_attempts)
        self.pools = pools
        self.commands: list[Command] = []
        self.order = 0
        self.at_s = 100.0

    def apply(self, event: object) -> list[Command]:
        commands = self.machine.handle(event, at_s=self.at_s)  # type: ignore[arg-type]
        assert self.machine.check() == []
        self.commands += commands
        return commands

    def job(self, job_id: str, seed: object = 0, number: float | None = None, **row_fields: Any) -> list[Command]:
        graph, signatures = self.graph(seed)
        targets = row_fields.pop("targets", ("3",))
        planned: Plan = plan(graph, SPECS, list(targets), signatures, self.pools)
        self.order += 1
        row = JobRow(
            job_id=job_id,
            number=self.order if number is None else number,
            order=self.order,
            prompt={},
            targets=targets,
            client_id=row_fields.pop("client_id", None),
            extra_data=row_fields.pop("extra_data", {}),
            created_s=99.0,
            queued_seq=self.machine.next_seq(),
            **row_fields,
        )
        return self.apply(JobArrived(row, planned))

    def replica(self, name: str, pool: str = "gpu", slots: int = 1) -> list[Command]:
        return self.apply(ReplicaJoined(ReplicaInfo(name, pool, slots)))

    def report(self, replica: str, report: object) -> list[Command]:
        return self.apply(Reported(replica, report))  # type: ignore[arg-type]

    def run(self, replica: str, task: Task) -> list[Command]:
        """Report the task's nodes and the task as finished."""
        commands = []
        for node_id in task.nodes:
            ui = {"images": [node_id]} if task.nodes[node_id].class_type == "Save" else None
            commands += self.report(replica, NodeFinished(task.id, node_id, task.signatures[node_id], ui))
        return commands + self.report(replica, TaskFinished(task.id))


def assigned(commands: Sequence[Command]) -> list[tuple[str, Task]]:
    """Return (replica, task) for every assignment."""
    return [(c.replica_id, c.message.task) for c in commands if isinstance(c, Send) and isinstance(c.message, Assign)]


def sent(commands: Sequence[Command], kind: type) -> list[tuple[str, Message]]:
    """Return (replica, message) of one kind."""
    return [(c.replica_id, c.message) for c in commands if isinstance(c, Send) and isinstance(c.message, kind)]


def events(commands: Sequence[Command], job_id: str) -> list[str]:
    """Return the kinds of a job's events, in order."""
    return [c.event.kind for c in commands if isinstance(c, Publish) and c.event.job_id == job_id]


def changes(commands: Sequence[Command], kind: type[T]) -> list[T]:
    """Return the durable changes of one kind."""
    return [c.change for c in commands if isinstance(c, Persist) and isinstance(c.change, kind)]


def task_id(job_id: str, index: int = 0, attempt: int = 0) -> TaskId:
    return TaskId(job_id, index, attempt)
