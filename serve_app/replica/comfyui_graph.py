"""One graph's run in a ComfyUI: send it, turn its frames into reports, and store its nodes' outputs."""

from __future__ import annotations

import asyncio
import io
from collections.abc import Callable
from typing import Any

from PIL import Image

from serve_app import log
from serve_app.comfyui.client import Client, graph_id
from serve_app.comfyui.files import FileTransfer
from serve_app.comfyui.frames import ExecutedNode, FrameParser, GraphEnded, NodeMessage, NodePreview
from serve_app.errors import FileMissingError, NodeError, ServeAppError
from serve_app.events import data_bytes
from serve_app.execution.files import NodeFiles
from serve_app.graph.graph import Origin
from serve_app.graph.plan import Task
from serve_app.limits import refused
from serve_app.media.pictures import FORMATS
from serve_app.replica.comfyui_failure import ForeignInterruptError, GraphFailedError, SavingFailedError
from serve_app.replica.node_times import NodeTimes
from serve_app.replica.transfer import Transfer
from serve_app.scheduler.protocol.messages import (
    NodeFinished,
    NodePreviewed,
    NodeSentMessage,
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
"""Members of `extra_data` for this server only."""


class GraphRun:
    """The run of one task. Outputs are stored concurrently, and may still be being stored when the graph has ended.

    send: takes its reports. vacated: called once the ComfyUI is done with it. shown_bytes: limit of its nodes' outputs.
    """

    def __init__(
        self,
        task: Task,
        client: Client,
        file_transfer: FileTransfer,
        scheduler: SchedulerForReplicas,
        *,
        store: Store,
        transfer: Transfer,
        send: Callable[[Report], None],
        vacated: Callable[[], None],
        times: NodeTimes,
        shown_bytes: int,
    ) -> None:
        self._task = task
        self._client = client
        self._file_transfer = file_transfer
        self._scheduler = scheduler
        self._store = store
        self._transfer = transfer
        self._send = send
        self._vacated = vacated
        self._times = times
        self._most_bytes = shown_bytes
        self._bytes = 0
        self._parser = FrameParser(task)

    async def run(self, frames: asyncio.Queue[str | bytes], client_id: str, previews: str) -> None:
        """Run it to its end. frames: ComfyUI's frames from here on. previews: as `preview_method`.

        Errors: GraphFailedError, CancelledThereError, SavingFailedError, ComfyUIError.
        """
        task = self._task
        await self._file_transfer.send_inputs(task)
        data = {key: value for key, value in task.extra_data.items() if key not in OURS}
        if previews != "none":
            data.setdefault("preview_method", previews)
        await self._client.submit(task.prompt, graph_id(task.id.job_id), client_id, data, task.targets)
        shown: asyncio.Queue[ExecutedNode | None] = asyncio.Queue()
        following = asyncio.create_task(self._follow(frames, shown))
        storing = asyncio.create_task(self._store_all(shown))
        try:
            await asyncio.wait([following, storing], return_when=asyncio.FIRST_COMPLETED)
            if not following.done():
                storing.result()  # it ends before the graph only with an error
            end = await following
            await storing
        finally:
            for part in (following, storing):
                part.cancel()
            await asyncio.gather(following, storing, return_exceptions=True)
        if end.how == "interrupted":
            raise ForeignInterruptError("the graph was interrupted")
        if end.how == "error":
            raise GraphFailedError(end.data)

    async def _follow(
        self, frames: asyncio.Queue[str | bytes], shown: asyncio.Queue[ExecutedNode | None]
    ) -> GraphEnded:
        """Turn frames into reports until the graph ends; queue nodes' outputs, then None."""
        task = self._task
        while True:
            frame = await frames.get()
            for executed in self._parser.text(frame) if isinstance(frame, str) else self._parser.binary(frame):
                match executed:
                    case GraphEnded():
                        if executed.how == "success":
                            await self._show_rest(shown)
                        shown.put_nowait(None)
                        self._vacated()
                        return executed
                    case ExecutedNode():
                        shown.put_nowait(executed)
                    case NodePreview():
                        jpeg = await asyncio.to_thread(_jpeg, executed.image)
                        self._send(NodePreviewed(task.id, executed.node_id, self._transfer.put(jpeg), executed.origin))
                    case NodeMessage():
                        self._count(executed.data)
                        said = scrubbed(executed.data, task.extra_data)
                        self._send(NodeSentMessage(task.id, executed.node_id, executed.type, said))
                    case _:
                        self._report(executed)

    async def _show_rest(self, shown: asyncio.Queue[ExecutedNode | None]) -> None:
        """Queue outputs without a frame: of nodes without output."""
        rest = list(self._parser.missing_outputs())
        history = await self._client.outputs(graph_id(self._task.id.job_id)) if rest else None
        outputs = (history or {}).get("outputs", {})
        for executed in rest:
            shown.put_nowait(
                ExecutedNode(executed.node_id, outputs.get(executed.node_id) or {}, None, executed.computed)
            )

    async def _store_all(self, shown: asyncio.Queue[ExecutedNode | None]) -> None:
        while (executed := await shown.get()) is not None:
            await self._show(executed)

    def _report(self, report: Report) -> None:
        if isinstance(report, NodeStarted):
            self._times.began(self._task, report.node_id)
        elif isinstance(report, NodeFinished):
            self._times.ended(self._task, report.node_id, computed=report.computed)
        self._send(report)

    async def _show(self, executed: ExecutedNode) -> None:
        """Store a node's outputs, and report it as finished."""
        task, node_id = self._task, executed.node_id

        async def reserve(key: str, at_least: int, contents: Contents) -> tuple[int, bool]:
            return await self._scheduler.reserve(task.id, node_id, placed_key(key, task.tenant), at_least, contents)

        try:
            files = NodeFiles(store_of(self._store, task.tenant), task.id.job_id, node_id, reserve, at_s=task.created_s)
            ui = await self._file_transfer.store_outputs(executed.ui, files)
            self._count(ui)
        except FileMissingError:
            # Its cache names a deleted file; without the entry the node runs again.
            _log.warning("a cached file of node %s is gone: the task is tried again without the cache", node_id)
            await self._client.free(weights=False, results=True)
            raise asyncio.CancelledError from None
        except ServeAppError as error:
            node = task.nodes.get(node_id)
            raise SavingFailedError(node_id, "" if node is None else node.class_type) from error
        real = node_id if executed.origin is None else executed.origin.real
        # The output of a node that is no target is kept too, as a made node's is.
        origin = executed.origin or (None if node_id in task.targets or not ui else Origin(node_id, node_id, node_id))
        signature = task.signatures[node_id if node_id in task.signatures else real]
        ui = scrubbed(ui, task.extra_data)
        self._report(NodeFinished(task.id, node_id, signature, ui, origin, executed.computed))

    def _count(self, shown: Any) -> None:
        self._bytes += data_bytes(shown)
        if self._bytes > self._most_bytes:
            refused("limits.shown_bytes")
            raise NodeError(
                f"its task shows {self._bytes} bytes; limits.shown_bytes of the configuration allows {self._most_bytes}"
            )


def _jpeg(image: bytes) -> bytes:
    """Return an image as a JPEG, unchanged if it is one."""
    if image.startswith(b"\xff\xd8"):
        return image
    buffer = io.BytesIO()
    Image.open(io.BytesIO(image), formats=FORMATS).convert("RGB").save(buffer, "JPEG", quality=95)
    return buffer.getvalue()
