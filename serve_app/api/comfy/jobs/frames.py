"""A job's events as the messages of ComfyUI's websocket.

One `JobFrames` per job and socket: some messages have the state of every node so far, collected from the events. Pure.
Source: comfyui 0.3.64 `execution.py`, `comfy_execution/progress.py`; its order on the wire was measured.
"""

from __future__ import annotations

import itertools
import json
import struct
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, TypeAlias

from serve_app.events import Event, Failure

Frame: TypeAlias = dict[str, Any] | bytes
"""A message of the socket: {"type", "data"} as text, or bytes."""


def text_message(type_: str, data: Mapping[str, Any]) -> Frame:
    """Return a text frame."""
    return {"type": type_, "data": dict(data)}


def status(remaining: int, sid: str | None = None) -> Frame:
    """Return the `status` message: how many jobs have not ended. sid: the client's id, for a new socket."""
    data: dict[str, Any] = {"status": {"exec_info": {"queue_remaining": remaining}}}
    return text_message("status", data if sid is None else {**data, "sid": sid})


STATES = 256
"""With up to this many nodes every event is followed by the state of all nodes. In a larger job states are sent less
often, so that traffic grows linearly with the events, not with their square.
"""


NOTHING: Mapping[str, Any] = {}


class JobFrames:
    """Converts the events of one job to the messages for one socket."""

    def __init__(self, job_id: str) -> None:
        self._job_id = job_id
        self._nodes: dict[str, dict[str, Any]] = {}
        self._finished: dict[str, None] = {}
        self._unsent = 0
        self._begun = False
        self.started_s: float | None = None

    def frames(self, event: Event, features: Mapping[str, Any] = NOTHING) -> Iterator[Frame]:
        """Yield the frames of an event, in order; after the last event the queue's new length is sent, then `end`.

        features: the client's feature flags. The image of a `preview` is a JPEG.
        """
        job, stamp = {"prompt_id": self._job_id}, {"prompt_id": self._job_id, "timestamp": int(event.at_s * 1000)}
        match event.kind:
            case "started":
                self._begun, self.started_s = True, event.at_s
                yield text_message("execution_start", stamp)
            case "cached":
                yield text_message("execution_cached", {"nodes": list(event.data["nodes"]), **stamp})
            case "executing":
                node = self._node(event, "running", 0, 1)
                yield from self._states()
                yield text_message(
                    "executing", {"node": event.data["node"], "display_node": node["display_node_id"], **job}
                )
            case "progress":
                self._node(event, "running", event.data["value"], event.data["max"])
                yield from self._states()
                counted = {"value": event.data["value"], "max": event.data["max"]}
                yield text_message("progress", {**counted, **job, "node": event.data["node"]})
            case "finished":
                self._finish(event)
                yield from self._states()
            case "executed":
                node = self._finish(event)
                if output := event.data["output"]:
                    shown = {"node": event.data["node"], "display_node": node["display_node_id"], "output": output}
                    yield text_message("executed", {**shown, **job})
                yield from self._states()
            case "preview":
                yield self._picture(event, described=features.get("supports_preview_metadata") is True)
            case "message" if (text := _text(event.data)) is not None:
                described = features.get("supports_progress_text_metadata") is True
                yield text_frame(text, event.data["node"], self._job_id if described else None)
            case "message":
                # Its data may be any JSON value.
                yield {"type": event.data["type"], "data": event.data["data"]}
            case "blocked":
                executed = list(itertools.islice(reversed(self._finished), STATES))
                yield text_message("execution_error", {**_blocked(event.data, executed[::-1]), **job})
            case "success":
                yield text_message("execution_success", stamp)
            case "error":
                yield text_message(
                    "execution_error", {**error_data(Failure.from_json(event.data), self._executed()), **stamp}
                )
            case "cancelled":
                if self._begun:
                    yield text_message("execution_interrupted", {**self._interrupted(event), **stamp})

    def _picture(self, event: Event, *, described: bool) -> Frame:
        """Return the frame of a `preview`. described: with its metadata."""
        image: bytes = event.data["image"]
        if not described:
            return image_frame(image)
        known = self._nodes.get(event.data["node"], {})
        about = {name: known.get(name) for name in ("display_node_id", "parent_node_id", "real_node_id")}
        ids = {"node_id": event.data["node"], "prompt_id": self._job_id}
        return described_image_frame(image, {**ids, **about, "image_type": "image/jpeg"})

    def end(self) -> Iterator[Frame]:
        """Yield the last frame of a job that had begun: none of its nodes runs."""
        if self._begun:
            yield text_message("executing", {"node": None, "prompt_id": self._job_id})

    def state(self) -> Frame:
        """Return the state of every node that has begun."""
        return text_message(
            "progress_state", {"prompt_id": self._job_id, "nodes": {k: dict(v) for k, v in self._nodes.items()}}
        )

    def _states(self) -> Iterator[Frame]:
        self._unsent += 1
        if self._unsent * STATES >= len(self._nodes):
            self._unsent = 0
            yield self.state()

    @property
    def running(self) -> bool:
        """Whether a node of the job runs."""
        return any(node["state"] == "running" for node in self._nodes.values())

    def _node(self, event: Event, state: str, value: float, maximum: float) -> dict[str, Any]:
        node_id = event.data["node"]
        known = self._nodes.get(node_id, {})

        def named(member: str, fallback: str | None) -> str | None:
            found: str | None = event.data.get(member, known.get(f"{member}_id", fallback))
            return found

        self._nodes[node_id] = {
            "value": value,
            "max": maximum,
            "state": state,
            "node_id": node_id,
            "prompt_id": self._job_id,
            "display_node_id": named("display_node", node_id),
            "parent_node_id": named("parent_node", None),
            "real_node_id": known.get("real_node_id", event.data.get("real_node", node_id)),
        }
        return self._nodes[node_id]

    def _finish(self, event: Event) -> dict[str, Any]:
        maximum = self._nodes.get(event.data["node"], {}).get("max", 1)
        self._finished[event.data["node"]] = None
        return self._node(event, "finished", maximum, maximum)

    def _executed(self) -> list[str]:
        return list(self._finished)

    def _interrupted(self, event: Event) -> dict[str, Any]:
        failure = Failure.from_json(event.data)
        running = [node_id for node_id, node in self._nodes.items() if node["state"] == "running"]
        return {
            "node_id": failure.node or (running[-1] if running else None),
            "node_type": failure.class_type or None,
            "executed": list(failure.executed or self._executed()),
        }


