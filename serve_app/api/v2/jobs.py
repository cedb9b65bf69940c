"""Routes of jobs of Comfy API v2: create, read, list, cancel.

An idempotency key is claimed by the transaction that inserts its job. So a reused key makes no second job, and the key
of a refused job is free again.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import json
import re
from typing import Any

from starlette.requests import Request
from starlette.responses import Response

from serve_app.api.request import Current, quota_headers, read_object
from serve_app.api.routing import Routes
from serve_app.api.strict_json import JsonResponse
from serve_app.api.v2.failures import CodedError, node_errors
from serve_app.api.v2.labels import filters, labels
from serve_app.api.v2.outputs import outputs_of
from serve_app.api.v2.references import missing_assets, resolved
from serve_app.api.v2.shapes import job_shape, listed_shape
from serve_app.api.v2.submission import extra_data, idempotency_key, workflow
from serve_app.errors import AssetMissingError, InvalidGraphError, JobMissingError, short_repr
from serve_app.graph.ancestry import ancestry
from serve_app.scheduler.protocol.client import JobView
from serve_app.service.service import Service
from serve_app.store.database.changes import Claims
from serve_app.store.database.queries import ListJobs
from serve_app.store.tenants.tenants import prompt_id_of

router = Routes()

LISTED, MOST_LISTED = 50, 100
"""How many jobs a page of the list has by default, and at most."""


@router.post("/jobs")
async def post_job(request: Request, service: Current) -> Response:
    """Queue a workflow; the job is durable when this is answered."""
    body = await read_object(request, service.limits.body)
    key = idempotency_key(request)
    given = extra_data(body)
    named = labels(body.get("metadata"))
    prompt, assets = await resolved(service, workflow(body))
    submission = {"prompt": prompt, "extra_data": given}
    try:
        submitted = await service.submit(submission, labels=named, claims=Claims(key, assets))
    except AssetMissingError as error:  # deleted since it was resolved
        raise missing_assets([error.asset_id]) from error
    except InvalidGraphError as error:
        details = {"node_errors": node_errors(error, ancestry(prompt, await service.specs()))}
        raise CodedError("invalid_workflow", str(error), details) from error
    shown_now = await job_answer(request, service, await job(service, submitted.job_id))
    return JsonResponse(shown_now, 201, quota_headers(request, submitted))


@router.read("/jobs/{job_id}")
async def get_job(request: Request, service: Current) -> Response:
    """Show a job."""
    return JsonResponse(await job_answer(request, service, await job(service, request.path_params["job_id"])))


@router.read("/jobs/{job_id}/workflow")
async def get_workflow(request: Request, service: Current) -> Response:
    """Return the graph that a job runs."""
    return JsonResponse({"workflow": (await job(service, request.path_params["job_id"])).prompt, "format": "api"})


@router.post("/jobs/{job_id}/cancel")
async def post_cancel(request: Request, service: Current) -> Response:
    """Cancel a job; one that has ended stays as it is."""
    job_id = request.path_params["job_id"]
    await service.cancel(job_id)
    return JsonResponse(await job_answer(request, service, await job(service, job_id)))


@router.read("/jobs")
async def get_jobs(request: Request, service: Current) -> Response:
    """List jobs, the newest first."""
    wanted, others = filters(request.scope["query_string"])
    if unknown := sorted(others.keys() - {"limit", "cursor"}):
        allowed = "limit, cursor, metadata[KEY]"
        raise CodedError(
            "invalid_request", f"{short_repr(unknown[0])} is not a parameter of this list; allowed: {allowed}"
        )
    limit, before = _limit(others.get("limit")), _before(others.get("cursor"), wanted)
    # One more than is returned shows whether there is a next page.
    found = await service.query(ListJobs(limit + 1, before, wanted))
    page: dict[str, Any] = {"jobs": [listed_shape(listed) for listed in found[:limit]]}
    if len(found) > limit:
        page["next_cursor"] = _cursor(found[limit - 1].order, wanted)
    return JsonResponse(page)


async def job(service: Service, job_id: str) -> JobView:
    """Return a job. Errors: JobMissingError."""
    view = await service.job(job_id)
    if view is None:
        raise JobMissingError(f"no job has the id {short_repr(job_id)}")
    return view


async def job_answer(request: Request, service: Service, view: JobView) -> dict[str, Any]:
    """Return a job as the answer to a request has it."""
    progress = await service.progress(view.job_id) if view.ended_s is None else None
    outputs = await outputs_of(request, service.for_tenant(view.tenant), prompt_id_of(view.job_id), view.outputs)
    return job_shape(view, progress, outputs, request.scope.get("root_path", ""), service.history_s)


def _limit(text: str | None) -> int:
    if text is None:
        return LISTED
    if not re.fullmatch(r"[0-9]{1,9}", text) or not 1 <= int(text) <= MOST_LISTED:
        raise CodedError("invalid_request", f"limit must be 1 to {MOST_LISTED}, not {short_repr(text)}")
    return int(text)


def _cursor(order: int, wanted: dict[str, str]) -> str:
    """Return the cursor of a list's next page: after a job, with the same filters."""
    return base64.urlsafe_b64encode(f"{order}.{_tag(wanted)}".encode()).decode().rstrip("=")


def _before(cursor: str | None, wanted: dict[str, str]) -> int | None:
    """Return the order in a cursor. Errors: CodedError invalid_cursor."""
    if not cursor:
        return None
    try:
        order, _, tag = (
            base64.b64decode(cursor + "=" * (-len(cursor) % 4), b"-_", validate=True).decode().partition(".")
        )
    except (ValueError, binascii.Error):
        order, tag = "", ""
    if not re.fullmatch(r"[0-9]{1,18}", order):
        raise CodedError("invalid_cursor", f"{short_repr(cursor)} is no cursor that this list has given out")
    if tag != _tag(wanted):
        raise CodedError("invalid_cursor", "the cursor belongs to a list with other filters")
    return int(order)


def _tag(wanted: dict[str, str]) -> str:
    return hashlib.sha256(json.dumps(sorted(wanted.items())).encode()).hexdigest()[:16]
