"""What a job keeps of the request that submitted it, as members of its `extra_data`: the request's id.

So the id outlives restarts with the job, is in the answers about it, and reaches every replica that works for it.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from serve_app import log
from serve_app.graph.plan import Task

REQUEST_ID = "request_id"
"""The member of extra_data. A client's own value is replaced: it sends the header X-Request-ID instead."""


def with_request_id(extra_data: Mapping[str, Any]) -> dict[str, Any]:
    """Return a submission's extra_data with the id of the request that is being handled, if any is."""
    given = {key: value for key, value in extra_data.items() if key != REQUEST_ID}
    request = log.ids().get("request")
    return given if request is None else {**given, REQUEST_ID: request}


def without_request_id(extra_data: Mapping[str, Any]) -> dict[str, Any]:
    """Return extra_data as another request for the same job would have it."""
    return {key: value for key, value in extra_data.items() if key != REQUEST_ID}


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