def _text(message: Mapping[str, Any]) -> str | None:
    """Return the text of a message about a node; None for a node pack's own message."""
    match message:
        case {"type": "progress_text", "node": str(), "data": {"text": str(text)}}:
            return text
    return None


def error_data(failure: Failure, executed: Sequence[str]) -> dict[str, Any]:
    """Return a failure as the members of an `execution_error`. executed: nodes that had run, if the failure has
    none.
    """
    return {
        "node_id": failure.node,
        "node_type": failure.class_type,
        "executed": list(failure.executed or executed),
        "exception_message": f"{failure.message or 'no reason is recorded'}\n",
        "exception_type": failure.exception_type or "Exception",
        "traceback": list(failure.traceback),
        "current_inputs": dict(failure.current_inputs),
        "current_outputs": list(failure.current_outputs),
    }


def _blocked(data: Mapping[str, Any], executed: Sequence[str]) -> dict[str, Any]:
    """Return a blocked node as an `execution_error`; the job goes on."""
    return {
        "node_id": data["node"],
        "node_type": data["class_type"],
        "executed": list(executed),
        "exception_message": f"Execution Blocked: {data['message']}",
        "exception_type": "ExecutionBlocked",
        "traceback": [],
        "current_inputs": [],
        "current_outputs": [],
    }


def image_frame(image: bytes, *, png: bool = False) -> Frame:
    """Return an image for clients without feature flags: binary type 1, then 1 for JPEG or 2 for PNG."""
    return struct.pack(">II", 1, 2 if png else 1) + image


def described_image_frame(image: bytes, about: Mapping[str, Any]) -> Frame:
    """Return an image with its metadata: binary type 4, the length of the JSON, the JSON, the image."""
    text = json.dumps(about).encode()
    return struct.pack(">II", 4, len(text)) + text + image


def text_frame(text: str, node_id: str, job_id: str | None) -> Frame:
    """Return a text about a node: binary type 3, the job's and the node's ids, each after its length, and the text.

    job_id: None for clients that read the node's id only.
    """
    ids = [id.encode() for id in (job_id, node_id) if id is not None]
    return struct.pack(">I", 3) + b"".join(struct.pack(">I", len(id)) + id for id in ids) + text.encode()
