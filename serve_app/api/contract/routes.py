"""The OpenAPI contract's five routes at the root, in its schemas, status codes and error body.

Renders what `service` returns and decides nothing else. It knows nothing of ComfyUI's native dialect.
Source: `openapi.json` beside this file, which `/openapi.json` serves.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import PurePosixPath
from typing import Any
from urllib.parse import quote

from starlette.background import BackgroundTask
from starlette.requests import Request
from starlette.responses import Response

from serve_app.api.files.content import IMAGE_TYPES
from serve_app.api.files.stored_file import file_ref, stored_file
from serve_app.api.request import Current, queue_headers, quota_headers, read_object
from serve_app.api.routing import Routes
from serve_app.api.strict_json import JsonResponse
from serve_app.errors import FileMissingError
from serve_app.scheduler.protocol.client import JobView
from serve_app.scheduler.protocol.cluster_view import ClusterView

router = Routes()


@router.post("/prompt")
async def post_prompt(request: Request, service: Current) -> Response:
    """Queue a workflow. Any problem refuses it: the contract has no partial acceptance."""
    submitted = await service.submit(await read_object(request, service.limits.body))
    answer: dict[str, Any] = {"prompt_id": submitted.job_id}
    # The contract's number is an integer; a client's own queue number may be a fraction.
    if submitted.number.is_integer():
        answer["number"] = int(submitted.number)
    # The client gets the id before its websockets get the events of the job.
    reply = BackgroundTask(service.answered, submitted)
    return JsonResponse(answer, headers=quota_headers(request, submitted), background=reply)


@router.read("/queue")
async def get_queue(service: Current) -> Response:
    """List unfinished jobs. The contract has room for one running job; `running` beside it names all.

    Of those beyond the limits the prompt is empty, then the job.
    """
    queue = await service.queue()
    running = [job.job_id for job in queue.running]
    lists = {
        "queue_pending": [[job.job_id, {"prompt": job.prompt, "outputs": {}}] for job in queue.pending],
        "queue_running": running[0] if running else None,
        "running": running,
    }
    return JsonResponse(lists, headers=queue_headers(queue))


@router.read("/history/{prompt_id}")
async def get_history(request: Request, service: Current) -> Response:
    """Show a job from its acceptance on; an unknown id, UUID or not, gives {}."""
    job = await service.job(request.path_params["prompt_id"])
    return JsonResponse({} if job is None else {job.job_id: execution_result(job)})


@router.read("/view")
async def get_view(request: Request, service: Current) -> Response:
    """Stream an image. The contract promises four image types, so a file of any other is as absent as a missing one."""
    query = request.query_params
    ref = file_ref(query.get("filename", ""), query.get("subfolder", ""), query.get("type", "output"))
    content_type = IMAGE_TYPES.get(PurePosixPath(ref.filename).suffix.lower())
    if content_type is None:
        raise FileMissingError(f"'{ref.filename[:80]}' is no image; allowed are {', '.join(IMAGE_TYPES)}")
    disposition = f"inline; filename*=UTF-8''{quote(ref.filename, safe='')}"
    return await stored_file(service, ref, content_type, disposition, request.method, request.headers)


@router.read("/system_stats")
async def get_system_stats(service: Current) -> Response:
    """Add up the whole cluster's GPUs and memory, in MB."""
    return JsonResponse(system_stats(await service.cluster()))


def execution_result(job: JobView) -> dict[str, Any]:
    """Return a job as the contract's ExecutionResult; `timestamp` is the time of its latest change of state."""
    return {
        "prompt": [job.number, job.job_id, job.prompt, job.extra_data, list(job.targets)],
        "outputs": {node_id: _shown(ui) for node_id, ui in job.outputs.items()},
        "status": {
            "status_code": 100 if job.state == "success" else min(job.percent, 99),
            "completed": job.state == "success",
            "status_str": job.state,
            "messages": _messages(job),
        },
        "timestamp": job.ended_s or job.started_s or job.created_s,
    }


def _shown(ui: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return a node's outputs; files that it marks `animated`, as ComfyUI does, are the contract's `gifs` as well."""
    animated = ui.get("animated")
    if not isinstance(animated, list | tuple) or not any(animated):
        return ui
    return {"gifs": ui.get("images", []), **ui}


def _messages(job: JobView) -> list[str]:
    """Return why a job did not complete, as sentences."""
    if job.state == "cancelled":
        return ["the job was cancelled"]
    if job.state != "error":
        return []
    failure = job.failure
    where = f"{failure.class_type or 'node'} {failure.node}" if failure.node else "the job"
    return [f"{where}: {failure.exception_type or 'error'}: {failure.message or 'no reason is recorded'}"]


def system_stats(cluster: ClusterView) -> dict[str, Any]:
    """Return the contract's SystemStats; a GPU that several processes report counts once."""
    gpus = {gpu.uuid: gpu for host in cluster.hosts for gpu in host.gpus}
    return {
        "gpus": [
            {"name": g.name, "vram_total": g.vram_total_mb, "vram_free": g.vram_free_mb, "vram_used": g.vram_used_mb}
            for g in gpus.values()
        ],
        "ram": {
            "total": sum(host.ram_total_mb for host in cluster.hosts),
            "used": sum(host.ram_used_mb for host in cluster.hosts),
            "available": sum(host.ram_available_mb for host in cluster.hosts),
        },
        "uptime": cluster.uptime_s,
    }
