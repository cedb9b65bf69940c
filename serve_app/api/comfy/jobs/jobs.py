"""The jobs API, from which the web page fills its queue and history panels.

The page discards a whole list that does not match its schema, so the four required members are always present and
numbers are numbers. Source: comfyui 0.38.1 `/api/jobs`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from itertools import chain
from typing import Any, Literal

from starlette.requests import Request
from starlette.responses import Response

from serve_app.api.comfy.body import read_members, too_many_ids
from serve_app.api.comfy.jobs.frames import error_data
from serve_app.api.comfy.jobs.queue import item, milliseconds
from serve_app.api.request import Current
from serve_app.api.routing import Routes
from serve_app.api.strict_json import JsonResponse, JsonTextResponse, encode_json
from serve_app.scheduler.protocol.client import JobView
from serve_app.store.database.changes import JobQuery

router = Routes()

STATES = {
    "pending": "queued",
    "in_progress": "running",
    "completed": "success",
    "failed": "error",
    "cancelled": "cancelled",
}
"""The page's word for each state."""
_STATUS = {state: status for status, state in STATES.items()}
MEDIA = ("images", "gifs", "video", "videos", "audio", "3d")
SOLIDS = (".obj", ".fbx", ".gltf", ".glb", ".usdz")
TEXTS = (".txt", ".md", ".json")
SHOWN_CHARACTERS = 1024
UNSHOWABLE = 3
LIMIT = 1000
"""The default number of jobs in one answer."""


@router.read("/jobs")
async def get_jobs(request: Request, service: Current) -> Response:
    """List jobs of some states, by creation or by how long they ran."""
    asked = request.query_params
    statuses = [word.strip().lower() for word in asked.get("status", "").split(",") if word.strip()] or list(STATES)
    if unknown := [word for word in statuses if word not in STATES]:
        return _refused(f"Invalid status value(s): {', '.join(unknown)[:80]}. Valid values: {', '.join(STATES)}")
    sort_by, order = asked.get("sort_by", "created_at"), asked.get("sort_order", "desc")
    if sort_by not in ("created_at", "execution_duration"):
        return _refused("sort_by must be 'created_at' or 'execution_duration'")
    if order not in ("asc", "desc"):
        return _refused("sort_order must be 'asc' or 'desc'")
    try:
        limit = int(asked["limit"]) if "limit" in asked else LIMIT
        offset = max(0, int(asked.get("offset", "0")))
    except ValueError:
        return _refused("limit and offset must be integers")
    if limit <= 0:
        return _refused("limit must be a positive integer")
    limit, offset = min(limit, LIMIT), min(offset, 2**31)
    sort: Literal["created", "duration"] = "created" if sort_by == "created_at" else "duration"
    states = tuple(STATES[word] for word in dict.fromkeys(statuses))
    query = JobQuery(states, sort, order == "desc", offset, limit, asked.get("workflow_id") or None, brief=True)
    found, total = await service.list_jobs(query, _text)
    window = {"offset": offset, "limit": limit, "total": total, "has_more": offset + len(found) < total}
    return JsonTextResponse(b'{"jobs":[%s],"pagination":%s}' % (b",".join(found.values()), encode_json(window)))


@router.read("/jobs/{job_id}")
async def get_job(request: Request, service: Current) -> Response:
    """Show one job with its outputs and workflow."""
    job = await service.job(request.path_params["job_id"])
    if job is None:
        return JsonResponse({"error": "Job not found"}, 404)
    _, _, prompt, extra_data, _ = item(job)
    found = summary(job) | {"workflow": {"prompt": prompt, "extra_data": extra_data}}
    if job.ended_s is not None:
        found |= {
            "outputs": job.outputs,
            "execution_status": {"status_str": job.state, "completed": job.state == "success"},
        }
    return JsonResponse(found)


@router.on("/jobs/{job_id}", ["DELETE"])
async def delete_job(request: Request, service: Current) -> Response:
    """Delete an ended job and the files that it saved, except those that are another job's outputs too."""
    await service.delete(request.path_params["job_id"])
    return JsonResponse({"deleted": True})


