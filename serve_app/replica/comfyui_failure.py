"""Failures of a graph in a ComfyUI, as reports of the replica."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from serve_app.comfyui.client import RefusedGraphError
from serve_app.errors import ServeAppError
from serve_app.graph.plan import Task
from serve_app.replica.failure import CHARACTERS, LINES, with_short_paths
from serve_app.scheduler.protocol.messages import TaskFailed
from serve_app.store.tenants.credentials import scrubbed


class ForeignInterruptError(ServeAppError):
    """The graph was interrupted, but not by this replica: by a node, or another client of the ComfyUI."""


class GraphFailedError(ServeAppError):
    """A node raised. data: of the error's frame."""

    def __init__(self, data: Mapping[str, Any]) -> None:
        super().__init__(str(data.get("exception_message", "")))
        self.data = data


class SavingFailedError(ServeAppError):
    """A node's outputs cannot be stored; the cause has the reason."""

    def __init__(self, node_id: str, class_type: str) -> None:
        super().__init__(f"what {class_type} {node_id} has made cannot be stored")
        self.node_id = node_id
        self.class_type = class_type


def failed_there(task: Task, data: Mapping[str, Any]) -> TaskFailed:
    """Return the report of a node that raised in a ComfyUI."""
    inputs = data.get("current_inputs")
    return TaskFailed(
        task_id=task.id,
        node_id=str(data.get("node_id") or ""),
        class_type=str(data.get("node_type") or ""),
        exception_type=str(data.get("exception_type") or "Exception"),
        message=_told(task, data.get("exception_message")),
        traceback=tuple(with_short_paths(_told(task, line)) for line in list(data.get("traceback") or ())[:LINES]),
        inputs=scrubbed(inputs, task.extra_data) if isinstance(inputs, Mapping) else {},
    )


def graph_refused(task: Task, error: RefusedGraphError) -> TaskFailed:
    """Return the report of a graph that a ComfyUI refuses: every reason, and the first node with one."""
    reasons = []
    for node_id, found in error.node_errors.items():
        for one in found.get("errors", ()) if isinstance(found, Mapping) else ():
            details = f" ({one['details']})" if one.get("details") else ""
            reasons.append(f"{found.get('class_type')} {node_id}: {one.get('message')}{details}")
    node_id = next(iter(error.node_errors), "")
    node = task.nodes.get(node_id)
    return TaskFailed(
        task_id=task.id,
        node_id=node_id,
        class_type="" if node is None else node.class_type,
        exception_type=str(error.error.get("type") or "RefusedGraph"),
        message=_told(task, "; ".join([f"ComfyUI refuses the workflow: {error}", *reasons])),
        traceback=(),
    )


def _told(task: Task, text: Any) -> str:
    told: str = scrubbed(str(text or "")[:CHARACTERS], task.extra_data)
    return told
