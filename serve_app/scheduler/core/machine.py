"""The scheduler's mind: a pure state machine. `handle(event) -> [command]`; no clock, no I/O, no Ray, no threads.

Rules:
1. A job runs its tasks when the values they need are there. Tenants are served by turns, a tenant's jobs by (number,
   submission order), but for what `dispatch.py` says of weights that are worth waiting for.
2. A task is sent to one replica as one attempt, and takes a slot there until it ends, or until the replica says that
   the rest is storing. Only the current attempt of a running task counts; answers of any other are dropped. Losing the
   replica makes a new attempt; a node that raises ends the job.
   A job that has lost SHARED_LOSSES replicas together with others is a suspect: it runs in quarantine, on replicas
   where no other job runs, and waits for no other job's work. So is one whose node got no memory. One that
   loses max_attempts replicas on which it ran alone is given up. So no job is given up because of another, and each
   replica lost brings a job nearer to its end.
   A replica that drains, as a node there does not stop, is given no more tasks; what runs there goes on meanwhile, and
   is charged with nothing. Whoever's nodes go on after their task's end is charged with the death of their replica.
3. A signature is computed by one task at a time in the whole cluster. Who else needs it asks (Want) and is sent it
   (Export, Deliver), or told to make it (Compute) once nobody has or makes it.
4. An output recorded for a job is never computed again for that job.
5. A job ends once: success when its outputs are recorded, error or cancelled otherwise. Nothing follows its end.
6. A job that has not started stays so while the queue, its tenant or a pool that it needs is paused, and while its
   owner waits for having ended a replica (`backoff.py`); one that has goes on.
7. Whatever clients are told for good is a Persist with the same cursor, in front of the Publish that tells them
   (`journal.py`). The shell commits every Persist of a batch before it carries any command of it out.

The machine knows unfinished jobs only. The shell (`scheduler.py`) feeds it and carries the commands out.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping
from typing import Any

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
    ClientTold,
    Compute,
    Deliver,
    Draining,
    Evicted,
    Export,
    Exported,
    Forget,
    GoesOn,
    Interrupt,
    Message,
    NodeBlocked,
    NodeFinished,
    NodePreviewed,
    NodeProgressed,
    NodeSaid,
    NodesCached,
    NodeStarted,
    Reopened,
    Report,
    Resident,
    SlotVacated,
    TaskCancelled,
    TaskFailed,
    TaskFinished,
    TaskStopped,
    Want,
)
from serve_app.store.database.changes import Claims, JobRow, OwnerCharged
from serve_app.store.tenants.pauses import THE_QUEUE, Pause

MAX_STOPS = 100
"""How often a replica may stop a task that nobody has cancelled."""


class Machine:
    """The state of the scheduler. epoch: the fencing number of this life.

    max_attempts: replicas that a job may lose while it runs alone on them. costs: what work has taken in earlier lives.
    quota: of a tenant, by which its share of each pool goes, and how many jobs of it run. gpus: of a replica, by pool,
    else 1. usage: what tenants have used, counted on.
    queued: how many jobs of each client have not started. pauses: what is held back. backoff: who waits for having
    ended replicas.
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
        self.costs = Costs() if costs is None else costs
        self._journal = Journal(epoch)
        self._max_attempts = max_attempts
        self._device_time = DeviceTime()
        self._dispatch = Dispatch(self.jobs, self.replicas, self.costs, self._awaited, lambda t: quota(t).weight)
        self._prefetcher = Prefetcher(self.jobs, self.replicas, self.costs)
        self._running_limit = RunningLimit(lambda tenant: quota(tenant).running)
        self._gpus = dict(gpus or {})
        self._waiters: defaultdict[str, list[TaskId]] = defaultdict(list)
        self._trace = JobTrace()

    def handle(self, event: MachineEvent, at_s: float) -> list[Command]:
        """Take one stimulus in and return what must be done, in order. at_s: Unix time.

        It is copied into events; nothing else goes by it but how long a task is held back beside a free replica, and
        how long tasks have had their devices.
        """
        self._journal.at_s = at_s
        self._device_time.advance(at_s)
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
                else:  # nobody has been told of an end: it could not be recorded, or the job not be planned again
                    self._journal.ended(job_id, "error", failure, since_s)
            case ReplicaJoined(info):
                self._replica_gone(info.replica_id)
                self.replicas.join(info)
            case ReplicaLeft(replica_id):
                self._replica_gone(replica_id)
            case ReplicaLost(replica_id, checking, why):
                self._charge(replica_id, checking=checking, why=why)
                self._replica_gone(replica_id)
            case Reported(replica_id, report):
                if replica_id in self.replicas:
                    self._reported(self.replicas[replica_id], report)
            case PausesChanged(pauses):
                self._pauses_changed(pauses)
            case FilesGone(signatures):
                for replica_id, held in self.results.forget_shown(signatures).items():
                    self._send(replica_id, Forget(tuple(held)))
            case TimePassed():
                self._dispatch.moved = True
        moved = self._dispatch.moved or self.replicas.moved
        for job, task, among in self._dispatch.startable(at_s):
            self._start(job, task, among)
        if moved:
            for replica_id, message in self._prefetcher.changes(self._dispatch.ready, at_s):
                self._send(replica_id, message)
        return self._journal.take()

    def check(self) -> list[tuple[str, str]]:
        """Return what is wrong with this state, as (job id, what); see `invariants.py`. [] unless there is a defect."""
        queues = self._dispatch.queues()
        return list(violations(self.jobs, self.replicas, queues, self.results, self._waiters, self._held))

    def trace(self, job_id: str) -> list[tuple[float, str]]:
        """Return what happened to an unfinished job lately: (Unix time, stimulus); [] for any other."""
        return self._trace.of(job_id)

    def next_seq(self) -> int:
        """Return the cursor of the next event."""
        return self._journal.next_seq()

    def backlog(self, pool: str) -> Demand:
        """Return how many of the pool's tasks are ready but without a replica, and how many run.

        A task runs until its replica has said otherwise, also when nobody wants it any more.
        """
        running = self.replicas.pool(pool).occupied
        return Demand(self._dispatch.waiting(pool), running, self._dispatch.waiting_s(pool))

    # Jobs -----------------------------------------------------------------------------------------------------------

    def _job_arrived(self, row: JobRow, plan: Plan, claims: Claims) -> None:
        outputs = {node_id: ui for node_id, (_, ui) in row.outputs.items()}
        job = JobRecord(
            row=row,
            plan=plan,
            tasks=[TaskRecord(task, steps_of(plan, task.nodes)) for task in plan.tasks],
            started_s=row.started_s,
            outputs=outputs,
            missing=set(row.targets) - set(outputs),
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
            expected = (self._gpus_of(t.plan.pool) * self._dispatch.expected_s(t.plan.pool, job, t) for t in job.tasks)
            job.expected_s = sum(expected)
            self.usage.expect(job.tenant, job.expected_s)
        self._journal.accepted(row, claims)
        if (passed := self._running_limit.enter(job)) is not None:
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
        """Make ready every waiting task whose needs are done and that has something to evaluate, unless it is held."""
        if self._held(job):
            return
        done = {node_id for task in job.tasks if task.state == "done" for node_id in task.plan.nodes}
        for task in job.tasks:
            if task.state == "waiting" and done.issuperset(task.plan.needs) and targets_of(job, task):
                self._make_ready(job, task)

    def _held(self, job: JobRecord) -> bool:
        """Whether a job must not start."""
        if job.started_s is not None:
            return False
        if self._running_limit.holds(job) or self.backoff.holds(job.owner):
            return True
        if not self.pauses:
            return False
        pools = (Pause("pool", task.plan.pool) for task in job.tasks)
        return not self.pauses.isdisjoint((THE_QUEUE, Pause("tenant", job.tenant), *pools))

    def _pauses_changed(self, pauses: frozenset[Pause]) -> None:
        self.pauses = pauses
        for job in [job for job in self.jobs.values() if job.started_s is None]:
            if self._held(job):
                self._put_back(job)
            self._wake(job)

    def _put_back(self, job: JobRecord) -> None:
        """Take a job that is held out of the queues."""
        for task in job.tasks:
            if task.state == "ready":
                task.state = "waiting"
                self._dispatch.forget(job, task)

    def _make_ready(self, job: JobRecord, task: TaskRecord) -> None:
        task.state, task.replica_id = "ready", None
        self._dispatch.put(job, task)

    def _awaited(self, job: JobRecord, task: TaskRecord) -> bool:
        """Whether a running task of the job waits for what this one makes, or for what another makes of it."""
        waiters = (waiter for n in task.plan.nodes for waiter in self._waiters.get(job.plan.signatures[n], ()))
        return any(waiter.job_id == job.row.job_id and self.is_current(waiter) for waiter in waiters) or any(
            self._awaited(job, other)
            for other in job.tasks
            if other.state == "waiting" and not set(task.plan.nodes).isdisjoint(other.plan.needs)
        )

    def _record(self, job: JobRecord, node_id: str, ui: Mapping[str, Any], by: TaskId | None = None) -> None:
        """Record an output for good; end the job with its last one. by: the task that made it."""
        if node_id not in job.missing:
            return
        job.missing.discard(node_id)
        job.finished.add(node_id)
        self._journal.output(job, node_id, ui, placed(node_id, None))
        if not job.missing:
            self._end(job, "success", Failure(), by)

    def _end(self, job: JobRecord, state: Ending, failure: Failure, by: TaskId | None = None) -> None:
        """End a job and stop what runs of it, but for the task that brings the end and is as good as over itself."""
        if job.tenant:
            if by is not None and (replica := self.replicas.get(job.tasks[by.index].replica_id or "")) is not None:
                self._bill(replica, by, whole=True)
            self.usage.expect(job.tenant, -job.expected_s)
            self._journal.used(self.usage.total(job.tenant, job.row.job_id))
        del self.jobs[job.row.job_id]
        self._count(job, -1)
        if job.unexplained and state != "success":
            # Nobody will know whether it is what ended its replicas: else who cancels in time would never be found out.
            self._charge_owner(job.owner)
        self._trace.forget(job.row.job_id)
        self._journal.ended(job.row.job_id, state, failure, job.started_s or job.row.created_s)
        for task in job.tasks:
            task_id = id_of(job, task)
            if task.state == "ready":
                self._dispatch.forget(job, task)
            if task.state == "running" and (task_id != by or any(task_id in w for w in self._waiters.values())):
                self._send(task.replica_id, Interrupt(task_id))
        if (following := self._running_limit.leave(job)) is not None:
            self._wake(following)

    def _send(self, replica_id: str | None, message: Message) -> None:
        if replica_id is not None:
            self._journal.commands.append(Send(replica_id, message))

    # Placing --------------------------------------------------------------------------------------------------------

    def _start(self, job: JobRecord, task: TaskRecord, among: LeastBusy) -> None:
        """Send a ready task to one of the replicas, unless what it should produce is known already."""
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
        self.replicas.start(replica, task_id, self._dispatch.start(job, task, replica, self._journal.at_s))
        self._device_time.start(replica.info.replica_id, task_id)
        remote = self._claim(job, task, targets, replica)
        self._send(replica.info.replica_id, Assign(assignment(job, task, targets, remote, room=replica.free)))

    def _start_job(self, job: JobRecord) -> None:
        nodes = [node_id for task in job.plan.tasks for node_id in task.nodes]
        left = self._left(job)
        job.cached = tuple(node_id for node_id in nodes if node_id not in left)
        self._journal.started(job)
        for node_id in job.cached:
            for rest, ui in self.results.made(job.plan.signatures[node_id]).items():
                self._record_beside(job, node_id + rest, ui, Origin(node_id, node_id, node_id))
            if node_id not in job.plan.outputs and (shown := self.results.ui(job.plan.signatures[node_id])):
                self._record_beside(job, node_id, shown, None)

    def _left(self, job: JobRecord) -> set[str]:
        """Return the nodes that its outputs may need yet: none whose value is known, nor what only such ones need."""
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
        """Return the task for whose work on the value the job may wait: a suspect waits for its own only."""
        owner = self.results.owner(signature)
        return owner if owner is None or not job.suspect or owner.job_id == job.row.job_id else None

    def _remake(self, job: JobRecord, nodes: Iterable[str]) -> None:
        """Run the tasks whose values are wanted but gone, or were not evaluated so far."""
        for node_id in nodes:
            job.wanted |= {node_id}
            task = next(t for t in job.tasks if node_id in t.plan.nodes)
            if task.state == "done":
                task.attempt += 1
                self._make_ready(job, task)
        self._wake(job)
        for task in job.tasks:
            if task.state == "ready":  # it may be awaited from now on
                self._dispatch.put(job, task)

    def _claim(
        self, job: JobRecord, task: TaskRecord, targets: Iterable[str], replica: ReplicaRecord
    ) -> frozenset[str]:
        """Walk down from the targets: claim what the replica must compute, return what it must ask for."""
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
            # Others may wait for what is claimed, so it must be what will be computed.
            if node_id in job.plan.certain and self.results.owner(signature) is None:
                self.results.claim(signature, task_id)
            stack.extend(link.node_id for _, link in job.plan.graph.nodes[node_id].links())
        return frozenset(remote)

    # Reports --------------------------------------------------------------------------------------------------------

    def _reported(self, replica: ReplicaRecord, report: Report) -> None:
        replica_id = replica.info.replica_id
        match report:
            case NodeFinished(task_id, node_id, signature, ui, origin, computed):
                self.results.hold(replica_id, signature, ui)
                if self._waiters.get(signature):
                    self._send(replica_id, Export(signature))
                if current := self._current(task_id):
                    self._node_finished(task_id, current[0], node_id, ui, origin, computed)
                    self._twins_finished(current[0], node_id, signature)
            case ClientTold(client_id, type_, data):
                self._journal.told_client(client_id, {"type": type_, "data": data})
            case TaskFinished(task_id, took_s):
                self._bill(replica, task_id, whole=took_s > 0)
                if (work := replica.work.get(task_id)) is not None and took_s > 0:
                    self.costs.learn_steps(replica.info.pool, work.file, work.steps, took_s)
                self._let_go(replica, task_id)
                if current := self._current(task_id):
                    self._done(*current)
            case TaskFailed(task_id):
                self._let_go(replica, task_id)
                if current := self._current(task_id):
                    if report.out_of_memory and not current[0].suspect:
                        self._suspect(*current)
                    else:
                        current[1].state = "done"
                        self._end(current[0], "error", failures.of_node(current[0], report))
            case TaskStopped(task_id):
                self._let_go(replica, task_id)
                if current := self._current(task_id):
                    self._stopped(*current)
            case SlotVacated(task_id):
                self._bill(replica, task_id)
                self.replicas.vacate(replica, task_id)
            case TaskCancelled(task_id):
                self._let_go(replica, task_id)
                if current := self._current(task_id):
                    current[1].state = "done"
                    self._end(current[0], "cancelled", Failure())
            case Want(task_id, signature):
                if self._current(task_id):
                    self._resolve(signature, [task_id])
                else:  # nobody will bring it what it waits for
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
            case GoesOn(owners):
                replica.going_on = owners
            case Reopened():
                self.replicas.drain(replica, "")
            case Resident(recipes, loads):
                self.costs.learn_loads(replica.info.pool, load_times(loads))
                self.replicas.hold(replica, recipes)
            case NodeStarted() | NodesCached() | NodeProgressed() | NodeBlocked() | NodeSaid() | NodePreviewed():
                if current := self._current(report.task_id):
                    self._journal.told(current[0], *node_reports.told(current[0], report))

    def _node_finished(
        self,
        by: TaskId,
        job: JobRecord,
        node_id: str,
        ui: Mapping[str, Any] | None,
        origin: Origin | None,
        computed: bool,
    ) -> None:
        """Note that a node is done; keep what it shows, whether or not the job waits for it."""
        job.finished.add(node_id)
        job.executing.pop(node_id, None)
        if node_id in job.plan.outputs:
            self._record(job, node_id, ui or {}, by)
        elif ui:
            self._record_beside(job, node_id, ui, origin)
            if origin is not None and node_id.startswith(origin.real):
                self.results.add_made(job.plan.signatures[origin.real], node_id.removeprefix(origin.real), ui)
        elif computed:
            self._journal.told(job, "finished", placed(node_id, origin))

    def _twins_finished(self, job: JobRecord, node_id: str, signature: str) -> None:
        """Say that the nodes have run which do what one has done, and which nobody therefore runs."""
        for twin in job.plan.twins.get(signature, ()):
            known = twin in job.finished or twin in job.executing or twin in job.cached
            if twin in job.plan.certain and twin not in job.plan.outputs and twin != node_id and not known:
                job.finished.add(twin)
                self._journal.told(job, "executing", placed(twin, None))
                self._journal.told(job, "finished", placed(twin, None))

    def _record_beside(self, job: JobRecord, node_id: str, ui: Mapping[str, Any], origin: Origin | None) -> None:
        """Record what a node shows that is no output of the job, which no job waits for. origin: of a made one."""
        if node_id in job.outputs:
            return
        self._journal.output(job, node_id, ui, placed(node_id, origin))

    def _current(self, task_id: TaskId) -> tuple[JobRecord, TaskRecord] | None:
        """Return the job and task if this attempt is the one that runs now."""
        job = self.jobs.get(task_id.job_id)
        if job is None or task_id.index >= len(job.tasks):
            return None
        task = job.tasks[task_id.index]
        return (job, task) if task.state == "running" and task.attempt == task_id.attempt else None

    def is_current(self, task_id: TaskId) -> bool:
        """Whether this attempt is the one that runs now."""
        return self._current(task_id) is not None

    def _replica_of(self, task_id: TaskId) -> str | None:
        current = self._current(task_id)
        return None if current is None else current[1].replica_id

    def _done(self, job: JobRecord, task: TaskRecord) -> None:
        task.state = "done"
        signatures = [job.plan.signatures[n] for n in job.wanted.intersection(task.plan.nodes)]
        # What was asked for while it ran was no target of this run.
        if any(self._waiters.get(s) and not self._reachable(s, job) for s in signatures):
            task.attempt += 1
            self._make_ready(job, task)
        self._wake(job)

    def _let_go(self, replica: ReplicaRecord, task_id: TaskId) -> None:
        """Free the task's slot, and hand on to its waiters what it claimed but did not compute."""
        self._bill(replica, task_id)
        self.replicas.end(replica, task_id)
        self._orphan(self.results.release(task_id))

    def _bill(self, replica: ReplicaRecord, task_id: TaskId, *, whole: bool = False) -> None:
        """Charge a task's tenant, once, for the device that it needs no longer. whole: the task has done its work."""
        had_s = self._device_time.end(replica.info.replica_id, task_id)
        if had_s is None:
            return
        pool, work = replica.info.pool, replica.work[task_id]
        self._dispatch.end(pool, work, had_s)
        if whole and not work.owed_s:
            self.costs.learn_shares(pool, work.file, work.steps, had_s)
        if work.tenant:
            self.usage.add(work.tenant, had_s * self._gpus_of(pool))
            if task_id.job_id not in self.jobs:
                self._journal.used(self.usage.total(work.tenant, task_id.job_id))

    def _gpus_of(self, pool: str) -> float:
        return self._gpus.get(pool, 1.0)

    def _orphan(self, signatures: Iterable[str]) -> None:
        for signature in sorted(signatures):
            self._resolve(signature, self._waiters.pop(signature, []))

    def _resolve(self, signature: str, waiters: Iterable[TaskId]) -> None:
        """Find the wanted value for each waiter: from a holder, from whoever computes it, or from the waiter itself."""
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
        """Hold a replica's death against the jobs that ran on it; give up the one that no other can have killed."""
        replica = self.replicas.get(replica_id)
        if replica is None:
            return
        for owner in replica.going_on:
            self._charge_owner(owner)
        if replica.draining:
            return
        present = {task_id.job_id for task_id in replica.running}
        alone = len(present) == 1 and not (checking or replica.going_on)
        if alone:
            self._charge_owner(next(iter(replica.work.values())).owner)
        ran = {task_id.job_id for task_id in replica.running if self.is_current(task_id)}
        for job in (self.jobs[job_id] for job_id in sorted(ran)):
            job.unexplained = not (alone or replica.going_on)
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
            # Those that are queued are put among the suspects as their turn comes.
            job.alone = job.alone or losses.alone
            self._put_back(job)

    def _unstarted(self, owner: Owner) -> list[JobRecord]:
        return [job for job in self.jobs.values() if job.started_s is None and job.owner == owner]

    def _suspect(self, job: JobRecord, task: TaskRecord) -> None:
        """Try again alone what others on its replica may have robbed of memory: they may be gone by now."""
        job.losses = SHARED_LOSSES
        self._journal.lost_replica(job)
        self._try_again(job, task)

    def _replica_gone(self, replica_id: str) -> None:
        """Hand on what a replica ran, held and was to make."""
        replica = self.replicas.drop(replica_id)
        if replica is None:
            return
        self.results.drop_replica(replica_id)
        orphans: set[str] = set()
        for task_id in sorted(replica.running, key=lambda t: (t.job_id, t.index, t.attempt)):
            self._bill(replica, task_id)
            orphans |= self.results.release(task_id)
            if current := self._current(task_id):
                self._try_again(*current)
        stranded = [s for s, waiters in self._waiters.items() if waiters and not self.results.holders(s)]
        self._orphan(orphans | set(stranded))

    def _stopped(self, job: JobRecord, task: TaskRecord) -> None:
        """Try again what its replica has stopped, which a value lost on its way makes it do; not for ever."""
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
        self._make_ready(job, task)