@router.post("/jobs/cancel")
async def post_cancel_many(request: Request, service: Current) -> Response:
    """Cancel jobs, whether they wait or run."""
    members = await read_members(request, service.limits.command)
    job_ids, most = members.get("job_ids"), service.limits.ids
    if not isinstance(job_ids, list):
        return _refused("job_ids must be a list of ids")
    if len(job_ids) > most:
        return _refused(str(too_many_ids("job_ids", len(job_ids), most)))
    if invalid := [job_id for job_id in job_ids if not service.is_job_id(job_id)]:
        return JsonResponse({"error": "job_ids must be UUIDs", "invalid_ids": invalid}, 400)
    return JsonResponse({"cancelled": await service.cancel_all(job_ids)})


@router.post("/jobs/{job_id}/cancel")
async def post_cancel(request: Request, service: Current) -> Response:
    """Cancel one job; `cancelled` is false if it has ended or is unknown."""
    return JsonResponse({"cancelled": await service.cancel(request.path_params["job_id"])})


def _text(job: JobView) -> bytes:
    return encode_json(summary(job))


def summary(job: JobView) -> dict[str, Any]:
    """Return a job as a member of the list, without empty members."""
    shown = list(_shown(job.outputs))
    showable = [output for output in shown if _rank(output) < UNSHOWABLE]
    failure = None
    if job.state == "error":
        failure = {"prompt_id": job.job_id, **error_data(job.failure, list(job.outputs))}
    found = {
        "id": job.job_id,
        "status": _STATUS[job.state],
        "priority": item(job)[0],
        "create_time": milliseconds(job.created_s),
        "execution_start_time": None if job.started_s is None else milliseconds(job.started_s),
        "execution_end_time": None if job.ended_s is None else milliseconds(job.ended_s),
        "execution_error": failure,
        "outputs_count": len(shown),
        "previewable_outputs_count": len(showable),
        "preview_output": next(chain(sorted(showable, key=_rank), _texts(job.outputs)), None),
        "workflow_id": _workflow_id(job.extra_data),
    }
    return {name: value for name, value in found.items() if value is not None}


def _shown(outputs: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """Yield every output of the nodes, each with its node and kind; of strings only names of 3D files."""
    for node_id, kind, value in _values(outputs):
        if isinstance(value, Mapping):
            yield {"mediaType": kind, **value, "nodeId": node_id}
        elif isinstance(value, str) and value.lower().endswith(SOLIDS):
            yield {"filename": value, "type": "output", "subfolder": "", "mediaType": "3d", "nodeId": node_id}


def _texts(outputs: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """Yield the texts that nodes output, cut short: they represent a job without other outputs."""
    for node_id, kind, value in _values(outputs):
        if kind == "text" and isinstance(value, str) and not value.lower().endswith(SOLIDS):
            cut = {"truncated": True} if len(value) > SHOWN_CHARACTERS else {}
            yield {"content": value[:SHOWN_CHARACTERS], **cut, "nodeId": node_id, "mediaType": kind}


def _values(outputs: Mapping[str, Any]) -> Iterator[tuple[str, str, Any]]:
    for node_id, ui in outputs.items():
        for kind, values in ui.items() if isinstance(ui, Mapping) else ():
            for value in values if isinstance(values, list) and kind != "animated" else ():
                yield node_id, kind, value


def _rank(shown: Mapping[str, Any]) -> int:
    """Return how well an output represents its job, 0 best: saved media, other media, text files."""
    name, form = str(shown.get("filename", "")).lower(), str(shown.get("format", ""))
    if shown["mediaType"] == "text" or name.endswith(TEXTS):
        return 2
    if shown["mediaType"] in MEDIA or form.startswith(("video/", "audio/")) or name.endswith(SOLIDS):
        return 0 if shown.get("type") == "output" else 1
    return UNSHOWABLE


def _workflow_id(extra_data: Mapping[str, Any]) -> str | None:
    info = extra_data.get("extra_pnginfo")
    workflow = info.get("workflow") if isinstance(info, Mapping) else None
    found = workflow.get("id") if isinstance(workflow, Mapping) else None
    return found if isinstance(found, str) else None


def _refused(reason: str) -> Response:
    return JsonResponse({"error": reason}, 400)
