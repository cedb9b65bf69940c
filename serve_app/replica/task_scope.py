"""The capabilities of one task's nodes on their replica, and the reports about them."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import time
from collections.abc import Awaitable, Mapping
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any

from serve_app import tracing
from serve_app.execution.call import NodeResult
from serve_app.execution.executing import Progress, SendMessage
from serve_app.execution.runtime import NodeStore, Runtime
from serve_app.execution.time_limit import TimeLimit
from serve_app.graph.graph import Origin
from serve_app.graph.plan import Task
from serve_app.graph.spec import NodeSpec
from serve_app.images import to_preview
from serve_app.scheduler.protocol.messages import (
    PROGRESS_TEXT,
    NodeBlocked,
    NodeFinished,
    NodeProgressed,
    NodesCached,
    NodeSentMessage,
    NodeStarted,
)
from serve_app.store.tenants.credentials import scrubbed
from serve_app.store.work.run_states import RunStateFiles

if TYPE_CHECKING:
    from serve_app.replica.runner import Runner


class TaskScope:
    """The capabilities and the observer of one task's nodes."""

    def __init__(self, runner: Runner, task: Task) -> None:
        self._runner = runner
        self._task = task
        self._origins: dict[str, Origin | None] = {}
        self._began_s: dict[str, float] = {}
        self._drawing: dict[str, asyncio.Task[None]] = {}
        self._loop = asyncio.get_running_loop()

    async def find(self, signature: str) -> NodeResult | None:
        """Return a stored result of a node."""
        stored = self._runner.stored
        return None if stored is None else await stored.find(signature, self._task.tenant)

    def keep(self, signature: str, result: NodeResult, took_s: float) -> None:
        """Store a node's result, unless a pack's code may have had a part in it, which no signature has."""
        if (stored := self._runner.stored) is not None and self._runner.is_all_own(self._task):
            shown = scrubbed(result.ui, self._task.extra_data)
            stored.keep(signature, replace(result, ui=shown), took_s, self._task.tenant)

    def runtime(self, node_id: str) -> Runtime | None:
        progress, show, remark = (partial(f, node_id) for f in (self._progressed, self._show, self._remark))
        numbers, states = itertools.count(), self._runner.run_states(self._task)
        recipe = self._task.signatures.get(node_id, "")

        def files() -> RunStateFiles:
            return states.of(node_id, next(numbers), recipe)

        return self._runner.runtime(progress, show, remark, self._task, files)

    def fingerprint(self, folder: str, name: str) -> str:
        return self._runner.fingerprint(folder, name, self._task.tenant)

    def files(self, node_id: str) -> NodeStore:
        return self._runner.files(self._task, node_id)

    def progress(self, node_id: str) -> Progress:
        def progress(value: float, maximum: float, preview: Any) -> None:
            value, maximum = _number(value), _number(maximum)
            # Called from any thread. A closed loop needs no reports.
            with contextlib.suppress(RuntimeError):
                self._loop.call_soon_threadsafe(self._progressed, node_id, value, maximum)
                if isinstance(preview, tuple) and len(preview) > 1:
                    # ComfyUI's triple: a format, a Pillow image, the longest side.
                    self._loop.call_soon_threadsafe(self._show, node_id, preview[1])

        return progress

    def _progressed(self, node_id: str, value: float, maximum: float) -> None:
        self._runner.send(NodeProgressed(self._task.id, node_id, value, maximum, self._origins.get(node_id)))

    def _remark(self, node_id: str, text: str) -> None:
        """Send the job's client a text about a node."""
        self._runner.send(NodeSentMessage(self._task.id, node_id, PROGRESS_TEXT, {"text": text}))

    def _show(self, node_id: str, picture: Any) -> None:
        """Send an image (h,w,3) in 0…255 as a preview, unless the node's last one is still being encoded."""
        drawing = self._drawing.get(node_id)
        if drawing is None or drawing.done():
            self._drawing[node_id] = asyncio.create_task(self._draw(node_id, picture))

    async def _draw(self, node_id: str, picture: Any) -> None:
        image = await asyncio.to_thread(to_preview, picture)
        self._runner.preview(self._task.id, node_id, image, self._origins.get(node_id))

    def message_sender(self, node_id: str) -> SendMessage:
        def send_message(type_: str, data: Any) -> None:
            self._runner.check_message(data)
            with contextlib.suppress(RuntimeError):
                message = NodeSentMessage(self._task.id, node_id, type_, scrubbed(data, self._task.extra_data))
                self._loop.call_soon_threadsafe(self._runner.send, message)

        return send_message

    def started(self, node_id: str, origin: Origin | None) -> None:
        self._origins[node_id] = origin
        self._began_s[node_id] = time.time()
        self._runner.times.began(self._task, node_id)
        self._runner.send(NodeStarted(self._task.id, node_id, origin))

    def finished(
        self, node_id: str, signature: str, ui: Mapping[str, Any] | None, origin: Origin | None, *, computed: bool
    ) -> None:
        self._runner.times.ended(self._task, node_id, computed=computed)
        if computed and (began_s := self._began_s.pop(node_id, None)) is not None:
            node = self._task.nodes.get(node_id)
            about = {"node": node_id, "class": "" if node is None else node.class_type}
            tracing.record("node", began_s, time.time(), tracing.traceparent(), **about)
        shown = scrubbed(ui, self._task.extra_data)
        self._runner.send(NodeFinished(self._task.id, node_id, signature, shown, origin, computed))

    def cached(self, nodes: tuple[str, ...]) -> None:
        self._runner.send(NodesCached(self._task.id, nodes))

    def blocked(self, node_id: str, class_type: str, message: str) -> None:
        shown = scrubbed(message, self._task.extra_data)
        self._runner.send(NodeBlocked(self._task.id, node_id, class_type, shown))

    def time_limit(self, spec: NodeSpec) -> TimeLimit | None:
        return self._runner.node_limits.of(spec, self._task.extra_data)

    def fetch(self, signature: str) -> Awaitable[Any | None]:
        return self._runner.fetch(self._task.id, signature)


def _number(value: Any) -> float:
    """Return a node's number as a float. Errors: those of `float`, which are the node's own."""
    return value if type(value) in (int, float) else float(value)
