"""Parses ComfyUI's websocket frames about a running graph to reports about our task. Pure."""

from __future__ import annotations

import json
import struct
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

from serve_app.comfyui.client import graph_id
from serve_app.graph.graph import Origin
from serve_app.graph.plan import Task
from serve_app.scheduler.protocol.messages import NodeFinished, NodeProgressed, NodesCached, NodeStarted, Report

PREVIEW, TEXT = 1, 3
"""Kinds of its binary frames."""


@dataclass(frozen=True, slots=True)
class ExecutedNode:
    """A node has ended. ui: its output, with ComfyUI's file names. computed: it ran for this task."""

    node_id: str
    ui: Mapping[str, Any]
    origin: Origin | None
    computed: bool


@dataclass(frozen=True, slots=True)
class NodePreview:
    """A preview of a node: an encoded image."""

    node_id: str
    image: bytes
    origin: Origin | None


@dataclass(frozen=True, slots=True)
class NodeMessage:
    """A node's own message for its client."""

    node_id: str
    type: str
    data: Any


@dataclass(frozen=True, slots=True)
class GraphEnded:
    """The graph has ended. data: of the last frame."""

    how: Literal["success", "error", "interrupted"]
    data: Mapping[str, Any]


FrameEvent: TypeAlias = Report | ExecutedNode | NodePreview | NodeMessage | GraphEnded


class FrameParser:
    """Parses the frames of one task; frames of other graphs and of unknown nodes are dropped."""

    def __init__(self, task: Task) -> None:
        self._task = task
        self._graph_id = graph_id(task.id.job_id)
        self._origins: dict[str, Origin] = {}
        self._cached: set[str] = set()
        self._finished: set[str] = set()
        self._progress: dict[str, tuple[float, float]] = {}
        self._running = ""

    def text(self, frame: str) -> Iterator[FrameEvent]:
        """Yield the events of a text frame."""
        try:
            message = json.loads(frame)
            kind, data = message["type"], message.get("data") or {}
        except (ValueError, KeyError, TypeError, AttributeError):
            return
        if not isinstance(data, Mapping) or data.get("prompt_id") not in (None, self._graph_id):
            return
        match kind:
            case "execution_cached":
                self._cached = {str(n) for n in data.get("nodes", ())} & self._task.nodes.keys()
                self._finished |= self._cached
                if self._cached:
                    yield NodesCached(self._task.id, tuple(sorted(self._cached)))
            case "executing" if data.get("node") is not None:
                yield from self._started(str(data["node"]), data)
            case "progress":
                node_id = str(data.get("node") or self._running)
                yield from self._progressed(node_id, data.get("value"), data.get("max"))
            case "progress_state":
                for node_id, state in data.get("nodes", {}).items():
                    yield from self._state(str(node_id), state)
            case "executed":
                node_id = str(data.get("node"))
                if self._known(node_id, data):
                    self._finished.add(node_id)
                    ui = data.get("output") or {}
                    yield ExecutedNode(node_id, ui, self._origin(node_id), node_id not in self._cached)
            case "execution_success":
                yield GraphEnded("success", data)
            case "execution_error":
                yield GraphEnded("error", data)
            case "execution_interrupted":
                yield GraphEnded("interrupted", data)
            case "status" | "execution_start" | "executing" | "feature_flags" | "logs":
                pass
            case str() if self._running and data:
                # A pack's own message for its page.
                yield NodeMessage(self._running, kind, {k: v for k, v in data.items() if k != "prompt_id"})

    def binary(self, frame: bytes) -> Iterator[FrameEvent]:
        """Yield the events of a binary frame."""
        try:
            (kind,) = struct.unpack_from(">I", frame)
            match kind:
                case 1:
                    if self._running:
                        yield NodePreview(self._running, frame[8:], self._origin(self._running))
                case 4:
                    (length,) = struct.unpack_from(">I", frame, 4)
                    about = json.loads(frame[8 : 8 + length])
                    node_id = str(about.get("node_id"))
                    if about.get("prompt_id") == self._graph_id and self._known(node_id, about):
                        yield NodePreview(node_id, frame[8 + length :], self._origin(node_id))
                case 3:
                    yield from self._text_message(frame)
        except (struct.error, ValueError, AttributeError):
            return

    def _text_message(self, frame: bytes) -> Iterator[FrameEvent]:
        """Yield a text about a node. Newer versions put the graph's id first, if negotiated."""
        fields: list[str] = []
        at = 4
        while len(fields) < 2 and at + 4 <= len(frame):
            (length,) = struct.unpack_from(">I", frame, at)
            if at + 4 + length > len(frame):
                break
            fields.append(frame[at + 4 : at + 4 + length].decode(errors="replace"))
            at += 4 + length
            if len(fields) == 1 and fields[0] != self._graph_id:
                break
        node_id = fields[-1] if fields else ""
        if self._known(node_id, {}):
            yield NodeMessage(node_id, "progress_text", {"text": frame[at:].decode(errors="replace")})

    def missing_outputs(self) -> Iterator[ExecutedNode]:
        """Yield outputs of targets without an own frame: they have ended without output."""
        for node_id in self._task.targets:
            if node_id not in self._finished:
                yield ExecutedNode(node_id, {}, None, node_id not in self._cached)

    def _started(self, node_id: str, data: Mapping[str, Any]) -> Iterator[FrameEvent]:
        if self._known(node_id, data):
            self._running = node_id
            yield NodeStarted(self._task.id, node_id, self._origin(node_id))

    def _state(self, node_id: str, state: Mapping[str, Any]) -> Iterator[FrameEvent]:
        if not self._known(node_id, state):
            return
        if state.get("state") == "running" and state.get("value"):
            yield from self._progressed(node_id, state.get("value"), state.get("max"))
        elif state.get("state") == "finished" and node_id not in self._finished | {*self._task.targets}:
            self._finished.add(node_id)
            if node_id in self._task.nodes:
                yield NodeFinished(self._task.id, node_id, self._task.signatures[node_id], None)

    def _progressed(self, node_id: str, value: Any, maximum: Any) -> Iterator[FrameEvent]:
        numbers = isinstance(value, int | float) and isinstance(maximum, int | float)
        if numbers and self._known(node_id, {}) and self._progress.get(node_id) != (value, maximum):
            self._progress[node_id] = (value, maximum)
            yield NodeProgressed(self._task.id, node_id, value, maximum, self._origin(node_id))

    def _known(self, node_id: str, about: Mapping[str, Any]) -> bool:
        """Whether the node is in the graph, or was made by one that is; then note its maker."""
        if node_id in self._task.nodes or node_id in self._origins:
            return True
        # The id of a made node begins with its maker's id and a dot.
        parent = about.get("parent_node_id") or node_id.rpartition(".")[0]
        real = about.get("real_node_id") or parent
        while real and real not in self._task.nodes:
            real = real.rpartition(".")[0]
        if not real:
            return False
        display = about.get("display_node_id") or about.get("display_node") or real
        self._origins[node_id] = Origin(str(display), str(parent), str(real))
        return True

    def _origin(self, node_id: str) -> Origin | None:
        return self._origins.get(node_id)
