"""One graph's run in a ComfyUI: it is sent, its frames become reports, and what its nodes show goes into the store."""

from __future__ import annotations

import asyncio
import io
from collections.abc import Callable
from typing import Any

from PIL import Image

from serve_app import log
from serve_app.comfyui.client import Client, graph_id
from serve_app.comfyui.files import Carrier
from serve_app.comfyui.frames import Ended, Narration, Pictured, Said, Shown
from serve_app.errors import FileMissingError, NodeError, ServeAppError
from serve_app.events import data_bytes
from serve_app.execution.files import NodeFiles
from serve_app.graph.graph import Origin
from serve_app.graph.plan import Task
from serve_app.limits import refused
from serve_app.media.pictures import FORMATS
from serve_app.replica.comfyui_failure import CancelledThereError, GraphFailedError, SavingFailedError
from serve_app.replica.node_times import NodeTimes
from serve_app.replica.transfer import Transfer
from serve_app.scheduler.protocol.messages import (
    NodeFinished,
    NodePreviewed,
    NodeSaid,
    NodeStarted,
    Report,
    SchedulerForReplicas,
)
from serve_app.store.files.reserved import Contents
from serve_app.store.files.store import Store
from serve_app.store.tenants.credentials import scrubbed
from serve_app.store.tenants.tenants import placed_key, store_of

_log = log.get("replica.comfyui")

OURS = ("pool", "strict", "node_time_s", "job_time_s", "deadline_s", "priority")
"""Members of `extra_data` that are this server's."""


class GraphRun:
    """The run of one task. What its nodes show is stored beside it, so that it may end before that does.

    say: takes its reports. vacated: told once the ComfyUI is done with it. shown_bytes: what its nodes may show in all.
    """

    def __init__(
        self,
        task: Task,
        client: Client,
        carrier: Carrier,
        scheduler: SchedulerForReplicas,
        *,
        store: Store,
        transfer: Transfer,
        say: Callable[[Report], None],
        vacated: Callable[[], None],
        times: NodeTimes,
        shown_bytes: int,
    ) -> None:
        self._task = task
        self._client = client
        self._carrier = carrier
        self._scheduler = scheduler
        self._store = store
        self._transfer = transfer
        self._say = say
        self._vacated = vacated
        self._times = times
        self._most_bytes = shown_bytes
        self._bytes = 0
        self._narration = Narration(task)

    async def run(self, frames: asyncio.Queue[str | bytes], client_id: str, previews: str) -> None:
        """Run it to its end. frames: what the ComfyUI says from here on. previews: as `preview_method`.

        Errors: GraphFailedError, CancelledThereError, SavingFailedError, ComfyUIError.
        """
        task = self._task
        await self._carrier.bring(task)
        data = {key: value for key, value in task.extra_data.items() if key not in OURS}
        if previews != "none":
            data.setdefault("preview_method", previews)
        await self._client.submit(task.prompt, graph_id(task.id.job_id), client_id, data, task.targets)
        shown: asyncio.Queue[Shown | None] = asyncio.Queue()
        following = asyncio.create_task(self._follow(frames, shown))
        storing = asyncio.create_task(self._store_all(shown))
        try:
            await asyncio.wait([following, storing], return_when=asyncio.FIRST_COMPLETED)
            if not following.done():
                storing.result()  # it ends before the graph only by failing
            end = await following
            await storing
        finally:
            for part in (following, storing):
                part.cancel()
            await asyncio.gather(following, storing, return_exceptions=True)
        if end.how == "interrupted":
            raise CancelledThereError("the graph was interrupted")
        if end.how == "error":
            raise GraphFailedError(end.data)

    async def _follow(self, frames: asyncio.Queue[str | bytes], shown: asyncio.Queue[Shown | None]) -> Ended:
        """Report what the frames say until they end; hand on what nodes show, and None after it."""
        task = self._task
        while True:
            frame = await frames.get()
            for told in self._narration.text(frame) if isinstance(frame, str) else self._narration.binary(frame):
                match told:
                    case Ended():
                        if told.how == "success":
                            await self._show_rest(shown)
                        shown.put_nowait(None)
                        self._vacated()
                        return told
                    case Shown():
                        shown.put_nowait(told)
                    case Pictured():
                        jpeg = await asyncio.to_thread(_jpeg, told.image)
                        self._say(NodePreviewed(task.id, told.node_id, self._transfer.put(jpeg), told.origin))
                    case Said():
                        self._count(told.data)
                        said = scrubbed(told.data, task.extra_data)
                        self._say(NodeSaid(task.id, told.node_id, told.type, said))
                    case _:
                        self._report(told)

    async def _show_rest(self, shown: asyncio.Queue[Shown | None]) -> None:
        """Hand on outputs of which no frame has come: of nodes that show nothing."""
        rest = list(self._narration.unsaid())
        history = await self._client.outputs(graph_id(self._task.id.job_id)) if rest else None
        outputs = (history or {}).get("outputs", {})
        for told in rest:
            shown.put_nowait(Shown(told.node_id, outputs.get(told.node_id) or {}, None, told.computed))

    async def _store_all(self, shown: asyncio.Queue[Shown | None]) -> None:
        while (told := await shown.get()) is not None:
            await self._show(told)

    def _report(self, report: Report) -> None:
        if isinstance(report, NodeStarted):
            self._times.began(self._task, report.node_id)
        elif isinstance(report, NodeFinished):
            self._times.ended(self._task, report.node_id, computed=report.computed)
        self._say(report)

    async def _show(self, told: Shown) -> None:
        """Store what a node shows, and report it."""
        task, node_id = self._task, told.node_id

        async def reserve(key: str, at_least: int, contents: Contents) -> tuple[int, bool]:
            return await self._scheduler.reserve(task.id, node_id, placed_key(key, task.tenant), at_least, contents)

        try:
            files = NodeFiles(store_of(self._store, task.tenant), task.id.job_id, node_id, reserve, at_s=task.created_s)
            ui = await self._carrier.take(told.ui, files)
            self._count(ui)
        except FileMissingError:
            # Its cache names a file that is no longer kept; without it the node runs again.
            _log.warning("a cached file of node %s is gone: the task is tried again without the cache", node_id)
            await self._client.free(weights=False, results=True)
            raise asyncio.CancelledError from None
        except ServeAppError as error:
            node = task.nodes.get(node_id)
            raise SavingFailedError(node_id, "" if node is None else node.class_type) from error
        real = node_id if told.origin is None else told.origin.real
        # What a node shows that is no output is kept too, as a made node's is.
        origin = told.origin or (None if node_id in task.targets or not ui else Origin(node_id, node_id, node_id))
        signature = task.signatures[node_id if node_id in task.signatures else real]
        ui = scrubbed(ui, task.extra_data)
        self._report(NodeFinished(task.id, node_id, signature, ui, origin, told.computed))

    def _count(self, shown: Any) -> None:
        self._bytes += data_bytes(shown)
        if self._bytes > self._most_bytes:
            refused("limits.shown_bytes")
            raise NodeError(
                f"its task shows {self._bytes} bytes; limits.shown_bytes of the configuration allows {self._most_bytes}"
            )


def _jpeg(image: bytes) -> bytes:
    """Return a picture as a JPEG, as it is if it is one."""
    if image.startswith(b"\xff\xd8"):
        return image
    buffer = io.BytesIO()
    Image.open(io.BytesIO(image), formats=FORMATS).convert("RGB").save(buffer, "JPEG", quality=95)
    return buffer.getvalue()
