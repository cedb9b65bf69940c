"""Routes of the queue in ComfyUI's format: list, clear, interrupt running jobs."""

from __future__ import annotations

from typing import Any

from starlette.requests import Request
from starlette.responses import Response

from serve_app.api.comfy.body import empty, ids, read_members
from serve_app.api.request import Current, queue_headers
from serve_app.api.routing import Routes
from serve_app.api.strict_json import JsonResponse
from serve_app.scheduler.protocol.client import JobView, QueueItem

router = Routes()


@router.read("/queue")
async def get_queue(service: Current) -> Response:
    """List unfinished jobs, each as its five members; of those beyond the limits the prompt is empty, then the item."""
    queue = await service.queue()
    lists = {"queue_running": list(map(item, queue.running)), "queue_pending": list(map(item, queue.pending))}
    return JsonResponse(lists, headers=queue_headers(queue))


@router.post("/queue")
async def post_queue(request: Request, service: Current) -> Response:
    """Cancel queued jobs: those of `delete`, or all for `clear`. Unknown ids are no error."""
    members = await read_members(request, service.limits.command)
    if members.get("clear"):
        await service.withdraw()
    if wanted := ids(members, "delete", service.limits.ids):
        await service.withdraw(wanted)
    return empty()


@router.post("/interrupt")
async def post_interrupt(request: Request, service: Current) -> Response:
    """Cancel the job of `prompt_id` if it runs, or all running jobs."""
    job_id = (await read_members(request, service.limits.command)).get("prompt_id")
    await service.interrupt(job_id if isinstance(job_id, str) and job_id else None)
    return empty()


def item(job: JobView | QueueItem) -> list[Any]:
    """Return a job as in ComfyUI's queue and history: number, id, prompt, extra_data, outputs."""
    number = int(job.number) if job.number.is_integer() else job.number
    extra: dict[str, Any] = {**job.extra_data, "create_time": milliseconds(job.created_s)}
    if job.client_id is not None:
        extra["client_id"] = job.client_id
    return [number, job.job_id, job.prompt, extra, list(job.targets)]


def milliseconds(seconds: float) -> int:
    """Return a time as the native dialect writes it."""
    return int(seconds * 1000)
