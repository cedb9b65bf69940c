"""A replica that runs a ComfyUI, without Ray: it runs whole graphs there, one after another, and reports events.

To the scheduler the process is the replica: if it dies, the replica is lost and its job charged with the loss; after a
restart it joins again. While it cannot be started, the replica reports why.
"""

from __future__ import annotations

import asyncio
import contextlib
import re
import time
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, aclosing, asynccontextmanager
from dataclasses import replace
from functools import partial

import aiohttp

from serve_app import log
from serve_app.comfyui.client import Client, RefusedGraphError, check_version, graph_id
from serve_app.comfyui.files import FileTransfer, prune, task_texts
from serve_app.comfyui.process import Installation, Process
from serve_app.comfyui.specs import parse_object_info
from serve_app.config.limits import SizeLimits
from serve_app.errors import ComfyUIError, ServeAppError, StoreError
from serve_app.graph.plan import Task, TaskId
from serve_app.packs.route_server import relay, relay_client, relay_socket
from serve_app.packs.routes import PackAnswer, PackCall, PackFrame, PackRoute, Piece
from serve_app.replica.comfyui_failure import (
    ForeignInterruptError,
    GraphFailedError,
    SavingFailedError,
    failed_there,
    graph_refused,
)
from serve_app.replica.comfyui_graph import GraphRun
from serve_app.replica.failure import failed, state_of
from serve_app.replica.membership import Membership
from serve_app.replica.node_times import NodeTimes
from serve_app.replica.transfer import Transfer
from serve_app.scheduler.protocol.cluster_view import HostStats
from serve_app.scheduler.protocol.messages import (
    Assign,
    Check,
    Checked,
    Evicted,
    Export,
    Forget,
    Free,
    HandOver,
    Interrupt,
    Message,
    ReplicaInfo,
    Report,
    ResidentWeights,
    SchedulerForReplicas,
    SlotReleased,
    SocketFrame,
    TaskCancelled,
    TaskFinished,
    TaskHandedOver,
    TaskStopped,
)
from serve_app.scheduler.protocol.request_ids import ids_of
from serve_app.store.files.store import Store
from serve_app.store.files.volume import Volume

_log = log.get("deployments.comfyui")

LOOK_S = 0.1
"""How often a starting process, or a graph that is being stopped, is polled."""
REFRESH_S = 30.0
"""How often its classes are read while it is idle: lists of model files are in them."""
PAUSE_S, LONGEST_PAUSE_S = 1.0, 30.0
"""Back-off after a failed start: the first delay and the longest."""
REPORT_S = 5.0
"""How often the scheduler is told again that none can be started."""
HEARTBEAT_S = 60.0
"""Interval of pings to a ComfyUI on another host: a host that is cut off closes no connection."""
LAST_WORDS_S = 3.0
"""How long a process that no longer answers may take to end and log the reason."""
TIDY_S = 5.0
"""The shortest interval of removing earlier graphs' history and files: it lists all files."""
RESIDENT = 8
"""How many model files of the last graphs are assumed to be in its memory."""
FOREIGN = frozenset({b"host", b"origin", b"referer", b"sec-fetch-site"})
"""Headers of a relayed request with this server's address: ComfyUI would compare them with its own."""
WEIGHTS = (".safetensors", ".sft", ".ckpt", ".pt", ".pth", ".bin", ".gguf")


