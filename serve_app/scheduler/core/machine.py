"""The scheduler's state machine. `handle(event) -> [command]`, pure: no clock, no I/O, no Ray, no threads.

Invariants:
1. A task becomes ready when the values that it needs exist. `dispatch.py` says which ready task starts next, and where.
2. A job that has not started does not start while the queue, its tenant or one of its pools is paused, or while its
   owner backs off after ending a replica (`backoff.py`). A job that has started goes on.
3. A task has one current attempt, on one replica. Answers of any other attempt are dropped.
4. An attempt takes a slot until it ends, or until its replica reports that only storing is left.
5. A node that raises ends its job. A lost replica makes a new attempt.
6. A suspect is a job that has lost SHARED_LOSSES replicas together with other jobs, or whose node ran out of memory. It
   runs in quarantine: on replicas where no other job runs, waiting for no other job's work (`quarantine.py`).
7. A job that loses max_attempts replicas on which it ran alone ends in error. So a job is never given up because of
   another, and each lost replica brings a job nearer to its end.
8. A draining replica gets no tasks; what runs there continues and is not blamed for its end. If nodes run on after
   their task, their owner is charged with the replica's death. An operator's drain stops tasks alike.
9. One task in the cluster computes a signature at a time. Others ask for the value (Want) and receive it (Export,
   Deliver), or compute it (Compute) if no replica has or makes it.
10. A recorded output is never computed again for its job.
11. A job ends once: in success when its outputs are recorded, else in error or cancelled. No event follows its end.
12. An event that clients may rely on is a Persist before a Publish, with one cursor (`journal.py`). The shell commits
    every Persist of a batch before it executes any of the batch's commands.

Knows unfinished jobs only. The shell (`scheduler.py`) passes the events in and executes the commands.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping, Set
from itertools import islice
from typing import Any, Literal

from serve_app.config.limits import BackoffRules
from serve_app.config.quotas import NO_QUOTAS, Quota
from serve_app.events import Ending, Failure
from serve_app.graph.graph import Origin
from serve_app.graph.plan import Plan, TaskId
from serve_app.scheduler.core import failures, node_reports
from serve_app.scheduler.core.backoff import Backoff, Owner
from serve_app.scheduler.core.costs import Costs
from serve_app.scheduler.core.demand import Demand
from serve_app.scheduler.core.device_time import DeviceTime
from serve_app.scheduler.core.dispatch import Dispatch
from serve_app.scheduler.core.events import (
    CancelAsked,
    Command,
    FilesGone,
    JobArrived,
    JobRefused,
    MachineEvent,
    PausesChanged,
    ReplicaJoined,
    ReplicaLeft,
    ReplicaLost,
    Reported,
    Send,
    TimePassed,
)
from serve_app.scheduler.core.invariants import violations
from serve_app.scheduler.core.model_files import files_of, load_times
from serve_app.scheduler.core.placement import choose
from serve_app.scheduler.core.prefetch import Prefetcher
from serve_app.scheduler.core.records import (
    SHARED_LOSSES,
    JobRecord,
    TaskRecord,
    assignment,
    elsewhere,
    id_of,
    placed,
    steps_of,
    targets_of,
)
from serve_app.scheduler.core.replicas import LeastBusy, ReplicaRecord, Replicas
from serve_app.scheduler.core.results import Results
from serve_app.scheduler.core.running_limit import RunningLimit
from serve_app.scheduler.events.job_trace import JobTrace
from serve_app.scheduler.events.journal import Journal
from serve_app.scheduler.jobs.usage import Usage
from serve_app.scheduler.protocol.messages import (
    Assign,
    ClientMessage,
    Compute,
    Deliver,
    Draining,
    Evicted,
    Export,
    Exported,
    Forget,
    Interrupt,
    Message,
    NodeBlocked,
    NodeFinished,
    NodePreviewed,
    NodeProgressed,
    NodesCached,
    NodeSentMessage,
    NodesLinger,
    NodeStarted,
    Reopened,
    Report,
    ResidentWeights,
    SlotReleased,
    TaskCancelled,
    TaskFailed,
    TaskFinished,
    TaskHandedOver,
    TaskStopped,
    Want,
)
from serve_app.store.database.changes import Claims, JobRow, OwnerCharged
from serve_app.store.tenants.pauses import THE_QUEUE, Pause

LOOKED_AHEAD = 64
"""Jobs whose next tasks are considered where a pool has none."""
MAX_STOPS = 100
"""How often a replica may stop a task that was not cancelled, before its job ends in error."""


class Machine:
    """The state of the scheduler. epoch: the fencing number of this scheduler process.

    max_attempts: replicas that a job may lose while it runs alone on them. costs: measured durations of earlier
    epochs. quota: of a tenant; its weight in each pool and its limit of running jobs. gpus: of a replica, by pool, else
    1. usage: device time that tenants have used. queued: the number of jobs that have not started, by client.
    pauses: what is paused or drained. backoff: the owners whose jobs wait because they ended replicas.
    """

    def __init__(
        self,
        epoch: int,
        max_attempts: int,
        costs: Costs | None = None,
        quota: Callable[[str], Quota] = NO_QUOTAS.of,
        gpus: Mapping[str, float] | None = None,
        usage: Usage | None = None,
        backoff: Backoff | None = None,
    ) -> None:
        self.jobs: dict[str, JobRecord] = {}
        self.queued: Counter[tuple[str, str | None]] = Counter()
        self.usage = Usage() if usage is None else usage
        self.pauses: frozenset[Pause] = frozenset()
        self.backoff = Backoff(BackoffRules()) if backoff is None else backoff
        self.replicas = Replicas()
        self.results = Results()
        self.moves: Counter[str] = Counter()
        """Tasks that replicas have `handed_over`, that were `lost` with one, and the `steps` that were repeated."""
        self.costs = Costs() if costs is None else costs
        self._journal = Journal(epoch)
        self._max_attempts = max_attempts
        self.device_time = DeviceTime()
        self.dispatch = Dispatch(self.jobs, self.replicas, self.costs, self._awaited, lambda t: quota(t).weight)
        self._prefetcher = Prefetcher(self.jobs, self.replicas, self.costs)
        self.running_limit = RunningLimit(lambda tenant: quota(tenant).running)
        self._gpus = dict(gpus or {})
        self._waiters: defaultdict[str, list[TaskId]] = defaultdict(list)
        self._trace = JobTrace()

    def handle(self, event: MachineEvent, at_s: float) -> list[Command]:
        """Apply one event and return the commands to execute, in order.

        at_s: Unix time. It stamps events, measures device time, and bounds how long a task waits beside a free replica.
        """
        self._journal.at_s = at_s
        self.device_time.advance(at_s)
        self.usage.advance(at_s)
        self._trace.note(event, at_s)
        for owner in self.backoff.advance(at_s):
            for job in self._unstarted(owner):
                self._wake(job)
        match event:
            case JobArrived(row, plan, claims):
                self._job_arrived(row, plan, claims)
            case CancelAsked(job_id):
                if job_id in self.jobs:
                    self._end(self.jobs[job_id], "cancelled", failures.of_cancelled(self.jobs[job_id]))
            case JobRefused(job_id, failure, since_s):
                if job_id in self.jobs:
                    self._end(self.jobs[job_id], "error", failure)
                else:  # its end is not published yet: it could not be recorded, or the job not be planned again
                    self._journal.ended(job_id, "error", failure, since_s)
            case ReplicaJoined(info, host):
                self._replica_gone(info.replica_id, "lost")
                self.replicas.join(info, host, drained=self._drained(info.replica_id, {host, *info.rank_hosts}))
            case ReplicaLeft(replica_id):
                self._replica_gone(replica_id, "handed_over")
            case ReplicaLost(replica_id, checking, why):
                self._charge(replica_id, checking=checking, why=why)
                self._replica_gone(replica_id, "lost")
            case Reported(replica_id, report):
                if replica_id in self.replicas:
                    self._reported(self.replicas[replica_id], report)
            case PausesChanged(pauses):
                self._pauses_changed(pauses)
            case FilesGone(signatures):
                for replica_id, gone in self.results.forget_ui(signatures).items():
                    self._send(replica_id, Forget(tuple(gone)))
            case TimePassed():
                self.dispatch.moved = True
        moved = self.dispatch.moved or self.replicas.moved
        for job, task, among in self.dispatch.startable(at_s):
            self._start(job, task, among)
        if moved:
            for replica_id, message in self._prefetcher.changes(self.dispatch.ready, at_s):
                self._send(replica_id, message)
        return self._journal.take()

    def check(self) -> list[tuple[str, str]]:
        """Return violated invariants as (job id, description), [] unless there is a defect; see `invariants.py`."""
        queues = self.dispatch.queues()
        return list(violations(self.jobs, self.replicas, queues, self.results, self._waiters, self._blocked))

    def trace(self, job_id: str) -> list[tuple[float, str]]:
        """Return what happened to an unfinished job lately: (Unix time, event); [] for any other."""
        return self._trace.of(job_id)

    def next_seq(self) -> int:
        """Return the cursor of the next event."""
        return self._journal.next_seq()

    def backlog(self, pool: str) -> Demand:
        """Return how many of the pool's tasks wait for a replica, and how many run.

        A task runs until its replica reports its end, also after its job was cancelled.
        """
        running = self.replicas.pool(pool).occupied
        waiting = self.dispatch.waiting(pool)
        next_s = None if waiting + running else self._next_s(pool)
        return Demand(waiting, running, self.dispatch.waiting_s(pool), next_s, self.dispatch.reserved(pool))

    def _next_s(self, pool: str) -> float | None:
        """Return in how many seconds one of the oldest jobs is expected to have a task for a pool; None if none is."""
        expected = []
        for job in islice(self.jobs.values(), LOOKED_AHEAD):
            left = [task for task in job.tasks if task.state != "done"]
            others = [task for task in left if task.plan.pool != pool]
            if len(others) < len(left) and not self._blocked(job):
                expected.append(sum(self.dispatch.slot_s(job, task) for task in others))
        return min(expected, default=None)

    # Jobs -----------------------------------------------------------------------------------------------------------

    def _job_arrived(self, row: JobRow, plan: Plan, claims: Claims) -> None:
        job = JobRecord(
            row=row,
            plan=plan,
            tasks=[TaskRecord(task, steps_of(plan, task.nodes)) for task in plan.tasks],
            started_s=row.started_s,
            outputs=dict(row.outputs),
            missing=set(row.targets) - set(row.outputs),
            files=files_of(plan.graph, (node_id for task in plan.tasks for node_id in task.nodes)),
            cached=row.cached,
            losses=row.losses,
            lone_losses=row.lone_losses,
        )
        job.unexplained = row.losses > 0 and not row.lone_losses
        job.alone = self.backoff.of(job.owner).alone
        self.jobs[row.job_id] = job
        self._count(job, 1)
        if job.tenant:
            expected = (self._gpus_of(t.plan.pool) * self.dispatch.expected_s(t.plan.pool, job, t) for t in job.tasks)
            job.expected_s = sum(expected)
            self.usage.expect(job.tenant, job.expected_s)
        self._journal.accepted(row, claims)
        if (passed := self.running_limit.enter(job)) is not None:
            self._put_back(passed)
        if job.missing:
            self._wake(job)
        else:
            self._end(job, "success", Failure())

    def _count(self, job: JobRecord, change: int) -> None:
        """Count a job in or out of those that have not started, or of those that have."""
        (self.usage.queued if job.started_s is None else self.usage.running)[job.tenant] += change
        if job.started_s is None:
            client = job.tenant, job.row.client_id
            self.queued[client] += change
            if not self.queued[client]:
                del self.queued[client]

    def _wake(self, job: JobRecord) -> None:
        """Make every waiting task ready whose needs are done and that has a target left, unless its job is blocked."""
        if self._blocked(job):
            return
        done = {node_id for task in job.tasks if task.state == "done" for node_id in task.plan.nodes}
        for task in job.tasks:
            if task.state == "waiting" and done.issuperset(task.plan.needs) and targets_of(job, task):
                self._make_ready(job, task)

    def _blocked(self, job: JobRecord) -> bool:
        """Whether a job must not start: invariant 2, and its tenant's limit of running jobs."""
        if job.started_s is not None:
            return False
        if self.running_limit.blocks(job) or self.backoff.blocks(job.owner):
            return True
        if not self.pauses:
            return False
        pools = (Pause("pool", task.plan.pool) for task in job.tasks)
        return not self.pauses.isdisjoint((THE_QUEUE, Pause("tenant", job.tenant), *pools))

    def _pauses_changed(self, pauses: frozenset[Pause]) -> None:
        self.pauses = pauses
        for name, replica in self.replicas.items():
            self.replicas.set_drained(replica, self._drained(name, replica.hosts))
        for job in [job for job in self.jobs.values() if job.started_s is None]:
            if self._blocked(job):
                self._put_back(job)
            self._wake(job)

    def _drained(self, replica_id: str, hosts: Set[str]) -> bool:
        return not self.pauses.isdisjoint((Pause("replica", replica_id), *(Pause("host", host) for host in hosts)))

    def _put_back(self, job: JobRecord) -> None:
        """Remove the ready tasks of a job from the queues."""
        for task in job.tasks:
            if task.state == "ready":
                task.state = "waiting"
                self.dispatch.forget(job, task)

    def _make_ready(self, job: JobRecord, task: TaskRecord) -> None:
        task.state, task.replica_id = "ready", None
        self.dispatch.put(job, task)

    def _awaited(self, job: JobRecord, task: TaskRecord) -> bool:
        """Whether a running task of the job waits for a value of this task, directly or through other tasks."""
        waiters = (waiter for n in task.plan.nodes for waiter in self._waiters.get(job.plan.signatures[n], ()))
        return any(waiter.job_id == job.row.job_id and self.is_current(waiter) for waiter in waiters) or any(
            self._awaited(job, other)
            for other in job.tasks
            if other.state == "waiting" and not set(task.plan.nodes).isdisjoint(other.plan.needs)
        )

    def _record(self, job: JobRecord, node_id: str, ui: Mapping[str, Any], by: TaskId | None = None) -> None:
        """Record an output durably; end the job with its last one. by: the task that made it."""
        if node_id not in job.missing:
            return
        job.missing.discard(node_id)
        job.finished.add(node_id)
        self._journal.output(job, node_id, ui, placed(node_id, None))
        if not job.missing:
            self._end(job, "success", Failure(), by)

    def _end(self, job: JobRecord, state: Ending, failure: Failure, by: TaskId | None = None) -> None:
        """End a job and interrupt its running tasks, except the one that reports the end."""
        if by is not None and (replica := self.replicas.get(job.tasks[by.index].replica_id or "")) is not None:
            self._bill(replica, by, whole=True)
        if job.tenant:
            self.usage.expect(job.tenant, -job.expected_s)
        self._journal.used(self.usage.total(job.tenant, job.row.job_id))
        del self.jobs[job.row.job_id]
        self._count(job, -1)
        if job.unexplained and state != "success":
            # Whether it ended its replicas stays unknown. Without a charge, an owner could cancel in time each time.
            self._charge_owner(job.owner)
        self._trace.forget(job.row.job_id)
        self._journal.ended(job.row.job_id, state, failure, job.started_s or job.row.created_s)
        for task in job.tasks:
            task_id = id_of(job, task)
            if task.state == "ready":
                self.dispatch.forget(job, task)
            if task.state == "running" and (task_id != by or any(task_id in w for w in self._waiters.values())):
                self._send(task.replica_id, Interrupt(task_id))
        if (following := self.running_limit.leave(job)) is not None:
            self._wake(following)

    def _send(self, replica_id: str | None, message: Message) -> None:
        if replica_id is not None:
            self._journal.commands.append(Send(replica_id, message))

    # Placing --------------------------------------------------------------------------------------------------------

    def _start(self, job: JobRecord, task: TaskRecord, among: LeastBusy) -> None:
        """Send a ready task to one of the replicas, unless its outputs are known already."""
        if job.started_s is None:
            self._count(job, -1)
            self._start_job(job)
            self._count(job, 1)
        for node_id in task.plan.targets:
            ui = self.results.ui(job.plan.signatures[node_id])
            if node_id in job.missing and ui is not None:
                self._record(job, node_id, ui)
        if job.row.job_id not in self.jobs:
            return
        targets = tuple(n for n in targets_of(job, task) if self._unmade(job, n))
        if not targets:
            self._done(job, task)
            return
        lost = [n for n in task.plan.needs if not self._reachable(job.plan.signatures[n], job)]
        if lost:
            self._remake(job, lost)
            task.state = "waiting"
            return
        signatures = {job.plan.signatures[n] for n in (*task.plan.nodes, *task.plan.needs)}
        replica = choose(among, signatures, job.files.all, self.results, self.costs)
        task.state, task.replica_id = "running", replica.info.replica_id
        task_id = id_of(job, task)
        self.replicas.start(replica, task_id, self.dispatch.start(job, task, replica, self._journal.at_s))
        self.device_time.start(replica.info.replica_id, task_id)
        remote = self._claim(job, task, targets, replica)
        self._send(replica.info.replica_id, Assign(assignment(job, task, targets, remote, room=replica.free)))

    def _start_job(self, job: JobRecord) -> None:
        nodes = [node_id for task in job.plan.tasks for node_id in task.nodes]
        left = self._left(job)
        job.cached = tuple(node_id for node_id in nodes if node_id not in left)
        self._journal.started(job)
        for node_id in job.cached:
            for rest, ui in self.results.expanded(job.plan.signatures[node_id]).items():
                self._record_ui(job, node_id + rest, ui, Origin(node_id, node_id, node_id))
            if node_id not in job.plan.outputs and (shown := self.results.ui(job.plan.signatures[node_id])):
                self._record_ui(job, node_id, shown, None)

    def _left(self, job: JobRecord) -> set[str]:
        """Return the nodes that a job may have to compute: those that its outputs need through no known value."""
        left: set[str] = set()
        stack = list(job.plan.outputs)
        while stack:
            node_id = stack.pop()
            if node_id not in left and not self.results.known(job.plan.signatures[node_id]):
                left.add(node_id)
                stack.extend(link.node_id for _, link in job.plan.graph.nodes[node_id].links())
        return left

    def _unmade(self, job: JobRecord, node_id: str) -> bool:
        if node_id in job.plan.outputs:
            return node_id in job.missing
        return not self.results.holders(job.plan.signatures[node_id])

    def _reachable(self, signature: str, job: JobRecord) -> bool:
        return bool(self.results.holders(signature)) or self._maker(signature, job) is not None

    def _maker(self, signature: str, job: JobRecord) -> TaskId | None:
        """Return the task that computes a value, if the job may wait for it: a suspect waits for its own tasks only."""
        owner = self.results.owner(signature)
        return owner if owner is None or not job.suspect or owner.job_id == job.row.job_id else None

    def _remake(self, job: JobRecord, nodes: Iterable[str]) -> None:
        """Run the tasks again whose values are wanted but evicted, or were never computed."""
        for node_id in nodes:
            job.wanted |= {node_id}
            task = next(t for t in job.tasks if node_id in t.plan.nodes)
            if task.state == "done":
                task.attempt += 1
                self._make_ready(job, task)
        self._wake(job)
        for task in job.tasks:
            if task.state == "ready":  # it may be awaited from now on
                self.dispatch.put(job, task)

    def _claim(
        self, job: JobRecord, task: TaskRecord, targets: Iterable[str], replica: ReplicaRecord
    ) -> frozenset[str]:
        """Walk down from the targets: claim what the replica computes, return the signatures that it must fetch."""
        task_id, own = id_of(job, task), set(task.plan.nodes)
        remote: set[str] = set()
        seen: set[str] = set()
        stack = list(targets)
        while stack:
            node_id = stack.pop()
            signature = job.plan.signatures[node_id]
            if signature in seen:
                continue
            seen.add(signature)
            holders, owner = self.results.holders(signature), self._maker(signature, job)
            if replica.info.replica_id in holders or owner in replica.running:
                continue
            if holders or owner is not None or node_id not in own:
                remote.add(signature)
                continue
            # Other tasks may wait for a claimed value, so only nodes that certainly run are claimed.
            if node_id in job.plan.certain and self.results.owner(signature) is None:
                self.results.claim(signature, task_id)
            stack.extend(link.node_id for _, link in job.plan.graph.nodes[node_id].links())
        return frozenset(remote)

    # Reports --------------------------------------------------------------------------------------------------------

    def _reported(self, replica: ReplicaRecord, report: Report) -> None:
        replica_id = replica.info.replica_id
        match report:
            case NodeFinished(task_id, node_id, signature, ui, origin, computed):
                self.results.add_holder(replica_id, signature, ui)
                if self._waiters.get(signature):
                    self._send(replica_id, Export(signature))
                if current := self._current(task_id):
                    self._node_finished(task_id, current[0], node_id, ui, origin, computed)
                    self._twins_finished(current[0], node_id, signature)
            case ClientMessage(client_id, type_, data):
                self._journal.publish_to_client(client_id, {"type": type_, "data": data})
            case TaskFinished(task_id, took_s):
                self._bill(replica, task_id, whole=took_s > 0)
                if (work := replica.work.get(task_id)) is not None and took_s > 0:
                    self.costs.learn_steps(replica.info.pool, work.file, work.steps, took_s)
                self._end_task(replica, task_id)
                if current := self._current(task_id):
                    self._done(*current)
            case TaskFailed(task_id):
                self._end_task(replica, task_id)
                if current := self._current(task_id):
                    if report.out_of_memory and not current[0].suspect:
                        self._suspect(*current)
                    else:
                        current[1].state = "done"
                        self._end(current[0], "error", failures.of_node(current[0], report))
            case TaskStopped(task_id):
                self._end_task(replica, task_id)
                if current := self._current(task_id):
                    self._stopped(*current)
            case TaskHandedOver(task_id):
                self._end_task(replica, task_id)
                if current := self._current(task_id):
                    self.moves["handed_over"] += 1
                    self._try_again(*current)
            case SlotReleased(task_id):
                self._bill(replica, task_id)
                self.replicas.release_slot(replica, task_id)
            case TaskCancelled(task_id):
                self._end_task(replica, task_id)
                if current := self._current(task_id):
                    current[1].state = "done"
                    self._end(current[0], "cancelled", Failure())
            case Want(task_id, signature):
                if self._current(task_id):
                    self._resolve(signature, [task_id])
                else:  # the value that it waits for will not come
                    self._send(replica_id, Interrupt(task_id))
            case Exported(signature, value):
                for waiter in self._waiters.pop(signature, []):
                    self._send(self._replica_of(waiter), Deliver(signature, value))
            case Evicted(signatures):
                self.results.evict(replica_id, signatures)
                for signature in signatures:
                    self._resolve(signature, self._waiters.pop(signature, []))
            case Draining(tenant, client_id, by_job, why):
                self.replicas.drain(replica, why)
                if by_job:
                    self._charge_owner((tenant, None if tenant else client_id))
            case NodesLinger(owners):
                replica.lingering = owners
            case Reopened():
                self.replicas.drain(replica, "")
            case ResidentWeights(recipes, loads):
                self.costs.learn_loads(replica.info.pool, load_times(loads))
                self.replicas.hold(replica, recipes)
            case NodesCached(task_id, nodes):
                if current := self._current(task_id):
                    self._journal.cached(current[0], nodes)
            case NodeStarted() | NodeProgressed() | NodeBlocked() | NodeSentMessage() | NodePreviewed():
                if current := self._current(report.task_id):
                    self.moves["steps"] += node_reports.steps_repeated(current[0], report)
                    self._journal.publish(current[0], *node_reports.event_of(current[0], report))

    def _node_finished(
        self,
        by: TaskId,
        job: JobRecord,
        node_id: str,
        ui: Mapping[str, Any] | None,
        origin: Origin | None,
        computed: bool,
    ) -> None:
        """Record that a node is done, and its ui dict if it has one."""
        job.finished.add(node_id)
        job.executing.pop(node_id, None)
        if node_id in job.plan.outputs:
            self._record(job, node_id, ui or {}, by)
        elif ui:
            self._record_ui(job, node_id, ui, origin)
            if origin is not None and node_id.startswith(origin.real):
                self.results.add_expanded(job.plan.signatures[origin.real], node_id.removeprefix(origin.real), ui)
        elif computed:
            self._journal.publish(job, "finished", placed(node_id, origin))

    def _twins_finished(self, job: JobRecord, node_id: str, signature: str) -> None:
        """Publish equal nodes of the same job as run: their signature has just been computed, so they never will be."""
        for twin in job.plan.twins.get(signature, ()):
            known = twin in job.finished or twin in job.executing or twin in job.cached
            if twin in job.plan.certain and twin not in job.plan.outputs and twin != node_id and not known:
                job.finished.add(twin)
                self._journal.publish(job, "executing", placed(twin, None))
                self._journal.publish(job, "finished", placed(twin, None))

    def _record_ui(self, job: JobRecord, node_id: str, ui: Mapping[str, Any], origin: Origin | None) -> None:
        """Record the ui dict of a node that is no output of the job. origin: of an expanded node."""
        if node_id in job.outputs:
            return
        self._journal.output(job, node_id, ui, placed(node_id, origin))

    def _current(self, task_id: TaskId) -> tuple[JobRecord, TaskRecord] | None:
        """Return the job and task if this attempt is the current one, else None."""
        job = self.jobs.get(task_id.job_id)
        if job is None or task_id.index >= len(job.tasks):
            return None
        task = job.tasks[task_id.index]
        return (job, task) if task.state == "running" and task.attempt == task_id.attempt else None

    def is_current(self, task_id: TaskId) -> bool:
        """Whether this attempt is the current one of a running task."""
        return self._current(task_id) is not None

    def _replica_of(self, task_id: TaskId) -> str | None:
        current = self._current(task_id)
        return None if current is None else current[1].replica_id

    def _done(self, job: JobRecord, task: TaskRecord) -> None:
        task.state = "done"
        signatures = [job.plan.signatures[n] for n in job.wanted.intersection(task.plan.nodes)]
        # A value that was wanted while it ran was no target of this run.
        if any(self._waiters.get(s) and not self._reachable(s, job) for s in signatures):
            task.attempt += 1
            self._make_ready(job, task)
        self._wake(job)

    def _end_task(self, replica: ReplicaRecord, task_id: TaskId) -> None:
        """Free a task's slot, and find other sources for values that it claimed but did not compute."""
        self._bill(replica, task_id)
        self.replicas.end(replica, task_id)
        self._orphan(self.results.release(task_id))

    def _bill(self, replica: ReplicaRecord, task_id: TaskId, *, whole: bool = False) -> None:
        """Charge a task's tenant, once, for its device time. whole: the task has done its work."""
        had_s = self.device_time.end(replica.info.replica_id, task_id)
        if had_s is None:
            return
        pool, work = replica.info.pool, replica.work[task_id]
        self.dispatch.end(pool, work, had_s)
        if whole and not work.owed_s:
            self.costs.learn_shares(pool, work.file, work.steps, had_s)
        self.usage.add(work.tenant, had_s * self._gpus_of(pool))
        if task_id.job_id not in self.jobs:
            self._journal.used(self.usage.total(work.tenant, task_id.job_id))

    def _gpus_of(self, pool: str) -> float:
        return self._gpus.get(pool, 1.0)

    def _orphan(self, signatures: Iterable[str]) -> None:
        for signature in sorted(signatures):
            self._resolve(signature, self._waiters.pop(signature, []))

    def _resolve(self, signature: str, waiters: Iterable[TaskId]) -> None:
        """Give each waiter a source for a value: a holder, the task that computes it, or the waiter itself."""
        for task_id in waiters:
            current = self._current(task_id)
            if current is None:
                continue
            job, task = current
            if holders := self.results.holders(signature):
                if not self._waiters[signature]:
                    self._send(next(iter(holders)), Export(signature))
                self._waiters[signature].append(task_id)
            elif self._maker(signature, job) not in (None, task_id):
                self._waiters[signature].append(task_id)
            elif lost := elsewhere(job, task, signature):
                self._waiters[signature].append(task_id)
                self._remake(job, lost)
            else:
                if self.results.owner(signature) is None:
                    self.results.claim(signature, task_id)
                self._send(task.replica_id, Compute(signature))

    # Losing a replica -----------------------------------------------------------------------------------------------

    def _charge(self, replica_id: str, *, checking: bool, why: str) -> None:
        """Count a replica's death for the jobs that ran on it; end the one that has lost too many alone."""
        replica = self.replicas.get(replica_id)
        if replica is None:
            return
        for owner in replica.lingering:
            self._charge_owner(owner)
        if not replica.takes_tasks:
            return
        present = {task_id.job_id for task_id in replica.running}
        alone = len(present) == 1 and not (checking or replica.lingering)
        if alone:
            self._charge_owner(next(iter(replica.work.values())).owner)
        ran = {task_id.job_id for task_id in replica.running if self.is_current(task_id)}
        for job in (self.jobs[job_id] for job_id in sorted(ran)):
            job.unexplained = not (alone or replica.lingering)
            if alone:
                job.lone_losses += 1
            else:
                job.losses += 1
            if job.lone_losses >= self._max_attempts:
                wait_s = self.backoff.of(job.owner).until_s - self._journal.at_s
                self._end(job, "error", failures.of_lost_replicas(job, replica.info.pool, why, wait_s))
            else:
                self._journal.lost_replica(job)

    def _charge_owner(self, owner: Owner) -> None:
        """Have the next jobs of whoever has ended a replica wait, and run alone if it was not the first."""
        losses = self.backoff.charge(owner, self._journal.at_s)
        self._journal.charged(OwnerCharged(*owner, losses.count, losses.last_s, losses.until_s))
        for job in self._unstarted(owner):
            # Its queued tasks move to the suspects' queue.
            job.alone = job.alone or losses.alone
            self._put_back(job)

    def _unstarted(self, owner: Owner) -> list[JobRecord]:
        return [job for job in self.jobs.values() if job.started_s is None and job.owner == owner]

    def _suspect(self, job: JobRecord, task: TaskRecord) -> None:
        """Try a task again in quarantine, since other jobs on its replica may have taken the memory."""
        job.losses = SHARED_LOSSES
        self._journal.lost_replica(job)
        self._try_again(job, task)

    def _replica_gone(self, replica_id: str, how: Literal["handed_over", "lost"]) -> None:
        """Retry the tasks of a replica that is gone, and find other sources for its values."""
        replica = self.replicas.drop(replica_id)
        if replica is None:
            return
        self.results.drop_replica(replica_id)
        orphans: set[str] = set()
        for task_id in sorted(replica.running, key=lambda t: (t.job_id, t.index, t.attempt)):
            self._bill(replica, task_id)
            orphans |= self.results.release(task_id)
            if current := self._current(task_id):
                self.moves[how] += 1
                self._try_again(*current)
        stranded = [s for s, waiters in self._waiters.items() if waiters and not self.results.holders(s)]
        self._orphan(orphans | set(stranded))

    def _stopped(self, job: JobRecord, task: TaskRecord) -> None:
        """Try a task again that its replica stopped, as for a value lost in transit; at most MAX_STOPS times."""
        task.stops += 1
        if task.stops < MAX_STOPS:
            self._try_again(job, task)
            return
        failure = failures.of_stops(job, task)
        task.state = "done"
        self._end(job, "error", failure)

    def _try_again(self, job: JobRecord, task: TaskRecord) -> None:
        task.attempt += 1
        for node_id in [n for n, real in job.executing.items() if real in task.plan.nodes]:
            del job.executing[node_id]
            if (steps := job.steps.pop(node_id, None)) is not None:
                job.reached[node_id] = steps
        self._make_ready(job, task)
