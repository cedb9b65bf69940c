"""Turns a replica's reports about running nodes into events for clients, and updates the job's record."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypeAlias

from serve_app.events import Kind
from serve_app.scheduler.core.records import JobRecord, placed
from serve_app.scheduler.protocol.messages import (
    NodeBlocked,
    NodePreviewed,
    NodeProgressed,
    NodeSentMessage,
    NodeStarted,
)

NodeReport: TypeAlias = NodeStarted | NodeProgressed | NodeBlocked | NodeSentMessage | NodePreviewed


def steps_repeated(job: JobRecord, report: NodeReport) -> int:
    """Return how many steps a node computes again whose replica is gone, at the first report of another one."""
    if not isinstance(report, NodeProgressed):
        return 0
    return max(0, int(job.reached.pop(report.node_id, report.value) - report.value))


def event_of(job: JobRecord, report: NodeReport) -> tuple[Kind, Mapping[str, Any]]:
    """Update the job's record by a report; return the kind and data of the event."""
    match report:
        case NodeStarted(_, node_id, origin):
            job.executing[node_id] = node_id if origin is None else origin.real
            return "executing", placed(node_id, origin)
        case NodeProgressed(_, node_id, value, maximum, origin):
            job.steps[node_id] = value
            job.progress[node_id] = min(1.0, value / maximum) if maximum > 0 else 0.0
            return "progress", {**placed(node_id, origin), "value": value, "max": maximum}
        case NodeBlocked(_, node_id, class_type, message):
            return "blocked", {"node": node_id, "class_type": class_type, "message": message}
        case NodeSentMessage(_, node_id, type_, data):
            return "message", {"node": node_id, "type": type_, "data": data}
        case NodePreviewed(_, node_id, image, origin):
            return "preview", {**placed(node_id, origin), "image": image}
