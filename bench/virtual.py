"""A cluster in virtual time: the real machine, and replicas that only keep what they hold and until when they work.

A replica runs as many tasks at once as it has slots, each as fast as alone. What it loads it keeps, least recently used
out first; what it is told of ahead it loads beside its tasks, if nothing that runs or is spared has to make way. The
machine is told what a real replica would report, and the processor time of its answers is measured.
"""

from __future__ import annotations

import heapq
import itertools
import math
import random
from collections import Counter, OrderedDict, defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence, Set
from dataclasses import dataclass, field
from time import process_time
from typing import Any

from bench.virtual_replica import Model, Models, Weights
from serve_app.config.quotas import Quota, Quotas
from serve_app.graph.graph import Graph, Link, Node
from serve_app.graph.plan import Plan, Task, TaskId, TaskPlan
from serve_app.recipe.recipe import Recipe
from serve_app.recipe.weights import Lora
from serve_app.scheduler.core.costs import Costs
from serve_app.scheduler.core.demand import Demand
from serve_app.scheduler.core.events import (
    JobArrived,
    MachineEvent,
    Publish,
    ReplicaJoined,
    ReplicaLeft,
    ReplicaLost,
    Reported,
    Send,
    TimePassed,
)
from serve_app.scheduler.core.machine import Machine
from serve_app.scheduler.protocol.messages import (
    Assign,
    Compute,
    Deliver,
    Evicted,
    Export,
    Exported,
    Interrupt,
    NodeFinished,
    NodeStarted,
    Prefetch,
    ReplicaInfo,
    Report,
    ResidentWeights,
    TaskFinished,
    TaskStopped,
    Want,
)
from serve_app.store.database.changes import JobRow
from serve_app.store.database.costs import Cost

POOL = "gpu"
KEPT = 64
"""Of how many tasks a replica keeps the results."""
WATCH_S = 1.0
MOST = 100
"""How many replicas a scaler may ask for."""


@dataclass(frozen=True)
class Request:
    """One job of a trace: so many steps with a model and perhaps a LoRA, for a tenant, from a moment on."""

    at_s: float
    model: Model
    steps: int
    lora: Model | None = None
    tenant: str = ""

    @property
    def models(self) -> Models:
        """What it needs at once."""
        return (self.model,) if self.lora is None else (self.model, self.lora)

    @property
    def work_s(self) -> float:
        """How long it takes a slot, without loading."""
        return self.steps * self.model.step_s


@dataclass
class Outcome:
    """What became of a trace. waits_s: from each job's arrival to its start, by its place in the trace.

    possible_s: the slot-seconds that could have been worked: at each moment as many as there are jobs or slots,
    whichever are fewer; idle_s: those in which a job waited beside a free slot. Both are counted, like work_s and
    loading_s, from warm_s on, when replicas hold something; what is left of possible_s was lost with replicas. ahead:
    how many of the loads were begun before their task. cpu_s: the machine's processor time. replica_s: for how long
    there were replicas. had_s: how long each tenant's tasks took the devices, loading included.
    """

    waits_s: list[float]
    loads: int = 0
    ahead: int = 0
    lora_loads: int = 0
    loras_ahead: int = 0
    warm_s: float = 0.0
    work_s: float = 0.0
    loading_s: float = 0.0
    possible_s: float = 0.0
    idle_s: float = 0.0
    cpu_s: float = 0.0
    tasks: int = 0
    lost: int = 0
    end_s: float = 0.0
    replica_s: float = 0.0
    most_holders: Counter[str] = field(default_factory=Counter)
    had_s: defaultdict[str, float] = field(default_factory=lambda: defaultdict(float))

    @property
    def efficiency(self) -> float:
        return self.work_s / self.possible_s

    @property
    def us_a_task(self) -> float:
        return 1e6 * self.cpu_s / self.tasks

    def wait_s(self, share: float) -> float:
        """Return the wait that so large a share of the jobs does not exceed."""
        return sorted(self.waits_s)[min(len(self.waits_s) - 1, int(share * len(self.waits_s)))]


@dataclass
class Run:
    """A task on a replica. missing: the values that it waits for."""

    task: Task
    number: int
    missing: set[str]
    load_s: float = 0.0
    loads: Models = ()


@dataclass
class Replica:
    """values: the signatures of what it holds, least recently used first."""

    weights: Weights
    values: OrderedDict[str, None] = field(default_factory=OrderedDict)
    runs: dict[TaskId, Run] = field(default_factory=dict)


