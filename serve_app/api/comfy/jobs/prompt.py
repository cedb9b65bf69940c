"""POST /prompt and GET /prompt in ComfyUI's format, as lenient about missing and malformed members as ComfyUI."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from starlette.background import BackgroundTask
from starlette.requests import Request
from starlette.responses import Response

from serve_app.api.comfy.failures import failure
from serve_app.api.comfy.jobs.node_errors import NodeErrors, explained, folders
from serve_app.api.request import Current, quota_headers, read_object
from serve_app.api.routing import Routes
from serve_app.api.strict_json import JsonResponse
from serve_app.errors import InvalidGraphError
from serve_app.service.service import Service
from serve_app.service.submissions import KEYS, is_job_id

router = Routes()

JOB_ID = "550e8400-e29b-41d4-a716-446655440000"
"""An example of a job's id, for error messages."""
USAGE_SOURCE = "comfy_usage_source"


@router.read("/prompt")
async def get_prompt(service: Current) -> Response:
    """Return how many jobs have not ended."""
    count = await service.count()
    return JsonResponse({"exec_info": {"queue_remaining": count.running + count.pending}})


@router.post("/prompt")
async def post_prompt(request: Request, service: Current) -> Response:
    """Queue a workflow, without the outputs that cannot run as long as one can."""
    body = submission(await service.handled(await read_object(request, service.limits.body)))
    extra_data = body.get("extra_data", {})
    if (source := request.headers.get("comfy-usage-source")) and isinstance(extra_data, Mapping):
        body["extra_data"] = {USAGE_SOURCE: source, **extra_data}
    given = body.get("prompt_id", JOB_ID)
    if not is_job_id(given) or given != given.lower():
        details = f"prompt_id must be a UUID such as {JOB_ID}, in lower case; without one the server makes it"
        return failure(400, "invalid_prompt_id", "prompt_id must be a valid UUID", details)
    if "prompt" not in body:
        return failure(400, "no_prompt", "No prompt provided", "No prompt provided")
    try:
        submitted = await service.submit(body, partial=True)
    except InvalidGraphError as error:
        return JsonResponse(await explained(error, body, await service.specs(), service.choices), 400)
    answer = {
        "prompt_id": submitted.job_id,
        "number": int(submitted.number) if submitted.number.is_integer() else submitted.number,
        "node_errors": await _node_errors(service, body, submitted.problems),
    }
    # The client gets the id before its websockets get the events of the job.
    reply = BackgroundTask(service.answered, submitted)
    return JsonResponse(answer, headers=quota_headers(request, submitted), background=reply)


async def _node_errors(service: Service, body: Mapping[str, Any], problems: Any) -> dict[str, Any]:
    if not problems:
        return {}
    specs = await service.specs()
    choices = await service.choices(folders(problems, specs))
    return NodeErrors(body["prompt"], problems, specs, choices, body.get("partial_execution_targets")).by_node()


def submission(body: Mapping[str, Any]) -> dict[str, Any]:
    """Return a native body as the service's submission, convertible values converted; unknown keys and nulls count as
    absent.
    """
    taken = {key: body[key] for key in KEYS if body.get(key) is not None}
    if isinstance(number := taken.get("number"), str):
        taken["number"] = _number(number)
    if "front" in taken:
        taken["front"] = bool(taken["front"])
    extra = taken.get("extra_data")
    if isinstance(extra, Mapping):
        taken.setdefault("client_id", extra.get("client_id"))
        taken["extra_data"] = {key: value for key, value in extra.items() if key != "client_id"}
    if taken.get("client_id") is None:
        taken.pop("client_id", None)
    elif not isinstance(taken["client_id"], str):
        taken["client_id"] = str(taken["client_id"])
    return taken


def _number(text: str) -> Any:
    try:
        return float(text)
    except ValueError:
        return text
