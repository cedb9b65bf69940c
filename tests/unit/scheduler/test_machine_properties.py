"""Whatever happens to replicas and jobs in whatever order, every accepted job ends exactly once, and none is stuck."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import Any

import hypothesis.strategies as st
import pytest
from hypothesis import settings
from hypothesis.stateful import Bundle, RuleBasedStateMachine, invariant, rule

from serve_app.config.quotas import Quota, Quotas
from serve_app.events import ENDINGS
from serve_app.graph.plan import Pool, Task, TaskId
from serve_app.scheduler.core.events import (
    CancelAsked,
    PausesChanged,
    Persist,
    Publish,
    ReplicaLeft,
    ReplicaLost,
    Send,
    TimePassed,
)
from serve_app.scheduler.core.machine import Machine
from serve_app.scheduler.core.records import SHARED_LOSSES
from serve_app.scheduler.protocol.messages import (
    Assign,
    Compute,
    Deliver,
    Draining,
    Evicted,
    Export,
    Exported,
    Interrupt,
    NodeFinished,
    Reopened,
    SlotReleased,
    TaskFailed,
    TaskFinished,
    TaskStopped,
    Want,
)
from serve_app.store.database.changes import JobEnded, OutputRecorded
from serve_app.store.tenants.pauses import THE_QUEUE, Pause
from tests.unit.scheduler.script import ONE_POOL, TWO_POOLS, Script, branches, chain, changes


@dataclass
class Work:
    """A task on a replica, as `execution/execute.py` would evaluate it: on demand, from the targets down."""

    task: Task
    wanted: set[str] = field(default_factory=set)
    have: set[str] = field(default_factory=set)
    own: set[str] = field(default_factory=set)


class Full(Exception):
    """The memory of a replica is full."""


class Death(Exception):
    """A job has ended the replica of this name."""


@dataclass
class Replica:
    held: set[str] = field(default_factory=set)
    work: list[Work] = field(default_factory=list)


class World(RuleBasedStateMachine):
    """The machine among replicas that behave as ours do, and may die at any moment."""

    jobs = Bundle("jobs")
    pools: tuple[Pool, ...] = ONE_POOL
    graph: Any = staticmethod(chain)

    max_attempts = 10_000

    def __init__(self) -> None:
        super().__init__()
        self.script = Script(self.pools, self.max_attempts, self.graph)
        quotas = Quotas(tenants={"two": Quota(running=1, weight=2)})
        self.script.machine = Machine(1, self.max_attempts, quota=quotas.of)
        self.replicas: dict[str, Replica] = {}
        self.awaited: set[TaskId] = set()
        self.made = 0
        self.accepted: set[str] = set()

    def deliver(self) -> None:
        """Carry out the commands that have not been carried out yet."""
        commands, self.script.commands = self.script.commands, []
        persisted: set[int] = set()
        for command in commands:
            if isinstance(command, Persist):
                persisted |= {getattr(command.change, name, 0) for name in ("seq", "started_seq", "ended_seq")}
            if isinstance(command, Publish) and command.event.kind in ("started", "executed", *ENDINGS):
                assert command.event.seq in persisted, "a client would be told of what is not durable"
            if isinstance(command, Publish) and command.event.kind == "started":
                assert not self.held_back(), "a job has started that was held back"
        self.log = [*getattr(self, "log", []), *commands]
        for command in commands:
            if isinstance(command, Send) and command.replica_id in self.replicas:
                self.take(command.replica_id, command.message)

    def take(self, name: str, message: object) -> None:
        replica = self.replicas[name]
        match message:
            case Assign(task):
                assert not self.script.machine.replicas[name].draining
                running = [work for other in self.replicas.values() for work in other.work]
                if any(work.wanted and work.task.id.job_id == task.id.job_id for work in running):
                    self.awaited.add(task.id)
                replica.work.append(Work(task))
            case Interrupt(task_id):
                replica.work = [w for w in replica.work if w.task.id != task_id]
                self.report(name, TaskStopped(task_id))
            case Export(signature):
                held = signature in replica.held
                self.report(name, Exported(signature, signature) if held else Evicted((signature,)))
            case Deliver(signature, _):
                for work in replica.work:
                    if signature in work.wanted:
                        work.have.add(signature)
            case Compute(signature):
                for work in replica.work:
                    if signature in work.wanted:
                        work.own.add(signature)

    def report(self, name: str, report: object) -> None:
        self.script.report(name, report)
        self.deliver()

    def evaluate(self, name: str, work: Work, node_id: str) -> bool:
        """Do one thing towards a node's value; return whether it is there."""
        replica, task = self.replicas[name], work.task
        signature = task.signatures[node_id]
        if signature in replica.held or signature in work.have:
            work.have.add(signature)
            return True
        if (signature in task.remote or node_id not in task.nodes) and signature not in work.own:
            if signature not in work.wanted:
                work.wanted.add(signature)
                self.report(name, Want(task.id, signature))
            return False
        node = task.nodes[node_id]
        asked = [link.node_id for i, link in node.links() if i in str(node.inputs.get("asks", i))]
        if all(self.evaluate(name, work, source) for source in asked) and work in replica.work:
            replica.held.add(signature)
            work.have.add(signature)
            ui = {"images": [node_id]} if node.class_type == "Save" else None
            self.report(name, NodeFinished(task.id, node_id, signature, ui))
        return False

    def advance(self, name: str, work: Work) -> None:
        """Do one thing towards a task's end, if its replica is still there."""
        if all(self.evaluate(name, work, target) for target in work.task.targets) and work in self.replicas[name].work:
            for target in work.task.targets:
                if work.task.nodes[target].class_type == "Save":
                    finished = NodeFinished(work.task.id, target, work.task.signatures[target], {"images": [target]})
                    self.report(name, finished)
            if work in self.replicas[name].work:  # and was not stopped with its job
                self.replicas[name].work.remove(work)
                self.report(name, TaskFinished(work.task.id))

    @rule(
        target=jobs,
        seed=st.integers(0, 2),
        number=st.none() | st.integers(-3, 3),
        tenant=st.sampled_from(["", "", "one", "two"]),
    )
    def submit(self, seed: int, number: int | None, tenant: str) -> str:
        job_id = f"job{len(self.accepted)}"
        self.accepted.add(job_id)
        self.script.job(job_id, seed, number, tenant=tenant)
        self.deliver()
        return job_id

    def held_back(self) -> bool:
        """Whether no job may start: every job needs every pool."""
        return bool(self.script.machine.pauses)

    @rule(data=st.data())
    def pause(self, data: st.DataObject) -> None:
        every = [THE_QUEUE, *(Pause("pool", pool.name) for pool in self.pools)]
        # None is drawn most often, for else hardly anything would ever start.
        pauses = data.draw(st.just([]) | st.just([]) | st.lists(st.sampled_from(every)))
        self.script.apply(PausesChanged(frozenset(pauses)))
        self.deliver()

    @rule(job=jobs)
    def cancel(self, job: str) -> None:
        self.script.apply(CancelAsked(job))
        self.deliver()

    @rule(seconds=st.floats(-1.0, 3.0))
    def wait(self, seconds: float) -> None:
        self.script.at_s += seconds
        self.script.apply(TimePassed())
        self.deliver()

    @rule(data=st.data())
    def join(self, data: st.DataObject) -> None:
        self.made += 1
        pool = data.draw(st.sampled_from([p.name for p in self.pools]))
        self.start_replica(f"r{self.made}", pool, data.draw(st.integers(1, 3)))

    def start_replica(self, name: str, pool: str, slots: int) -> None:
        self.replicas[name] = Replica()
        self.script.replica(name, pool, slots)
        self.deliver()

    @rule(data=st.data())
    def lose(self, data: st.DataObject) -> None:
        if self.replicas:
            name = data.draw(st.sampled_from(sorted(self.replicas)))
            del self.replicas[name]
            self.script.apply(ReplicaLost(name))
            self.deliver()

    @rule(data=st.data(), tenant=st.sampled_from(["", "one", "two"]), by_job=st.booleans())
    def drain(self, data: st.DataObject, tenant: str, by_job: bool) -> None:
        """A node does not stop; perhaps it does after all, or its replica goes."""
        if self.replicas:
            name = data.draw(st.sampled_from(sorted(self.replicas)))
            self.report(name, Draining(tenant, by_job=by_job))

    @rule(data=st.data(), stops=st.booleans())
    def end_draining(self, data: st.DataObject, stops: bool) -> None:
        draining = sorted(name for name in self.replicas if self.script.machine.replicas[name].draining)
        if draining:
            name = data.draw(st.sampled_from(draining))
            if stops:
                self.report(name, Reopened())
            else:
                self.leave(name)

    def leave(self, name: str) -> None:
        del self.replicas[name]
        self.script.apply(ReplicaLeft(name))
        self.deliver()

    @rule(data=st.data())
    def work(self, data: st.DataObject) -> None:
        busy = [(name, work) for name, r in sorted(self.replicas.items()) for work in r.work]
        if busy:
            self.advance(*data.draw(st.sampled_from(busy)))

    @rule(data=st.data())
    def evict(self, data: st.DataObject) -> None:
        held = [(name, s) for name, r in sorted(self.replicas.items()) for s in sorted(r.held)]
        if held:
            name, signature = data.draw(st.sampled_from(held))
            self.replicas[name].held.discard(signature)
            self.report(name, Evicted((signature,)))

    @rule(data=st.data())
    def fail(self, data: st.DataObject) -> None:
        busy = [(name, work) for name, r in sorted(self.replicas.items()) for work in r.work]
        if busy:
            name, work = data.draw(st.sampled_from(busy))
            self.replicas[name].work.remove(work)
            self.report(name, TaskFailed(work.task.id, work.task.targets[0], "Save", "ValueError", "bad", ()))

    @rule(data=st.data())
    def vacate(self, data: st.DataObject) -> None:
        busy = [(name, work) for name, r in sorted(self.replicas.items()) for work in r.work]
        if busy:
            name, work = data.draw(st.sampled_from(busy))
            self.report(name, SlotReleased(work.task.id))

    @invariant()
    def no_replica_runs_more_than_its_slots_beside_what_a_task_may_have_waited_for(self) -> None:
        for record in self.script.machine.replicas.values():
            assert len(record.running - self.awaited - record.slotless) <= record.info.slots

    @invariant()
    def every_replica_is_found_as_what_it_is(self) -> None:
        replicas = self.script.machine.replicas
        for name in {pool.name for pool in self.pools}:
            pool = replicas.pool(name)
            here = {key: record for key, record in replicas.items() if record.info.pool == name}
            assert pool.records == here
            assert pool.slots == sum(record.info.slots for record in here.values())
            assert {record.info.replica_id for record in pool.free} == {k for k, r in here.items() if r.free}
            assert pool.quarantined == {k: r for k, r in here.items() if r.quarantined is not None}
            draining = {key for key, record in here.items() if record.draining}
            assert {record.info.replica_id for record in pool.open} == here.keys() - pool.quarantined.keys() - draining

    @invariant()
    def nobody_runs_beside_a_job_whose_owner_has_ended_replicas_but_what_it_waits_for(self) -> None:
        machine = self.script.machine
        for record in machine.replicas.values():
            jobs = {task_id.job_id for task_id in record.running - self.awaited}
            assert len(jobs) < 2 or not any(machine.jobs[j].alone for j in jobs if j in machine.jobs)

    @invariant()
    def every_turn_is_of_a_tenant_that_waits_and_every_device_is_had_by_what_runs(self) -> None:
        machine = self.script.machine
        for name in {pool.name for pool in self.pools}:
            queues = [queues[name] for queues in (machine.dispatch.ready, machine.dispatch.suspects)]
            waiting = Counter(machine.jobs[entry.job_id].tenant for queue in queues for entry in queue)
            shares = machine.dispatch.shares[name]
            assert shares.waiting == waiting
            assert set(shares.order.firsts(99)) == waiting.keys()
            for queue in queues:
                firsts = queue.firsts(99)
                assert {first.file for first in firsts} == {waiting.file for waiting in queue.waiting.values()}
                assert firsts == sorted(queue.firsts(99), key=queue.place)
                assert queue.first() == next(iter(firsts), None)
                assert all(queue.first_of(first.file) is first for first in firsts)
        devices = {(name, t) for name, device in machine.device_time.devices.items() for t in device.began_s}
        running = {(name, t) for name, r in machine.replicas.items() for t in r.running - r.slotless}
        assert devices <= running
        # What brought its job's end is charged with it.
        assert {t.job_id for _, t in running - devices}.isdisjoint(machine.jobs)

    @invariant()
    def of_a_tenants_jobs_as_many_run_as_may_and_they_are_counted(self) -> None:
        usage, jobs = self.script.machine.usage, self.script.machine.jobs.values()
        running = Counter(job.tenant for job in jobs if job.started_s is not None)
        assert running["two"] <= 1
        for tenant in ("", "one", "two"):
            counts = (running[tenant], sum(job.tenant == tenant and job.started_s is None for job in jobs))
            assert (usage.running[tenant], usage.queued[tenant]) == counts
            expected_s = sum(job.expected_s for job in jobs if job.tenant == tenant)
            assert usage.of(tenant).expected_s == pytest.approx(expected_s, abs=1e-5)

    @invariant()
    def no_job_ends_twice_and_no_output_is_recorded_twice(self) -> None:
        log = getattr(self, "log", [])
        ends = Counter(end.job_id for end in changes(log, JobEnded))
        assert all(count == 1 for count in ends.values())
        outputs = Counter((o.job_id, o.node_id) for o in changes(log, OutputRecorded))
        assert all(count == 1 for count in outputs.values())

    @invariant()
    def a_jobs_events_have_growing_cursors_and_nothing_after_the_end(self) -> None:
        seen: dict[str, tuple[int, bool]] = {}
        for command in getattr(self, "log", []):
            if isinstance(command, Publish):
                seq, ended = seen.get(command.event.job_id, (0, False))
                assert command.event.seq > seq
                assert not ended
                seen[command.event.job_id] = (command.event.seq, command.event.last)

    def teardown(self) -> None:
        """With a working replica in every pool, nothing paused and nobody waiting for long, what is left finishes."""
        self.script.apply(PausesChanged(frozenset()))
        self.deliver()
        for name in [name for name in self.replicas if self.script.machine.replicas[name].draining]:
            self.leave(name)
        for pool in self.pools:
            self.start_replica(f"last-{pool.name}", pool.name, 1)
        for _ in range(40 * (len(self.accepted) + 1)):
            self.wait(30.0)
            for name, replica in list(self.replicas.items()):
                for work in list(replica.work):
                    if work in replica.work:
                        self.advance(name, work)
        ended = {end.job_id for end in changes(getattr(self, "log", []), JobEnded)}
        assert ended == self.accepted
        assert not self.script.machine.jobs