class Cluster:
    """One scheduler and its replicas.

    failures_s: how long a replica lives on average; 0 for ever. scaler: how many replicas there should be. closed: how
    many jobs there always are, whenever the trace has them; costs then count from the first end to the last arrival.
    until_s: when to stop. weights: of the tenants, between which the machine is to be fair; None for no tenants.
    """

    def __init__(
        self,
        requests: Sequence[Request],
        replicas: int,
        *,
        memory_gb: float,
        slots: int = 1,
        start_s: float = 30.0,
        failures_s: float = 0.0,
        scaler: Callable[[Demand], int] | None = None,
        closed: int = 0,
        warm_s: float = 0.0,
        until_s: float = math.inf,
        weights: Mapping[str, float] | None = None,
        seed: int = 0,
    ) -> None:
        self.requests = requests
        self._models = {model.name: model for request in requests for model in request.models}
        self._fair = weights is not None
        quotas = Quotas(tenants={tenant: Quota(weight=weight) for tenant, weight in (weights or {}).items()})
        self.machine = Machine(1, 3, Costs(_known(requests)), quotas.of)
        self._until_s = until_s
        self.now_s = 0.0
        self.replicas: dict[str, Replica] = {}
        self.outcome = Outcome([0.0] * len(requests), warm_s=warm_s)
        self._memory_gb = memory_gb
        self.slots = slots
        self.start_s = start_s
        self._failures_s = failures_s
        self._scaler = scaler
        self._random = random.Random(seed)
        self._events: list[tuple[float, int, Callable[[], None]]] = []
        self._numbers = itertools.count()
        self._names = itertools.count()
        self._left = len(requests)
        self._present = self._running = 0
        self.starting = 0
        self.started: set[int] = set()
        self._holders: defaultdict[str, set[str]] = defaultdict(set)
        for _ in range(replicas):
            self._join()
        self._closed = closed
        self._following = closed or len(requests)
        for number, request in enumerate(requests[: self._following]):
            at_s = 0.0 if closed else request.at_s
            self._at(at_s, lambda number=number: self._arrive(number))  # type: ignore[misc]
        self._at(WATCH_S, self._watch)

    def run(self) -> Outcome:
        """Run the trace to its end."""
        while self._left and not (self._closed and self._following == len(self.requests)):
            if self._events[0][0] > self._until_s:
                break
            at_s, _, happen = heapq.heappop(self._events)
            span_s, alive = at_s - self.now_s, len(self.replicas)
            if self.now_s >= self.outcome.warm_s:
                possible = min(alive * self.slots, self._present)
                self.outcome.possible_s += span_s * possible
                self.outcome.idle_s += span_s * (possible - self._running)
            self.outcome.replica_s += span_s * (alive + self.starting)
            self.now_s = at_s
            happen()
        self.outcome.end_s = self.now_s
        return self.outcome

    # What happens -----------------------------------------------------------------------------------------------------

    def _arrive(self, number: int) -> None:
        request = self.requests[number]
        self._present += 1
        loader = {"1": Node("1", "CheckpointLoaderSimple", {"ckpt_name": request.model.name})}
        signatures = {"1": request.model.name, "3": f"sample {number}", "4": f"save {number}"}
        source = "1"
        if request.lora is not None:
            with_lora = {"model": Link("1", 0), "lora_name": request.lora.name, "strength_model": 1.0}
            loader["2"] = Node("2", "LoraLoaderModelOnly", with_lora)
            signatures["2"] = f"{request.model.name} {request.lora.name}"
            source = "2"
        sampler = Node("3", "Sample", {"model": Link(source, 0), "steps": request.steps})
        nodes = {**loader, "3": sampler, "4": Node("4", "Save", {"images": Link("3", 0)})}
        task = TaskPlan(0, POOL, tuple(nodes), ("4",), ())
        plan = Plan(Graph(nodes), ("4",), signatures, (task,), frozenset(nodes))
        row = JobRow(
            job_id=str(number),
            number=float(number),
            order=number,
            prompt={},
            targets=("4",),
            client_id=request.tenant,
            extra_data={},
            created_s=self.now_s,
            queued_seq=self.machine.next_seq(),
            tenant=request.tenant if self._fair else "",
        )
        self._apply(JobArrived(row, plan))

    def _join(self) -> None:
        name = f"r{next(self._names)}"
        self.replicas[name] = Replica(Weights(self._memory_gb))
        if self._failures_s:
            self._at(self.now_s + self._random.expovariate(1 / self._failures_s), lambda: self._die(name))
        self._apply(ReplicaJoined(ReplicaInfo(name, POOL, self.slots)))

    def _die(self, name: str) -> None:
        if name in self.replicas:
            self.outcome.lost += 1
            self._drop(name)
            self._apply(ReplicaLost(name))
            self._start()

    def _drop(self, name: str) -> None:
        replica = self.replicas.pop(name)
        self._running -= len(replica.runs)
        for file in replica.weights.held:
            self._holders[file].discard(name)

    def _start(self) -> None:
        """Let a replica come, as Serve would start one."""
        self.starting += 1

        def started() -> None:
            self.starting -= 1
            self._join()

        self._at(self.now_s + self.start_s, started)

    def _watch(self) -> None:
        self._apply(TimePassed())
        if self._scaler is not None:
            wanted = max(1, min(MOST, self._scaler(self.machine.backlog(POOL))))
            for _ in range(wanted - len(self.replicas) - self.starting):
                self._start()
            idle = [name for name, replica in self.replicas.items() if not replica.runs]
            for name in idle[: max(0, len(self.replicas) + self.starting - wanted)]:
                self._drop(name)
                self._apply(ReplicaLeft(name))
        self._at(self.now_s + WATCH_S, self._watch)

    # The replicas -----------------------------------------------------------------------------------------------------

    def _take(self, name: str, message: Any) -> None:
        replica = self.replicas.get(name)
        if replica is None:
            return
        match message:
            case Assign(task):
                self._running += 1
                missing = {s for s in task.remote if s not in replica.values}
                replica.runs[task.id] = run = Run(task, int(task.id.job_id), missing)
                for signature in sorted(missing):
                    self._report(name, Want(task.id, signature))
                if not missing:
                    self._begin(name, run)
            case Deliver(signature) | Compute(signature):
                for run in list(replica.runs.values()):
                    if signature in run.missing:
                        run.missing.discard(signature)
                        if not run.missing:
                            self._begin(name, run)
            case Export(signature):
                held = signature in replica.values
                self._report(name, Exported(signature, None) if held else Evicted((signature,)))
            case Prefetch(recipes, spare):
                replica.weights.ahead = [self._needed(recipe) for recipe in recipes]
                replica.weights.spare = frozenset(spare)
                self._load_ahead(name)
            case Interrupt(task_id):
                if replica.runs.pop(task_id, None) is not None:
                    self._running -= 1
                    self._report(name, TaskStopped(task_id))

    def _needed(self, recipe: Recipe) -> Models:
        return tuple(self._models[name] for name in (recipe.name, *(lora.name for lora in recipe.all(Lora))))

    def _load_ahead(self, name: str) -> None:
        """Begin the next load of what a replica is to load ahead, if it is there and loads nothing."""
        if (replica := self.replicas.get(name)) is None or not replica.weights.ahead:
            return
        running = [self.requests[run.number].models for run in replica.runs.values()]
        before = set(replica.weights.held)
        model = replica.weights.load_ahead(running, self.now_s)
        self._note_holding(name, before)
        if model is not None:
            self._count(model, ahead=True)

        def loaded() -> None:
            if model is not None and self.replicas.get(name) is replica:
                self._report_holding(name, (model,))
            self._load_ahead(name)

        if replica.weights.ahead:
            self._at(replica.weights.free_s, loaded)

    def _count(self, model: Model, *, ahead: bool) -> None:
        """Count a load."""
        if model.step_s:
            self.outcome.loads += 1
            self.outcome.ahead += ahead
        else:
            self.outcome.lora_loads += 1
            self.outcome.loras_ahead += ahead

    def _note_holding(self, name: str, before: Set[str]) -> None:
        held = self.replicas[name].weights.held
        for file in before - set(held):
            self._holders[file].discard(name)
        for file in held.keys() - before:
            self._holders[file].add(name)
            self.outcome.most_holders[file] = max(self.outcome.most_holders[file], len(self._holders[file]))

    def _report_holding(self, name: str, loads: Models) -> None:
        """Report what a replica holds now, some of it loaded since."""
        held = self.replicas[name].weights.held
        there = tuple(weights.resident for weights in held.values() if weights.ready_s <= self.now_s)
        times = tuple((held[model.name].resident, model.load_s) for model in loads if model.name in held)
        self._report(name, ResidentWeights(there, times))

    def _begin(self, name: str, run: Run) -> None:
        replica, request = self.replicas[name], self.requests[run.number]
        if run.number not in self.started:
            self.started.add(run.number)
            self.outcome.waits_s[run.number] = self.now_s - request.at_s
        for node_id in ("1", "2") if request.lora else ("1",):
            self._finish_node(name, run, node_id)
        before = set(replica.weights.held)
        ready_s, run.loads = replica.weights.use(request.models, self.now_s)
        run.load_s = ready_s - self.now_s
        for model in run.loads:
            self._count(model, ahead=False)
        self._note_holding(name, before)
        self._report(name, NodeStarted(run.task.id, "3"))
        self._at(ready_s + request.work_s, lambda: self._end(name, run))

    def _end(self, name: str, run: Run) -> None:
        replica = self.replicas.get(name)
        if replica is None or replica.runs.get(run.task.id) is not run:
            return
        if self._following < len(self.requests):
            if not self.outcome.tasks:
                self.outcome.cpu_s = 0.0
            self._arrive(self._following)
            self._following += 1
        work_s = self.requests[run.number].work_s
        self.outcome.work_s += min(work_s, max(0.0, self.now_s - self.outcome.warm_s))
        self.outcome.loading_s += min(run.load_s, max(0.0, self.now_s - work_s - self.outcome.warm_s))
        self.outcome.had_s[self.requests[run.number].tenant] += run.load_s + work_s
        self.outcome.tasks += 1
        self._present -= 1
        self._running -= 1
        self._left -= 1
        del replica.runs[run.task.id]
        for node_id in ("3", "4"):
            self._finish_node(name, run, node_id)
        if run.loads:
            self._report_holding(name, run.loads)
        self._report(name, TaskFinished(run.task.id, self.requests[run.number].work_s))
        if gone := [replica.values.popitem(last=False)[0] for _ in range(len(replica.values) - KEPT)]:
            self._report(name, Evicted(tuple(gone)))

    def _finish_node(self, name: str, run: Run, node_id: str) -> None:
        signature = run.task.signatures[node_id]
        computed = signature not in self.replicas[name].values
        self.replicas[name].values[signature] = None
        self.replicas[name].values.move_to_end(signature)
        ui = {"images": [signature]} if node_id == "4" else None
        self._report(name, NodeFinished(run.task.id, node_id, signature, ui, None, computed))

    # The machine ------------------------------------------------------------------------------------------------------

    def _report(self, name: str, report: Report) -> None:
        self._apply(Reported(name, report))

    def _apply(self, event: MachineEvent) -> None:
        began_s = process_time()
        commands = self.machine.handle(event, self.now_s)
        self.outcome.cpu_s += process_time() - began_s
        for command in commands:
            if isinstance(command, Send):
                # Not at once: what the machine says to one report comes after what is reported with it.
                self._at(self.now_s, lambda c=command: self._take(c.replica_id, c.message))  # type: ignore[misc]
            elif isinstance(command, Publish):
                assert command.event.kind not in ("error", "cancelled"), command

    def _at(self, at_s: float, happen: Callable[[], None]) -> None:
        heapq.heappush(self._events, (at_s, next(self._numbers), happen))


def _known(requests: Sequence[Request]) -> Iterator[Cost]:
    """Yield what earlier lives of a scheduler have learned of a trace's models."""
    for model in {request.model for request in requests}:
        yield Cost(POOL, "load", model.name, model.load_s, 100)
        yield Cost(POOL, "step", model.name, model.step_s, 100)


def fifo(requests: Sequence[Request], replicas: int, memory_gb: float) -> Outcome:
    """Run a trace in order, each job on the replica that has been free longest, whatever it holds."""
    outcome = Outcome([0.0] * len(requests))
    free = [(0.0, number, Weights(memory_gb)) for number in range(replicas)]
    heapq.heapify(free)
    for number, request in enumerate(requests):
        free_s, name, weights = heapq.heappop(free)
        start_s = max(free_s, request.at_s)
        outcome.waits_s[number] = start_s - request.at_s
        ready_s, loads = weights.use(request.models, start_s)
        outcome.loads += request.model in loads
        outcome.lora_loads += request.lora in loads
        end_s = ready_s + request.work_s
        outcome.end_s = max(outcome.end_s, end_s)
        heapq.heappush(free, (end_s, name, weights))
    return outcome