class ComfyUIRunner:
    """The life cycle of one replica. comfyui: an installation to start, or the URL of a running one.

    previews: as `preview_method`. start_s, stop_s: how long a start, and stopping a graph, may take before the process
    is replaced. keep_bytes: of files that stay with it. routes: the HTTP paths that its pool handles.
    """

    def __init__(
        self,
        scheduler: SchedulerForReplicas,
        replica_id: str,
        pool: str,
        comfyui: Installation | str,
        *,
        store: Store,
        transfer: Transfer,
        host: Callable[[], HostStats],
        previews: str,
        limits: SizeLimits,
        start_s: float,
        stop_s: float,
        keep_bytes: int,
        routes: tuple[PackRoute, ...],
    ) -> None:
        self._scheduler = scheduler
        self._replica_id = replica_id
        self._pool = pool
        self._comfyui = comfyui
        self._store = store
        self._transfer = transfer
        self._host = host
        self._previews = previews
        self._limits = limits
        self._start_s = start_s
        self._stop_s = stop_s
        self._keep_bytes = keep_bytes
        self._routes = routes
        self._relayed: dict[str, asyncio.Queue[PackFrame]] = {}
        self.times = NodeTimes()
        self.process: Process | None = None
        self.client: Client | None = None
        self._client_id = f"serve-app-{pool}"
        self._membership: Membership | None = None
        self._file_transfer: FileTransfer
        self._frames: asyncio.Queue[str | bytes] = asyncio.Queue()
        self._running: dict[TaskId, asyncio.Task[None]] = {}
        self._vacated: set[TaskId] = set()
        self._handed_over: set[TaskId] = set()
        self._errands: set[asyncio.Task[None]] = set()
        self._telling: asyncio.Task[None] | None = None
        self._past: list[str] = []
        self._tidied_s = 0.0
        self._resident: tuple[str, ...] = ()
        self._over: asyncio.Future[None]
        self._leaving = False

    async def run(self) -> None:
        """Serve until cancelled; restart the process if it ends or cannot be started."""
        pause_s = PAUSE_S
        try:
            while not self._leaving:
                try:
                    async with self._opened() as (client, socket):
                        pause_s = PAUSE_S
                        self._keep_telling("")
                        await self._serve(client, socket)
                except (ComfyUIError, StoreError, OSError) as error:
                    if self._leaving:
                        return
                    _log.error("%s", error)
                    self._keep_telling(str(error))
                    await asyncio.sleep(pause_s)
                    pause_s = min(2 * pause_s, LONGEST_PAUSE_S)
        finally:
            self._keep_telling("")

    async def answer(self, call: PackCall) -> AsyncGenerator[Piece]:
        """Relay a request without a route of the server's own."""
        if (client := self.client) is None:
            yield PackAnswer(503, ((b"retry-after", b"5"), (b"content-length", b"0")), b"")
            return
        call = replace(call, headers=tuple((name, value) for name, value in call.headers if name not in FOREIGN))
        async with relay_client(aiohttp.TCPConnector(limit=0)) as session:
            if call.socket is None:
                pieces = relay(session, client.url, call)
            else:
                pieces = relay_socket(session, client.url, call, self._relayed.setdefault(call.socket, asyncio.Queue()))
            try:
                async with aclosing(pieces):
                    async for piece in pieces:
                        yield piece
            finally:
                self._relayed.pop(call.socket or "", None)

    async def leave(self) -> None:
        """Leave the scheduler's registry, and end the process."""
        self._leaving = True
        await self._drop()
        if self._membership is not None:
            await self._membership.leave()
        if self.process is not None:
            await self.process.end()

    def _keep_telling(self, why: str) -> None:
        """Report to the scheduler, from here on, why this replica cannot work; "" ends the reports."""
        if self._telling is not None:
            self._telling.cancel()
        self._telling = asyncio.create_task(self._tell(why)) if why else None

    async def _tell(self, why: str) -> None:
        """Say again and again why this replica cannot work, until cancelled."""
        while True:
            with contextlib.suppress(ServeAppError):
                await self._scheduler.report_trouble(self._replica_id, self._pool, why)
            await asyncio.sleep(REPORT_S)

    # A process's life -------------------------------------------------------------------------------------------------

    @asynccontextmanager
    async def _opened(self) -> AsyncIterator[tuple[Client, aiohttp.ClientWebSocketResponse]]:
        """Start a process, or use the running one, and connect to it."""
        async with AsyncExitStack() as stack:
            if isinstance(self._comfyui, Installation):
                self.process = await Process.start(self._comfyui)
                stack.push_async_callback(self.process.end)
            url = self._comfyui if isinstance(self._comfyui, str) else self.process.url if self.process else ""
            client = await stack.enter_async_context(Client.opened(url))
            await self._started(client)
            if self.process is None and (left := await client.unfinished()):
                # Graphs of an earlier replica, as nobody else may use the queue; its jobs are retried.
                await client.withdraw(left)
                await self._idle(client)
            heartbeat_s = HEARTBEAT_S if self.process is None else None
            socket = await stack.enter_async_context(client.listening(self._client_id, heartbeat_s))
            folders = None if self.process is None else Volume(self.process.areas)
            self._file_transfer = FileTransfer(client, self._store, folders)
            self.client, self._resident, self._past, self._tidied_s = client, (), [], 0.0
            try:
                yield client, socket
            finally:
                self.client = None

    async def _started(self, client: Client) -> None:
        """Wait until it answers. Errors: ComfyUIError if it ends, takes too long or is too old."""
        ending = None if self.process is None else asyncio.create_task(self.process.ended())
        try:
            async with asyncio.timeout(self._start_s):
                while ending is None or not ending.done():
                    try:
                        stats = await client.stats()
                    except ComfyUIError:
                        if ending is None:
                            raise
                        await asyncio.wait([ending], timeout=LOOK_S)
                    else:
                        check_version(client.url, stats)
                        return
                raise ComfyUIError(f"it cannot be started: {ending.result()}")
        except TimeoutError as error:
            log_end = "" if self.process is None else f"; its log ends:\n{self.process.log_end()}"
            why = f"the ComfyUI at {client.url} has not answered within start_s {self._start_s:g} s{log_end}"
            raise ComfyUIError(why) from error
        finally:
            if ending is not None:
                ending.cancel()

    async def _serve(self, client: Client, socket: aiohttp.ClientWebSocketResponse) -> None:
        """Serve for as long as the process lives, or until it is to be replaced.

        Errors: ComfyUIError if it has ended, or no longer answers.
        """
        self._over = asyncio.get_running_loop().create_future()
        ending = None if self.process is None else asyncio.create_task(self.process.ended())
        listening = asyncio.create_task(self._listen(socket))
        belonging = asyncio.create_task(self._belong(client))
        try:
            lives = [task for task in (ending, listening, belonging, self._over) if task is not None]
            await asyncio.wait(lives, return_when=asyncio.FIRST_COMPLETED)
            if ending is not None and not self._over.done():
                await asyncio.wait([ending], timeout=LAST_WORDS_S)
            if ending is not None and ending.done() and not self._leaving:
                raise ComfyUIError(ending.result())
            for over in (self._over, belonging, listening):
                if over.done():
                    over.result()
        finally:
            for life in [listening, belonging, *([ending] if ending is not None else [])]:
                life.cancel()
            await self._drop()

    async def _listen(self, socket: aiohttp.ClientWebSocketResponse) -> None:
        async for message in socket:
            if self._running and message.type in (aiohttp.WSMsgType.TEXT, aiohttp.WSMsgType.BINARY):
                self._frames.put_nowait(message.data)
        raise ComfyUIError("the ComfyUI has closed its websocket, or gives no sign of life")

    async def _belong(self, client: Client) -> None:
        """Join with the process's node classes, and join again when they change."""
        described = await client.classes()
        paths = [path for path in await client.scripts() if _is_packs(path)] if self._routes else []
        scripts = tuple(PackRoute("GET", re.escape(path), path) for path in paths)
        while True:
            packs = () if self.process is None else tuple(self.process.failed_packs)
            notes = tuple(f"node pack {name} could not be imported" for name in packs)
            info = ReplicaInfo(self._replica_id, self._pool, 1, (*scripts, *self._routes), notes)
            known = {spec.class_type: spec for spec in await asyncio.to_thread(parse_object_info, described)}
            self._membership = Membership(self._scheduler, info, known, self._host, self)
            member = asyncio.create_task(self._membership.run())
            try:
                while True:
                    done, _ = await asyncio.wait([member], timeout=REFRESH_S)
                    if done:
                        return member.result()
                    if self._running:
                        continue
                    if self.process is not None and self.process.models is not None:
                        await asyncio.to_thread(self.process.models.refresh)
                    if (now := await client.classes()) != described:
                        described = now
                        break
            finally:
                member.cancel()
                await asyncio.gather(member, return_exceptions=True)

    # Messages ---------------------------------------------------------------------------------------------------------

    def joined(self) -> None:
        """Report the resident models to a scheduler that this replica has joined."""
        if self._resident:
            self._send(ResidentWeights(self._resident))

    def take(self, message: Message) -> None:
        """Handle a message of the scheduler."""
        match message:
            case Assign(task):
                before = [running for other, running in self._running.items() if other not in self._vacated]
                with log.about(**ids_of(task)):
                    self._running[task.id] = running = asyncio.create_task(self._run(task, before))
                running.add_done_callback(partial(self._ended, task))
            case Interrupt(task_id):
                if (asked := self._running.get(task_id)) is not None:
                    asked.cancel()
            case HandOver():  # its ComfyUI cannot go on where another one stopped, so they start again there
                self._handed_over.update(self._running)
                for running in self._running.values():
                    running.cancel()
            case Free(weights, results):
                self._errand(self._free(weights=weights, results=results))
            case Export(signature):  # it has no values for others
                self._send(Evicted((signature,)))
            case Forget(signatures):
                self._send(Evicted(signatures))
            case Check(check_id):
                self._send(Checked(check_id, (), {}))
            case SocketFrame(socket, frame):
                if (frames := self._relayed.get(socket)) is not None:
                    frames.put_nowait(frame)

    async def lost_touch(self) -> None:
        """Drop running tasks."""
        await self._drop()
        if self._membership is not None:
            self._membership.discard_unsent()

    async def _drop(self) -> None:
        for running in self._running.values():
            running.cancel()
        await asyncio.gather(*self._running.values(), return_exceptions=True)

    def _errand(self, errand: Awaitable[object]) -> None:
        async def done() -> None:
            # If it no longer answers, the run of a graph notices.
            with contextlib.suppress(ComfyUIError, OSError):
                await errand

        self._errands.add(task := asyncio.create_task(done()))
        task.add_done_callback(self._errands.discard)

    async def _free(self, *, weights: bool, results: bool) -> None:
        if self.client is not None:
            await self.client.free(weights=weights, results=results)
            if weights:
                self._resident = ()
                self._send(ResidentWeights(()))

    def _send(self, report: Report) -> None:
        if self._membership is not None:
            self._membership.send(report)

    # Tasks ------------------------------------------------------------------------------------------------------------

    async def _run(self, task: Task, before: list[asyncio.Task[None]]) -> None:
        """Run a graph once the graphs before it have ended. Errors: as `GraphRun.run`; ComfyUIError."""
        if before:
            await asyncio.wait(before)
        client = self.client
        assert client is not None
        while not self._frames.empty():
            self._frames.get_nowait()
        run = GraphRun(
            task,
            client,
            self._file_transfer,
            self._scheduler,
            store=self._store,
            transfer=self._transfer,
            send=self._send,
            vacated=partial(self._vacate, task.id),
            times=self.times,
            shown_bytes=self._limits.shown_bytes,
        )
        try:
            if self.process is not None and (models := self.process.models) is not None:
                await asyncio.to_thread(models.fetch, task_texts(task))
            await run.run(self._frames, self._client_id, self._previews)
        except (ForeignInterruptError, GraphFailedError, ComfyUIError):
            raise
        except BaseException:
            # Cancelled, or its files are missing: a graph that still runs there must end before the next.
            if task.id not in self._vacated:
                await self._stop(client, graph_id(task.id.job_id))
            raise

    def _vacate(self, task_id: TaskId) -> None:
        """Let the next graph begin while this one's outputs are stored."""
        self._vacated.add(task_id)
        self._send(SlotReleased(task_id))

    async def _stop(self, client: Client, graph: str) -> None:
        """Stop a graph; replace the process if it does not stop in time."""
        try:
            async with asyncio.timeout(self._stop_s):
                await client.withdraw([graph])
                while graph in await client.unfinished():
                    await asyncio.sleep(LOOK_S)
        except TimeoutError:
            _log.warning("the process is replaced: a graph goes on %g s after it had to stop", self._stop_s)
            await self._give_way()
        except ComfyUIError as error:
            self._end(error)

    async def _give_way(self) -> None:
        """Leave, so that no job is charged with the loss, and let another process take over."""
        if self._membership is not None:
            await self._membership.leave()
        self._end(None)

    def _end(self, error: BaseException | None) -> None:
        if not self._over.done():
            if error is None:
                self._over.set_result(None)
            else:
                self._over.set_exception(error)

    async def _idle(self, client: Client) -> None:
        while await client.unfinished():
            await asyncio.sleep(LOOK_S)

    def _ended(self, task: Task, running: asyncio.Task[None]) -> None:
        """Report the task's end."""
        task_id = task.id
        self._running.pop(task_id, None)
        self._vacated.discard(task_id)
        handed_over = task_id in self._handed_over
        self._handed_over.discard(task_id)
        self.times.over(task_id)
        error = asyncio.CancelledError() if running.cancelled() else running.exception()
        if isinstance(error, ComfyUIError) and not isinstance(error, RefusedGraphError):
            self._end(error)
            return
        self._tidy(task)
        if self._leaving:
            return
        with log.about(**ids_of(task)):
            _log.info("task ended: state=%s", state_of(error))
        match error:
            case None:
                self._send(TaskFinished(task_id))
            case asyncio.CancelledError():
                self._send(TaskHandedOver(task_id) if handed_over else TaskStopped(task_id))
            case ForeignInterruptError():
                self._send(TaskCancelled(task_id))
            case GraphFailedError(data=data):
                self._send(failed_there(task, data))
            case RefusedGraphError():
                self._send(graph_refused(task, error))
            case SavingFailedError(node_id=node_id, class_type=class_type, __cause__=cause):
                self._send(failed(task, node_id, class_type, cause or error))
            case _:
                self._send(failed(task, "", "", error))
        self._send(Evicted(tuple(task.signatures.values())))

    def _tidy(self, task: Task) -> None:
        """Remove earlier graphs from the process's history, and note which models this one has left in memory."""
        client, process = self.client, self.process
        if client is not None and time.monotonic() - self._tidied_s > TIDY_S:
            self._tidied_s = time.monotonic()
            past, self._past = self._past, []
            self._errand(client.forget(past))
            if process is not None:
                made = [process.areas["output"], process.areas["temp"]]
                self._errand(asyncio.to_thread(prune, made, self._keep_bytes))
        # Late, as it appears in the history only a moment after its end was sent.
        self._past.append(graph_id(task.id.job_id))
        models = [name for name in sorted(task_texts(task)) if name.lower().endswith(WEIGHTS)]
        resident = tuple(dict.fromkeys([*models, *self._resident]))[:RESIDENT]
        if resident != self._resident:
            self._resident = resident
            self._send(ResidentWeights(resident))


def _is_packs(path: str) -> bool:
    """Whether a script is a node pack's, and not ComfyUI's own web page's."""
    return path.startswith("/extensions/") and not path.startswith("/extensions/core/")
