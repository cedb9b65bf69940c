"""Routes of the history: ended jobs in ComfyUI's format. A job appears here once it has left the queue, never
before.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from starlette.requests import Request
from starlette.responses import Response

from serve_app.api.comfy.body import empty, ids, read_members
from serve_app.api.comfy.jobs.frames import error_data
from serve_app.api.comfy.jobs.queue import item, milliseconds
from serve_app.api.request import Current
from serve_app.api.routing import Routes
from serve_app.api.strict_json import JsonResponse, JsonTextResponse, encode_json
from serve_app.errors import InvalidSubmissionError
from serve_app.events import ENDINGS
from serve_app.scheduler.protocol.client import JobView
from serve_app.store.database.changes import JobQuery

router = Routes()

KEPT = 10_000
"""How many entries a list shows at most: the newest, as many as ComfyUI keeps."""


@router.read("/history")
async def get_history(request: Request, service: Current) -> Response:
    """List ended jobs, oldest first. Without an offset `max_items` counts from the newest."""
    most, offset = _whole(request, "max_items"), _whole(request, "offset")
    wanted = KEPT if most is None else min(most, KEPT)
    if offset is None or offset < 0:
        newest, _ = await service.list_jobs(_query(0, max(0, wanted), newest_first=True), _text)
        return _listed(reversed(newest.items()))
    _, total = await service.list_jobs(_query(0, 0), _text)
    hidden = max(0, total - KEPT)
    found, _ = await service.list_jobs(_query(hidden + offset, max(0, wanted)), _text)
    return _listed(found.items())


def _listed(found: Iterable[tuple[str, bytes]]) -> Response:
    return JsonTextResponse(b"{" + b",".join(encode_json(job_id) + b":" + text for job_id, text in found) + b"}")


def _text(job: JobView) -> bytes:
    return encode_json(entry(job))


@router.read("/history/{prompt_id}")
async def get_job(request: Request, service: Current) -> Response:
    """Show one ended job; any other id gives {}."""
    job = await service.job(request.path_params["prompt_id"])
    return JsonResponse({} if job is None or not _entered(job) else {job.job_id: entry(job)})


@router.post("/history")
async def post_history(request: Request, service: Current) -> Response:
    """Forget ended jobs: those of `delete`, or all for `clear`; their files too for `delete_files`.

    Unknown ids are no error.
    """
    members = await read_members(request, service.limits.command)
    forget = service.remove if members.get("delete_files") else service.forget
    if members.get("clear"):
        await forget(None)
    if wanted := ids(members, "delete", service.limits.ids):
        await forget(wanted)
    return empty()


def entry(job: JobView) -> dict[str, Any]:
    """Return an ended job as an entry of the history."""
    return {
        "prompt": item(job),
        "outputs": {node_id: ui for node_id, ui in job.outputs.items() if ui},
        "status": {
            "status_str": "success" if job.state == "success" else "error",
            "completed": job.state == "success",
            "messages": _messages(job),
        },
        "meta": {
            node_id: {"node_id": node_id, "display_node": node_id, "parent_node": None, "real_node_id": node_id}
            for node_id, ui in job.outputs.items()
            if ui
        },
    }


def _messages(job: JobView) -> list[list[Any]]:
    started = {"prompt_id": job.job_id, "timestamp": milliseconds(job.started_s or job.created_s)}
    ended = {"prompt_id": job.job_id, "timestamp": milliseconds(job.ended_s or 0.0)}
    messages: list[list[Any]] = [
        ["execution_start", started],
        ["execution_cached", {"nodes": list(job.cached), **started}],
    ]
    match job.state:
        case "success":
            messages.append(["execution_success", ended])
        case "cancelled":
            at = {"node_id": job.failure.node or None, "node_type": job.failure.class_type or None}
            where = {**at, "executed": list(job.failure.executed)}
            messages.append(["execution_interrupted", {**where, **ended}])
        case _:
            messages.append(["execution_error", {**error_data(job.failure, list(job.outputs)), **ended}])
    return messages


def _entered(job: JobView) -> bool:
    """Whether the history has the job: it has ended, and was not cancelled while it waited."""
    return job.state in ENDINGS and (job.state != "cancelled" or job.started_s is not None)


def _query(offset: int, limit: int, *, newest_first: bool = False) -> JobQuery:
    return JobQuery(tuple(sorted(ENDINGS)), "ended", newest_first, offset, limit)


def _whole(request: Request, name: str) -> int | None:
    text = request.query_params.get(name)
    try:
        return None if text is None else max(-1, min(int(text), 2**31))
    except ValueError as error:
        raise InvalidSubmissionError(f"{name}={text[:80] if text else ''} must be a whole number") from error
