"""The main object of a replica, without Ray: take messages, run tasks, send reports.

`membership.py` communicates with the scheduler; `models.py` has the models; `replacement.py` closes and replaces it.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Coroutine, Iterator, Mapping
from functools import partial
from typing import Any, get_args

from serve_app import log, tracing
from serve_app.config.limits import SizeLimits
from serve_app.errors import CancelledJobError, StoreError, UnavailableError
from serve_app.execution.call import PACKS
from serve_app.execution.contained import original_error
from serve_app.execution.execute import Execution
from serve_app.execution.executing import Underway
from serve_app.execution.files import NodeFiles
from serve_app.execution.node_failure import LostValueError, NodeFailedError
from serve_app.execution.prevalidation import run_hooks
from serve_app.execution.result_cache import ResultCache
from serve_app.execution.runtime import NodeStore, Runtime
from serve_app.execution.size import allow_output
from serve_app.execution.stored_results import StoredResults
from serve_app.execution.time_limit import NodeLimits, TimeLimit
from serve_app.graph.files import named_files
from serve_app.graph.graph import Origin
from serve_app.graph.plan import Task, TaskId
from serve_app.graph.spec import NodeSpec
from serve_app.packs.routes import PackFrame
from serve_app.replica.failure import failed, state_of
from serve_app.replica.load_reports import reported
from serve_app.replica.membership import Membership
from serve_app.replica.models import Models, ReplicaModels
from serve_app.replica.node_times import NodeTimes
from serve_app.replica.replacement import ReplicaReplacement
from serve_app.replica.task_scope import TaskScope
from serve_app.replica.transfer import Transfer
from serve_app.replica.watchdog import free_unused
from serve_app.replica.work_time import WorkTime
from serve_app.scheduler.jobs.remote_validation import CHECK_S
from serve_app.scheduler.protocol.cluster_view import HostStats
from serve_app.scheduler.protocol.messages import (
    Assign,
    Check,
    Checked,
    ClientMessage,
    Compute,
    Deliver,
    Evicted,
    Export,
    Exported,
    Forget,
    Free,
    HandOver,
    Interrupt,
    Message,
    NodePreviewed,
    Prefetch,
    ReplicaInfo,
    Report,
    SchedulerForReplicas,
    SocketFrame,
    TaskCancelled,
    TaskFinished,
    TaskHandedOver,
    TaskStopped,
    Want,
    Warm,
)
from serve_app.scheduler.protocol.request_ids import ids_of
from serve_app.store.files.reserved import Contents
from serve_app.store.files.store import AREAS, Store
from serve_app.store.tenants.tenants import placed_key, store_of
from serve_app.store.work.run_states import JobStates, RunStateFiles
from serve_app.tracing import TRACEPARENT
from serve_app.values import PreviewMethod

_log = log.get("replica")

RETRY_S = 0.3
"""Delay before a retry for a value that did not arrive."""


class Runner:
    """Runs one replica's tasks.

    models: creates them, in a thread once the replica has joined, since it takes seconds; tasks that need them wait.
    None is a worker, whose nodes cannot use RUNTIME. warm: models to load at the start. limits: sizes of values.
    node_limits: times of nodes. stop_s, finish_s, cancelled_time_s, exit: as `ReplicaReplacement`'. stored: results of
    nodes that outlive a restart.
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
        stored: StoredResults | None = None,
    ) -> None:
        self.stored = stored
        self._ahead = warm
        self._limits = limits
        self._scheduler = scheduler
        self._previews = previews
        self.node_limits = node_limits
        self._stop_s = stop_s
        self._lasting = asyncio.Lock()
        self.classes = classes
        self._specs = specs
        self._membership = Membership(scheduler, info, specs, host, self)
        self._models = ReplicaModels(models, fetch, self.send)
        self._store = store
        self._transfer = transfer
        self._fingerprint = fingerprint
        self.results = ResultCache(results_bytes, self._evicted, results_entries)
        self.times = NodeTimes()
        self.running: dict[TaskId, asyncio.Task[None]] = {}
        self.replacement = ReplicaReplacement(
            self._membership,
            self.running,
            self.leave,
            stop_s=stop_s,
            finish_s=finish_s,
            cancelled_time_s=cancelled_time_s,
            exit=exit,
        )
        self.computes_unwanted = self.replacement.computes_unwanted
        self.leave_by = self.replacement.leave_by
        self._errands: set[asyncio.Task[None]] = set()
        self._work: dict[TaskId, WorkTime] = {}
        self._signatures: dict[TaskId, frozenset[str]] = {}
        self._run_states: dict[TaskId, JobStates] = {}
        self._handed_over: set[TaskId] = set()
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
        self.replacement.joined()
        ahead, self._ahead = self._ahead, ()
        if ahead:
            self.take(Warm(ahead))

    async def lost_touch(self) -> None:
        """Drop all tasks and results: a scheduler that does not know the results does not keep their files."""
        self.results.evict_outputs()
        await self.drop_all()

    def check_health(self) -> None:
        """Raise if this replica cannot work, and must be replaced."""
        if self.replacement.left_for:
            raise UnavailableError(f"this replica has left: {self.replacement.left_for}")
        self._models.check_health()

    @property
    def models(self) -> Models | None:
        """Its models, once they are created."""
        return self._models.made

    async def leave(self) -> None:
        """Leave the scheduler's registry; unfinished tasks are given to other replicas at once."""
        self._membership.leaving = True
        await self._models.hand_over(self._cancel_tasks)
        await self.drop_all()
        await self._membership.leave()

    async def drop_all(self) -> None:
        """Stop every task and discard its unsent reports."""
        running = [*self.running.values(), *self._errands]
        self.replacement.blame_nobody()
        for task in running:
            task.cancel()
        if running:
            _, left = await asyncio.wait(running, timeout=self._stop_s)
            self.replacement.left(left)
        self._wanted.clear()
        self._membership.discard_unsent()

    # Messages ---------------------------------------------------------------------------------------------------------

    def take(self, message: Message) -> None:
        """Handle a message of the scheduler."""
        match message:
            case Assign(task):
                self._start(task)
            case Interrupt(task_id):
                if (running := self.running.get(task_id)) and (stopped := self.replacement.cancel(running)):
                    self._run_errand(self._delete_states(self.run_states(stopped)))
            case HandOver():
                self._run_errand(self._hand_over())
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
                self.results.forget(signatures)
                if self.stored is not None:
                    self.stored.forget(signatures)
            case Export(signature):
                if (value := self.results.get(signature)) is None:
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
                self.replacement.watch(checking, underway)
                checking.add_done_callback(self.replacement.over)

    async def _hand_over(self) -> None:
        """Save the states of all runs, and stop the tasks for other replicas to go on with them."""
        running = dict(self.running)
        self._handed_over.update(running)
        await self._models.hand_over(self._cancel_tasks)
        if running:
            _, left = await asyncio.wait(running.values(), timeout=self._stop_s)
            self.replacement.left(left)
        for task_id in self._handed_over.intersection(running):
            self._handed_over.discard(task_id)
            self.send(TaskHandedOver(task_id))

    def _cancel_tasks(self) -> None:
        self.replacement.blame_nobody()
        for running in self.running.values():
            running.cancel()

    def _run_errand(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        """Start a coroutine beside the tasks; it is stopped with them."""
        self._errands.add(errand := asyncio.create_task(work))
        errand.add_done_callback(self._errands.discard)
        return errand

    def _free(self) -> None:
        """Free the requested memory, unless a task runs, which may need it."""
        if self._wishes and not self.running:
            wishes, self._wishes = self._wishes, []
            self._run_errand(self._let_go(wishes))

    async def _let_go(self, wishes: list[Free]) -> None:
        if any(wish.results for wish in wishes):
            self.results.clear()
            if self.stored is not None:
                self.stored.forget()
        if any(wish.weights for wish in wishes):
            await self._models.release()

    async def _check(self, check: Check, underway: Underway) -> None:
        limit = TimeLimit(CHECK_S, "time that a submission waits")
        problems, fingerprints = await run_hooks(
            self.classes, check.nodes, check.node_ids, limit=limit, underway=underway
        )
        self.send(Checked(check.check_id, tuple(problems), fingerprints))

    def _answer(self, signature: str, reference: Any) -> None:
        wanted = self._wanted.pop(signature, None)
        if wanted is not None and not wanted.done():
            wanted.set_result(reference)

    # Tasks ------------------------------------------------------------------------------------------------------------

    def _start(self, task: Task) -> None:
        self._signatures[task.id] = frozenset(task.signatures.values())
        self.results.begin(frozenset().union(*self._signatures.values()))
        self._work[task.id] = WorkTime()
        scope = TaskScope(self, task)
        execution = Execution(task, self.classes, self.results, scope, scope, scope.fetch, self._limits, scope)
        # Everything that the task starts, threads too, inherits this context.
        with log.about(**ids_of(task)):
            self.running[task.id] = running = asyncio.create_task(self._run(task, execution))
        self.replacement.watch(running, execution.underway, task)
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

    def is_all_own(self, task: Task) -> bool:
        """Whether a task's workflow has no node of a pack."""
        classes = (str(node.get("class_type")) for node in task.prompt.values() if isinstance(node, Mapping))
        specs = map(self._specs.get, classes)
        return all(spec is not None and not spec.python_module.startswith(PACKS) for spec in specs)

    def _may_need_models(self, task: Task) -> bool:
        """Whether a node uses RUNTIME, or is of a pack, whose code may use it or return nodes that do."""
        specs = (self._specs.get(node.class_type) for node in task.nodes.values())
        return any(spec is None or spec.runtime or spec.python_module.startswith(PACKS) for spec in specs)

    def _ended(self, task: Task, running: asyncio.Task[None]) -> None:
        """Report the task's end. For a value that was lost in transfer the scheduler retries the task, as after a
        stop.
        """
        task_id = task.id
        self.running.pop(task_id, None)
        took_s = self._work.pop(task_id).seconds
        self.times.over(task_id)
        self._signatures.pop(task_id, None)
        self._run_states.pop(task_id, None)
        self._models.report()
        self._free()
        self.replacement.over(running)
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
                self._membership.send(TaskFinished(task_id, took_s), deferrable=task.deferrable and bool(self.running))
            case asyncio.CancelledError() if task_id in self._handed_over:
                # It is reported once its state is saved.
                return
            case asyncio.CancelledError() | LostValueError():
                self.send(TaskStopped(task_id))
            case CancelledJobError():
                self.send(TaskCancelled(task_id))
            case NodeFailedError():
                self.send(failed(task, error.node_id, error.class_type, error.exception, error.inputs))
            case _:
                self.send(failed(task, "", "", original_error(error)))
        self._handed_over.discard(task_id)

    def underway(self) -> list[str]:
        """Return which nodes of which jobs run here. Callable from any thread."""
        return self.replacement.names()

    def relieve(self) -> None:
        """Free as much memory as possible, though running tasks may have to recompute values."""
        self.results.clear()
        free_unused()

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

        @contextlib.contextmanager
        def loading() -> Iterator[None]:
            with self._work[task.id].loading(), reported(lambda: models.load_under_way, remark):
                yield

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
        """Return the states of a running task's sampler runs."""
        if task.id not in self._run_states:
            self._run_states[task.id] = JobStates(self._store, task.id.job_id)
        return self._run_states[task.id]

    async def _delete_states(self, states: JobStates) -> None:
        """Delete the states of a cancelled job's runs."""
        with contextlib.suppress(StoreError, OSError):
            await asyncio.to_thread(states.delete)

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
