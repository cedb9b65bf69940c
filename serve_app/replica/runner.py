"""The main object of a replica, without Ray: take messages, run tasks, send reports.

`membership.py` communicates with the scheduler; `models.py` has the models.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections import deque
from collections.abc import Callable, Coroutine, Mapping
from dataclasses import replace
from functools import partial
from typing import Any, get_args

from serve_app import log, tracing
from serve_app.config.limits import SizeLimits
from serve_app.errors import CancelledJobError, StoreError
from serve_app.execution.call import PACKS
from serve_app.execution.contained import original_error
from serve_app.execution.execute import Execution, LostValueError, NodeFailedError
from serve_app.execution.executing import Underway
from serve_app.execution.files import NodeFiles
from serve_app.execution.prevalidation import run_hooks
from serve_app.execution.result_cache import ResultCache
from serve_app.execution.runtime import NodeStore, Runtime
from serve_app.execution.size import allow_output
from serve_app.execution.time_limit import NodeLimits, TimeLimit
from serve_app.graph.files import named_files
from serve_app.graph.graph import Origin
from serve_app.graph.plan import Task, TaskId
from serve_app.graph.spec import NodeSpec
from serve_app.packs.routes import PackFrame
from serve_app.replica.failure import failed, state_of
from serve_app.replica.membership import Membership
from serve_app.replica.models import Models, ReplicaModels
from serve_app.replica.node_times import NodeTimes
from serve_app.replica.run_states import JobStates, RunStateFiles
from serve_app.replica.task_scope import TaskScope
from serve_app.replica.transfer import Transfer
from serve_app.replica.watchdog import REPLACED, exit_process, free_unused
from serve_app.replica.work_time import WorkTime
from serve_app.scheduler.core.backoff import Owner
from serve_app.scheduler.jobs.remote_validation import CHECK_S
from serve_app.scheduler.protocol.cluster_view import HostStats
from serve_app.scheduler.protocol.messages import (
    Assign,
    Check,
    Checked,
    ClientMessage,
    Compute,
    Deliver,
    Draining,
    Evicted,
    Export,
    Exported,
    Forget,
    Free,
    Interrupt,
    Message,
    NodePreviewed,
    NodesLinger,
    Prefetch,
    Reopened,
    ReplicaInfo,
    Report,
    SchedulerForReplicas,
    SocketFrame,
    TaskCancelled,
    TaskFinished,
    TaskStopped,
    Want,
    Warm,
)
from serve_app.scheduler.protocol.request_ids import ids_of
from serve_app.store.files.reserved import Contents
from serve_app.store.files.store import AREAS, Store
from serve_app.store.tenants.tenants import placed_key, store_of
from serve_app.tracing import TRACEPARENT
from serve_app.values import PreviewMethod

_log = log.get("replica")

RETRY_S = 0.3
"""Delay before a retry for a value that did not arrive."""
LOOK_S = 0.1
"""How often a draining replica checks whether it may stay."""
CANCELLED, CANCELLED_S = 64, 1.0
"""How many cancellations are remembered, and the delay until the engine's unwanted work is detected."""
LEAVE_S = 5.0
"""How long a replica that must end waits for the scheduler to take its tasks back; its notice to leave by a time."""


