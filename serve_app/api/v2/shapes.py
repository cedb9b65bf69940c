"""JSON of jobs and assets in v2."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

from starlette.requests import Request

from serve_app.events import Failure
from serve_app.scheduler.protocol.client import JobProgress, JobView
from serve_app.store.database.queries import ListedJob
from serve_app.store.page.assets import Asset

PREFIX = "/api/v2"
STATES: Mapping[str, str] = {
    "queued": "queued",
    "running": "running",
    "success": "succeeded",
    "error": "failed",
    "cancelled": "canceled",
}
"""v2's name of a state. A cancelled job has ended at once, so none is ever "canceling"."""

KEPT_S = 365 * 86_400.0
"""The retention that v2 reports for jobs that are kept without a time limit."""


LINKED_S = 3600.0
"""The lifetime that v2 reports for links. Ours do not expire: each leads to the file, or to a new link into its store.
"""


def iso_time(unix_s: float) -> str:
    """Return a time in ISO 8601, with its time zone."""
    return datetime.fromtimestamp(unix_s, UTC).isoformat().replace("+00:00", "Z")


def job_shape(
    view: JobView, progress: JobProgress | None, outputs: Sequence[Any], mount: str, history_s: float | None
) -> dict[str, Any]:
    """Return a job. standing: of an unfinished job. mount: the prefix of this server's paths.

    history_s: how long after its end it is kept, None for no limit.
    """
    kept_until_s = view.created_s + KEPT_S if history_s is None else (view.ended_s or time.time()) + history_s
    this = f"{mount}{PREFIX}/jobs/{view.job_id}"
    return {
        "id": view.job_id,
        "status": STATES[view.state],
        "created_at": iso_time(view.created_s),
        "started_at": _at(view.started_s),
        "completed_at": _at(view.ended_s),
        "expires_at": iso_time(kept_until_s),
        "queue_position": progress.position if progress and view.state == "queued" else None,
        "progress": progress_shape(progress) if progress and view.state == "running" else None,
        "outputs": list(outputs),
        "error": _error(view.failure) if view.state == "error" else None,
        "metrics": {
            "queue_ms": _between(view.created_s, view.started_s),
            "execution_ms": _between(view.started_s, view.ended_s),
        },
        "metadata": dict(view.labels),
        "urls": {"self": this, "events": f"{this}/events", "cancel": f"{this}/cancel"},
    }


def progress_shape(progress: JobProgress) -> dict[str, Any]:
    """Return a running job's progress. seconds_left: an extension, of the current node's steps alone."""
    message = progress.class_type
    if message is not None and progress.steps is not None:
        message = f"{message} {progress.step}/{progress.steps}"
    return {
        "value": progress.percent / 100,
        "nodes_done": progress.done,
        "nodes_total": progress.total,
        "current_node": progress.node,
        "current_node_class": progress.class_type,
        "step": progress.step,
        "steps": progress.steps,
        "message": message,
        "seconds_left": progress.left_s,
    }


def listed_shape(job: ListedJob) -> dict[str, Any]:
    """Return a job as an item of a list."""
    created, updated = iso_time(job.created_s), iso_time(job.ended_s or job.started_s or job.created_s)
    return {
        "id": job.job_id,
        "status": STATES[job.state],
        "created_at": created,
        "create_time": created,
        "update_time": updated,
        "metadata": dict(job.labels),
    }


def asset_shape(asset: Asset, request: Request, *, created_new: bool | None = None) -> dict[str, Any]:
    """Return an asset. created_new: whether its bytes were uploaded with it; None outside uploads."""
    return {
        "id": asset.asset_id,
        "hash": asset.hash,
        "size_bytes": asset.size,
        "content_type": asset.content_type,
        "created_at": iso_time(asset.created_s),
        "expires_at": _at(asset.expires_s),
        "file_path": asset.name,
        "tags": list(asset.tags),
        **_link(asset, request),
        **({} if created_new is None else {"created_new": created_new}),
        **({} if asset.job_id is None else {"job_id": asset.job_id}),
    }


def output_shape(asset: Asset, type_: str, request: Request) -> dict[str, Any]:
    """Return an output of a job."""
    return {
        "node_id": asset.node_id,
        "name": asset.path.rpartition("/")[2],
        "type": type_,
        "content_type": asset.content_type,
        "size_bytes": asset.size,
        "id": asset.asset_id,
        "hash": asset.hash,
        "job_id": asset.job_id,
        **_link(asset, request),
    }


def _link(asset: Asset, request: Request) -> dict[str, str]:
    url = f"{str(request.base_url).rstrip('/')}{PREFIX}/assets/{asset.asset_id}/content"
    return {"url": url, "url_expires_at": iso_time(time.time() + LINKED_S)}


def _at(unix_s: float | None) -> str | None:
    return None if unix_s is None else iso_time(unix_s)


def _between(since_s: float | None, until_s: float | None) -> int | None:
    return None if since_s is None or until_s is None else max(0, round((until_s - since_s) * 1000))


def _error(failure: Failure) -> dict[str, Any]:
    why = f"{failure.exception_type or 'error'}: {failure.message or 'no reason is recorded'}"
    return {
        "code": "node_execution_error" if failure.node else "execution_error",
        "message": why,
        "node_id": failure.node or None,
        "class_type": failure.class_type or None,
        "traceback": "".join(failure.traceback) or None,
    }