class PoisonWorld(World):
    """The same, with jobs among them that end every replica on which their Sample runs, or fill its memory."""

    max_attempts = 3
    poison = frozenset({7, 8})
    hog = 9

    def __init__(self) -> None:
        super().__init__()
        self.seeds: dict[str, int] = {}
        self.deaths: list[str] = []
        self.outages = 0
        self.cancelled: set[str] = set()

    @rule(target=World.jobs, seed=st.sampled_from((0, 1, 2, 3, 7, 8, 9)), number=st.none() | st.integers(-3, 3))
    def submit(self, seed: int, number: int | None) -> str:
        job_id = f"job{len(self.accepted)}"
        self.seeds[job_id] = seed
        self.script.job(job_id, seed, number, tenant=("", "one", "two")[len(self.accepted) % 3])
        self.accepted.add(job_id)
        self.deliver()
        return job_id

    def cancel(self) -> None:
        """Nobody cancels, so that every end is the job's own."""

    def fail(self) -> None:
        """No node fails by itself."""

    @rule(data=st.data())
    def lose(self, data: st.DataObject) -> None:
        """Hosts go away too, but not so often that a job could lose max_attempts of them alone."""
        if self.replicas and self.outages < self.max_attempts - 1:
            self.outages += 1
            self.die(data.draw(st.sampled_from(sorted(self.replicas))))

    def die(self, name: str) -> None:
        pool = self.script.machine.replicas[name].info.pool
        self.replicas.pop(name).work.clear()
        self.script.apply(ReplicaLost(name))
        self.deliver()
        # As Serve does, with a fresh process.
        self.made += 1
        self.start_replica(f"s{self.made}", pool, 2)

    def evaluate(self, name: str, work: Work, node_id: str) -> bool:
        if work.task.nodes.get(node_id) is not None and work.task.nodes[node_id].class_type == "Sample":
            job_id = work.task.id.job_id
            if self.seeds[job_id] in self.poison and work in self.replicas[name].work:
                # The end of one that drains is charged to nobody there.
                if not self.script.machine.replicas[name].draining:
                    self.deaths.append(job_id)
                raise Death(name)
            if self.seeds[job_id] == self.hog and work in self.replicas[name].work:
                raise Full(name)
        return super().evaluate(name, work, node_id)

    def advance(self, name: str, work: Work) -> None:
        try:
            super().advance(name, work)
        except Death as death:
            self.die(death.args[0])
        except Full as full:
            self.fill(full.args[0])

    def fill(self, name: str) -> None:
        """Let all that runs on a replica fail for want of memory."""
        robbed, self.replicas[name].work[:] = list(self.replicas[name].work), []
        for work in robbed:
            report = TaskFailed(work.task.id, "2", "Sample", "MemoryError", "", (), out_of_memory=True)
            self.report(name, report)

    def teardown(self) -> None:
        """Every innocent job succeeds and every poison job fails, at a bounded price in replicas."""
        super().teardown()
        states = {end.job_id: end.state for end in changes(getattr(self, "log", []), JobEnded)}
        guilty = {job_id for job_id, seed in self.seeds.items() if seed in {*self.poison, self.hog}}
        assert {job_id for job_id, state in states.items() if state == "error"} == guilty
        assert all(states[job_id] == "success" for job_id in self.seeds.keys() - guilty)
        assert max(Counter(self.deaths).values(), default=0) <= SHARED_LOSSES + self.max_attempts


class SplitPoisonWorld(PoisonWorld):
    """The same, with every job cut over two pools."""

    pools = TWO_POOLS


class SplitWorld(World):
    """The same, with every job cut over two pools."""

    pools = TWO_POOLS


class LazyWorld(SplitWorld):
    """The same, with lazy inputs between the pools, of which a job asks for one, the other or both."""

    graph = staticmethod(branches)


TestOnePool = World.TestCase
TestOnePool.settings = settings(stateful_step_count=40)
TestPoison = PoisonWorld.TestCase
TestPoison.settings = TestOnePool.settings
TestSplitPoison = SplitPoisonWorld.TestCase
TestSplitPoison.settings = TestOnePool.settings
TestTwoPools = SplitWorld.TestCase
TestTwoPools.settings = TestOnePool.settings
TestLazyInputs = LazyWorld.TestCase
TestLazyInputs.settings = TestOnePool.settings