class Runner:
    """Runs one replica's tasks.

    models: creates them, in a thread once the replica has joined, since it takes seconds; tasks that need them wait.
    None is a worker, whose nodes cannot use RUNTIME. warm: models to load at the start. limits: sizes of values.
    node_limits: times of nodes. stop_s: how long a cancelled node may go on. Then the replica takes no more tasks, and
    hands over those that wait for a thread; unless the node stops within finish_s, or as soon as nothing else runs, it
    hands over the others too and ends its process by `exit`, since a thread cannot be killed. cancelled_time_s: how
    long the engine may compute cancelled work; after that the process ends at once.
    """

    def __init__(
        self,
        scheduler: SchedulerForReplicas,
        info: ReplicaInfo,
        *,
        classes: Mapping[str, type],
        specs: Mapping[str, NodeSpec],
        models: Callable[[], Models] | None,
        store: Store,
        transfer: Transfer,
        host: Callable[[], HostStats],
        results_bytes: int,
        results_entries: int | None,
        fingerprint: Callable[..., str],
        fetch: Callable[[str, str], None],
        previews: PreviewMethod,
        limits: SizeLimits,
        node_limits: NodeLimits,
        stop_s: float,
        finish_s: float = 0.0,
        cancelled_time_s: float,
        exit: Callable[[int], object],
        warm: tuple[str, ...] = (),
    ) -> None:
        self._ahead = warm
        self._limits = limits
        self._scheduler = scheduler
        self._previews = previews
        self.node_limits = node_limits
        self._stop_s, self._finish_s, self._cancelled_time_s = stop_s, finish_s, cancelled_time_s
        self._exit = exit
        # By run of a task or check, also of an ended one whose nodes go on. Not by the task's id, which a scheduler
        # that has forgotten it may reuse.
        self._underway: dict[asyncio.Task[None], Underway] = {}
        self._tasks: dict[asyncio.Task[None], Task] = {}
        self._stuck: set[asyncio.Task[None]] = set()
        self._blamed: set[Draining] = set()
        # Times and owners of the last cancellations.
        self._cancelled: deque[tuple[float, Draining]] = deque(maxlen=CANCELLED)
        self._lasting = asyncio.Lock()
        self._replacing: asyncio.Task[None] | None = None
        self._closed_for = ""
        """Why this replica takes no more tasks; "" if it does."""
        self._engine_closed = False
        self._computed_for: Draining | None = None
        """Whose cancelled job the engine computes."""
        self._going_on: frozenset[Owner] = frozenset()
        self._classes = classes
        self._specs = specs
        self._membership = Membership(scheduler, info, specs, host, self)
        self._models = ReplicaModels(models, fetch, self.send)
        self._store = store
        self._transfer = transfer
        self._fingerprint = fingerprint
        self._held = ResultCache(results_bytes, self._evicted, results_entries)
        self.times = NodeTimes()
        self._running: dict[TaskId, asyncio.Task[None]] = {}
        self._errands: set[asyncio.Task[None]] = set()
        self._work: dict[TaskId, WorkTime] = {}
        self._signatures: dict[TaskId, frozenset[str]] = {}
        self._wanted: dict[str, asyncio.Future[Any]] = {}
        self._wishes: list[Free] = []
        self._prefetching: asyncio.Task[None] | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self.deliver_pack_frame: Callable[[str, PackFrame], None] = lambda socket, frame: None
        """Takes a client's message on a node pack's websocket."""

    async def run(self) -> None:
        """Serve until cancelled; reconnects to new schedulers."""
        self._loop = asyncio.get_running_loop()
        await self._membership.run()

    def joined(self) -> None:
        """Report this replica's state to a scheduler that it has joined."""
        self._models.joined()
        self._going_on = frozenset()
        if self._closed_for:
            self.send(Draining(by_job=False, why=self._closed_for))
        ahead, self._ahead = self._ahead, ()
        if ahead:
            self.take(Warm(ahead))

    async def lost_touch(self) -> None:
        """Drop all tasks and results: a scheduler that does not know the results does not keep their files."""
        self._held.evict_outputs()
        await self.drop_all()

    def check_health(self) -> None:
        """Raise if this replica cannot work, and must be replaced."""
        self._models.check_health()

    @property
    def models(self) -> Models | None:
        """Its models, once they are created."""
        return self._models.made

    async def leave(self) -> None:
        """Leave the scheduler's registry; unfinished tasks are given to other replicas at once."""
        self._membership.leaving = True
        await self._models.save_runs()
        await self.drop_all()
        await self._membership.leave()

    async def leave_by(self, why: str, end_s: float) -> None:
        """Take no more tasks, and leave once those that run have ended, at the latest LEAVE_S before a Unix time."""
        self._replacing = asyncio.current_task()
        self.send(Draining(by_job=False, why=self._close(why)))
        while self._running and time.time() < end_s - LEAVE_S:
            await asyncio.sleep(LOOK_S)
        await self.leave()

    async def drop_all(self) -> None:
        """Stop every task and discard its unsent reports."""
        running = [*self._running.values(), *self._errands]
        # These jobs were not cancelled: their owners are not to blame for nodes that go on.
        self._tasks.clear()
        for task in running:
            task.cancel()
        if running:
            _, left = await asyncio.wait(running, timeout=self._stop_s)
            if left:
                self._stuck |= left
                self._replace(Draining(by_job=False))
        self._wanted.clear()
        self._membership.discard_unsent()

    # Messages ---------------------------------------------------------------------------------------------------------

    def take(self, message: Message) -> None:
        """Handle a message of the scheduler."""
        match message:
            case Assign(task):
                self._start(task)
            case Interrupt(task_id):
                if running := self._running.get(task_id):
                    cancelled = self._tasks.get(running)
                    whose = _whose(cancelled)
                    if cancelled is not None:
                        self._run_errand(self._forget_states(cancelled))
                    self._cancelled.append((asyncio.get_running_loop().time(), whose))
                    running.cancel()
                    asyncio.get_running_loop().call_later(self._stop_s, self._see_stopped, running)
            case Free():
                self._wishes.append(message)
                self._free()
            case Warm(models):
                self._run_errand(self._models.warm(models))
            case Prefetch(recipes, spare):
                if self._prefetching is not None:
                    self._prefetching.cancel()
                self._prefetching = self._run_errand(self._models.prefetch(recipes, frozenset(spare)))
            case Forget(signatures):
                self._held.forget(signatures)
            case Export(signature):
                if (value := self._held.get(signature)) is None:
                    self.send(Evicted((signature,)))
                else:
                    self.send(Exported(signature, self._transfer.put(value)))
            case Deliver(signature, reference):
                self._answer(signature, reference)
            case Compute(signature):
                self._answer(signature, None)
            case SocketFrame(socket, frame):
                self.deliver_pack_frame(socket, frame)
            case Check():
                underway = Underway()
                checking = self._run_errand(self._check(message, underway))
                self._underway[checking] = underway
                checking.add_done_callback(self._over)

    def _run_errand(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        """Start a coroutine beside the tasks; it is stopped with them."""
        self._errands.add(errand := asyncio.create_task(work))
        errand.add_done_callback(self._errands.discard)
        return errand

    def _free(self) -> None:
        """Free the requested memory, unless a task runs, which may need it."""
        if self._wishes and not self._running:
            wishes, self._wishes = self._wishes, []
            self._run_errand(self._let_go(wishes))

    async def _let_go(self, wishes: list[Free]) -> None:
        if any(wish.results for wish in wishes):
            self._held.clear()
        if any(wish.weights for wish in wishes):
            await self._models.release()

    async def _check(self, check: Check, underway: Underway) -> None:
        limit = TimeLimit(CHECK_S, "time that a submission waits")
        problems, fingerprints = await run_hooks(
            self._classes, check.nodes, check.node_ids, limit=limit, underway=underway
        )
        self.send(Checked(check.check_id, tuple(problems), fingerprints))

    def _answer(self, signature: str, reference: Any) -> None:
        wanted = self._wanted.pop(signature, None)
        if wanted is not None and not wanted.done():
            wanted.set_result(reference)

    # Tasks ------------------------------------------------------------------------------------------------------------

    def _start(self, task: Task) -> None:
        self._signatures[task.id] = frozenset(task.signatures.values())
        self._held.begin(frozenset().union(*self._signatures.values()))
        self._work[task.id] = WorkTime()
        scope = TaskScope(self, task)
        execution = Execution(task, self._classes, self._held, scope, scope, scope.fetch, self._limits)
        # Everything that the task starts, threads too, inherits this context.
        with log.about(**ids_of(task)):
            self._running[task.id] = running = asyncio.create_task(self._run(task, execution))
        self._underway[running], self._tasks[running] = execution.underway, task
        # A callback, as a coroutine that is cancelled before its first step never reaches its end.
        running.add_done_callback(partial(self._ended, task))

    async def _run(self, task: Task, execution: Execution) -> None:
        if self._may_need_models(task):
            with self._work[task.id].loading():
                await self._models.wait()
        named = sorted(named_files(task.nodes.values(), self._specs))
        await self._models.fetch((folder, name) for folder, name in named if folder not in AREAS)
        # Packs keep state of several rounds by job in their modules, as ComfyUI runs one job at a time.
        async with self._lasting if execution.lasts else contextlib.nullcontext():
            with tracing.span("task", task.extra_data.get(TRACEPARENT), **ids_of(task)):
                await execution.run()

    def _may_need_models(self, task: Task) -> bool:
        """Whether a node uses RUNTIME, or is of a pack, whose code may use it or return nodes that do."""
        specs = (self._specs.get(node.class_type) for node in task.nodes.values())
        return any(spec is None or spec.runtime or spec.python_module.startswith(PACKS) for spec in specs)

    def _ended(self, task: Task, running: asyncio.Task[None]) -> None:
        """Report the task's end. For a value that was lost in transfer the scheduler retries the task, as after a
        stop.
        """
        task_id = task.id
        self._running.pop(task_id, None)
        took_s = self._work.pop(task_id).seconds
        self.times.over(task_id)
        self._signatures.pop(task_id, None)
        self._models.report()
        self._free()
        self._over(running)
        if self._membership.leaving:
            return
        error = asyncio.CancelledError() if running.cancelled() else running.exception()
        with log.about(**ids_of(task), took_s=f"{took_s:.3f}"):
            _log.info("task ended: state=%s", state_of(error))
        if error is not None and self._models.ended:
            # Not the task's fault: as this replica is replaced, the scheduler retries it.
            _log.warning(
                "the engine has ended under task=%s.%s of job=%s", task_id.index, task_id.attempt, task_id.job_id
            )
            return
        match error:
            case None:
                # With no other running task there is no end to batch with, and the scheduler may have more tasks.
                self._membership.send(TaskFinished(task_id, took_s), deferrable=task.deferrable and bool(self._running))
            case asyncio.CancelledError() | LostValueError():
                self.send(TaskStopped(task_id))
            case CancelledJobError():
                self.send(TaskCancelled(task_id))
            case NodeFailedError():
                self.send(failed(task, error.node_id, error.class_type, error.exception, error.inputs))
            case _:
                self.send(failed(task, "", "", original_error(error)))

    # Nodes that do not end
    # ----------------------------------------------------------------------------------------------

    def underway(self) -> list[str]:
        """Return which nodes of which jobs run here. Callable from any thread."""
        return [name for underway in list(self._underway.values()) for name in underway.names()]

    def relieve(self) -> None:
        """Free as much memory as possible, though running tasks may have to recompute values."""
        self._held.clear()
        free_unused()

    def _over(self, run: asyncio.Task[None]) -> None:
        """Note that a task or check has ended, and make sure that its nodes stop."""
        loop, underway = asyncio.get_running_loop(), self._underway.get(run)
        if underway is not None:
            # Before it is looked whether any goes on, for the last may end meanwhile.
            underway.ended = partial(self._call_in, loop, self._forget, run)
        if underway:
            loop.call_later(self._stop_s, self._see_stopped, run)
            self._say_going_on()
        else:
            self._forget(run)

    def _call_in(self, loop: asyncio.AbstractEventLoop, function: Callable[..., object], *arguments: Any) -> None:
        """Have a function called in the loop; from any thread, also as the loop ends."""
        with contextlib.suppress(RuntimeError):
            loop.call_soon_threadsafe(function, *arguments)

    def _say_going_on(self) -> None:
        """Report the owners of nodes that go on after their task's end, unless they were reported or blamed already."""
        over = [_whose(self._tasks.get(run)) for run, underway in self._underway.items() if run.done() and underway]
        blamed = {_owner(whose) for whose in self._blamed}
        answering = [whose for whose in (*over, self._computed_for) if whose is not None and whose.by_job]
        if (owners := frozenset(map(_owner, answering)) - blamed) != self._going_on:
            self._going_on = owners
            self.send(NodesLinger(owners))

    def _see_stopped(self, run: asyncio.Task[None]) -> None:
        if self._underway.get(run):
            self._stuck.add(run)
            self._replace(_whose(self._tasks.get(run)))
        else:
            self._forget(run)

    def _forget(self, run: asyncio.Task[None]) -> None:
        """Note that all nodes of an ended run have stopped."""
        self._underway.pop(run, None)
        self._tasks.pop(run, None)
        self._stuck.discard(run)
        self._say_going_on()

    def _replace(self, because: Draining) -> None:
        """Begin to replace this replica: a cancelled node goes on, and a thread cannot be killed."""
        if because not in self._blamed:
            self._blamed.add(because)
            self._say_going_on()
            why = self._close(f"a node goes on {self._stop_s:g} s after it had to stop")
            reported = asyncio.create_task(self._membership.send_and_wait(replace(because, why=why)))
            self._replacing = self._replacing or asyncio.create_task(self._give_way(reported, why))

    async def _give_way(self, reported: asyncio.Task[None], why: str) -> None:
        await asyncio.wait([reported], timeout=LEAVE_S)
        if not await self._stops_while_others_finish():
            await self._hand_over(why)

    def _close(self, why: str) -> str:
        """Note why this replica takes no more tasks, and return that."""
        self._closed_for = why
        _log.warning("taking no more tasks: %s; running: %s", why, ", ".join(self.underway()) or "no node")
        return why

    def _reopen(self) -> None:
        """Take tasks again, if nothing goes on any more that had to stop."""
        if self._closed_for and not (self._stuck or self._engine_closed or self._replacing):
            self._closed_for = ""
            _log.info("taking tasks again: what went on has stopped")
            self.send(Reopened())

    def computes_unwanted(self, seconds: float) -> None:
        """Note for how long the engine has been computing nothing but cancelled work; 0 once it has stopped."""
        why = f"the engine has been computing for {seconds:g} s what was cancelled"
        self._computed_for = self._cancelled_before(seconds) if seconds else None
        self._say_going_on()
        if seconds >= self._cancelled_time_s:
            if self._replacing is None:
                self._replacing = asyncio.create_task(self._give_way_at_once(why, self._cancelled_before(seconds)))
        elif seconds >= self._stop_s and not self._engine_closed:
            self._engine_closed = True
            self.send(Draining(by_job=False, why=self._close(why)))
        elif not seconds and self._engine_closed:
            self._engine_closed = False
            self._reopen()

    def _cancelled_before(self, seconds: float) -> Draining:
        """Return the owner of the last job that was cancelled before that time: the engine computes its work."""
        began_s = asyncio.get_running_loop().time() - seconds + CANCELLED_S
        return next((whose for at_s, whose in reversed(self._cancelled) if at_s <= began_s), Draining(by_job=False))

    async def _give_way_at_once(self, why: str, because: Draining) -> None:
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._membership.send_and_wait(replace(because, why=why)), LEAVE_S)
        await self._hand_over(why)

    async def _hand_over(self, why: str) -> None:
        """Hand all tasks back to the scheduler, and end this process."""
        _log.warning("leaving, for another replica to take over: %s; running: %s", why, ", ".join(self.underway()))
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self.leave(), self._stop_s + LEAVE_S)
        exit_process(REPLACED, why, self.underway, self._exit)

    async def _stops_while_others_finish(self) -> bool:
        """Let other tasks go on for finish_s; return whether the cancelled node has stopped meanwhile.

        Those that only wait for a thread, which the node that goes on may never free, are handed over at once.
        """
        loop = asyncio.get_running_loop()
        end_s = loop.time() + self._finish_s
        waited: set[asyncio.Task[None]] = set()
        while loop.time() < end_s and set(self._running.values()) - self._stuck and not self._membership.leaving:
            await asyncio.sleep(LOOK_S)
            # Twice in a row: a call whose thread has just returned looks the same for a moment.
            waiting = {run for run in self._running.values() if self._underway[run].waits}
            for run in waiting & waited:
                run.cancel()
            waited = waiting
            for run in [run for run in self._stuck if not self._underway.get(run)]:
                self._forget(run)
            if not self._stuck:
                self._blamed.clear()
                self._replacing = None
                self._reopen()
                return True
        return False

    async def fetch(self, task_id: TaskId, signature: str) -> Any | None:
        """Request a value by way of the scheduler; None means that this replica must compute it."""
        while True:
            wanted = self._wanted.get(signature)
            if wanted is None:
                wanted = self._wanted[signature] = asyncio.get_running_loop().create_future()
                self.send(Want(task_id, signature))
            reference = await asyncio.shield(wanted)
            if reference is None:
                return None
            value = await self._transfer.get(reference)
            if value is not None:
                return value
            # Lost with the replica that had it; the scheduler will notice soon.
            await asyncio.sleep(RETRY_S)

    # Reports ----------------------------------------------------------------------------------------------------------

    def send(self, report: Report) -> None:
        self._membership.send(report)

    def send_to_client(self, client_id: str, type_: str, data: Any) -> None:
        """Send a client a message outside any job. Callable from any thread while the replica runs.

        Errors: NodeError for one that is too large.
        """
        self.check_message(data)
        with contextlib.suppress(RuntimeError):
            if self._loop is not None:
                self._loop.call_soon_threadsafe(self.send, ClientMessage(client_id, type_, data))

    def check_message(self, data: Any) -> None:
        """Check that a message to a client is not too large. Errors: NodeError."""
        allow_output(data, self._limits)

    def _evicted(self, signatures: tuple[str, ...]) -> None:
        self.send(Evicted(signatures))

    def runtime(
        self,
        progress: Callable[[int, int], None],
        show: Callable[[Any], None],
        remark: Callable[[str], None],
        task: Task,
        states: Callable[[], RunStateFiles],
    ) -> Runtime | None:
        """Return a RUNTIME for one node of a task, with previews as the job requests."""
        if (models := self.models) is None:
            return None
        asked = task.extra_data.get("preview_method")
        # ComfyUI reads any other value, "default" included, as its own default.
        previews = next((method for method in get_args(PreviewMethod) if method == asked), self._previews)
        loading = self._work[task.id].loading
        return models.bind(
            progress,
            strict=task.strict,
            show=show,
            previews=previews,
            remark=remark,
            loading=loading,
            states=states,
        )

    def run_states(self, task: Task) -> JobStates:
        """Return the states of a task's sampler runs."""
        return JobStates(store_of(self._store, task.tenant), task.id.job_id)

    async def _forget_states(self, task: Task) -> None:
        """Delete the states of a cancelled job's runs."""
        with contextlib.suppress(StoreError, OSError):
            await asyncio.to_thread(self.run_states(task).delete)

    def preview(self, task_id: TaskId, node_id: str, image: bytes, origin: Origin | None) -> None:
        """Report a node's preview. image: a JPEG, of which the scheduler gets a reference only."""
        self.send(NodePreviewed(task_id, node_id, self._transfer.put(image), origin))

    def files(self, task: Task, node_id: str) -> NodeStore:
        """Return the STORE of one node."""

        async def reserve(key: str, at_least: int, contents: Contents) -> tuple[int, bool]:
            return await self._scheduler.reserve(task.id, node_id, placed_key(key, task.tenant), at_least, contents)

        return NodeFiles(store_of(self._store, task.tenant), task.id.job_id, node_id, reserve, at_s=task.created_s)

    def fingerprint(self, folder: str, name: str, tenant: str) -> str:
        """Return a file's fingerprint; tenant: the owner of an upload."""
        return self._fingerprint(folder, name, tenant) if tenant else self._fingerprint(folder, name)


def _whose(task: Task | None) -> Draining:
    """Return the owner to blame for a task that goes on; of None nobody."""
    return Draining(by_job=False) if task is None else Draining(task.tenant, task.client_id)


def _owner(whose: Draining) -> Owner:
    """Return the owner that is charged with it."""
    return whose.tenant, None if whose.tenant else whose.client_id
