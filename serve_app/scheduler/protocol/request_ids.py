"""What a job keeps of the request that submitted it, in its `extra_data`: the request's id, and its place in a trace.

So both outlive restarts with the job, are in the answers about it, and reach every replica that works for it.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from serve_app import log, tracing
from serve_app.graph.plan import Task
from serve_app.tracing import TRACEPARENT

REQUEST_ID = "request_id"
"""The id's member of extra_data."""
MEMBERS = frozenset({REQUEST_ID, TRACEPARENT})
"""Both members. A client's own values are replaced: it sends the headers X-Request-ID and traceparent instead."""


def with_request_id(extra_data: Mapping[str, Any]) -> dict[str, Any]:
    """Return a submission's extra_data with what is known of the request that is being handled."""
    known = {REQUEST_ID: log.ids().get("request"), TRACEPARENT: tracing.traceparent()}
    return without_request_id(extra_data) | {key: value for key, value in known.items() if value is not None}


def without_request_id(extra_data: Mapping[str, Any]) -> dict[str, Any]:
    """Return extra_data as another request for the same job would have it."""
    return {key: value for key, value in extra_data.items() if key not in MEMBERS}


def request_id_of(extra_data: Mapping[str, Any]) -> dict[str, str]:
    """Return the id as log lines have it, {} for a job that none is known of."""
    name = extra_data.get(REQUEST_ID)
    return {"request": name} if isinstance(name, str) else {}


def ids_of(task: Task) -> dict[str, str]:
    """Return the ids of log lines about a task: its job, its index and attempt, the request that submitted it."""
    return {
        "job": task.id.job_id,
        "task": f"{task.id.index}.{task.id.attempt}",
        **request_id_of(task.extra_data),
    }
