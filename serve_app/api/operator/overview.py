"""The operator's page at `/operator`, and the figures that only it shows; its other data come from `/status`.

The page is HTML and scripts without a build step, with two libraries for tables and charts that come with the package
(`page/libraries`), and asks no other host for anything. Source of its policy: CSP level 3.
"""

from __future__ import annotations

import csv
import io
import time
from collections.abc import Mapping
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path

from starlette.requests import Request
from starlette.responses import FileResponse, Response

from serve_app.api.auth.principal import Admin
from serve_app.api.request import Current, query_number
from serve_app.api.routing import Routes
from serve_app.api.strict_json import JsonResponse
from serve_app.errors import JobMissingError, short_repr
from serve_app.service.queued_jobs import queued_jobs
from serve_app.service.service import Service
from serve_app.store.database.activity import DAY_S, ReadActivity, ReadTenantDays, TenantDay

router = Routes("/operator")

PAGE = Path(__file__).with_name("page")
LIBRARIES = PAGE / "libraries"
FILES: Mapping[str, Path] = {
    **{name: PAGE / name for name in ("operator.js", "tables.js", "charts.js", "operator.css")},
    **{name: LIBRARIES / name for name in ("tabulator.js", "tabulator.css", "uplot.js", "uplot.css")},
}
TYPES: Mapping[str, str] = {".js": "text/javascript", ".css": "text/css"}
HEADERS = {
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; "
    "img-src 'self' data:; form-action 'none'; frame-ancestors 'none'; base-uri 'none'",
    "Cache-Control": "no-store",
    "Referrer-Policy": "same-origin",
    "X-Content-Type-Options": "nosniff",
}
SLOT_S = 1800
"""The width of a bar of the page's charts, which show a day."""
DAYS = 31


@router.read("")
async def get_page(_: Admin) -> Response:
    """Return the page."""
    return FileResponse(PAGE / "index.html", headers=HEADERS, media_type="text/html")


@router.read("/files/{name}")
async def get_file(request: Request, _: Admin) -> Response:
    """Return a script or style sheet of the page."""
    name = request.path_params["name"]
    if name not in FILES:
        raise JobMissingError(f"the page has no file {short_repr(name)}; it has {', '.join(FILES)}")
    return FileResponse(FILES[name], headers=HEADERS, media_type=TYPES[FILES[name].suffix])


@router.read("/jobs")
async def get_jobs(service: Current, _: Admin) -> Response:
    """Return unfinished jobs of all tenants: those that run, then those that wait, in the order of their start."""
    return JsonResponse(asdict(await queued_jobs(service)))


@router.read("/jobs/{job_id}/preview")
async def get_preview(request: Request, service: Current, _: Admin) -> Response:
    """Return the newest preview of a running job, a JPEG. Errors: JobMissingError without one."""
    found = await service.preview(request.path_params["job_id"])
    if found is None:
        raise JobMissingError(f"job {short_repr(request.path_params['job_id'])} shows no preview")
    return Response(found[1], media_type="image/jpeg", headers={"Cache-Control": "no-store"})


@router.read("/activity")
async def get_activity(service: Current, _: Admin) -> Response:
    """Return the ended jobs of the last day in slots of `slot_s`: counts by state, mean waits and durations."""
    since_s = (time.time() // SLOT_S + 1) * SLOT_S - DAY_S
    slots = await service.for_tenant("").query(ReadActivity(since_s, SLOT_S))
    return JsonResponse({"since_s": since_s, "slot_s": SLOT_S, "slots": list(map(asdict, slots))})


@router.read("/use")
async def get_use(request: Request, service: Current, _: Admin) -> Response:
    """Return each tenant's jobs, GPU-seconds and saved bytes by UTC day, of the last `days`, the oldest first."""
    found = await _use(request, service)
    return JsonResponse({"days": [{**asdict(each), "day": _date(each)} for each in found]})


@router.read("/use.csv")
async def get_use_as_csv(request: Request, service: Current, _: Admin) -> Response:
    """Return each tenant's jobs, GPU-seconds and saved bytes by UTC day, of the last `days`, as CSV."""
    text = io.StringIO()
    rows = csv.writer(text, lineterminator="\n")
    rows.writerow(("day", "tenant", "jobs", "gpu_seconds", "saved_bytes"))
    for each in await _use(request, service):
        rows.writerow((_date(each), each.tenant, each.jobs, f"{each.gpu_s:.3f}", each.saved_bytes))
    return Response(text.getvalue(), media_type="text/csv", headers={"Cache-Control": "no-store"})


async def _use(request: Request, service: Service) -> tuple[TenantDay, ...]:
    days = min(366, max(1, int(query_number(request, "days", int, DAYS))))
    found: tuple[TenantDay, ...] = await service.for_tenant("").query(
        ReadTenantDays(int(time.time() // DAY_S) - days + 1)
    )
    return found


def _date(use: TenantDay) -> str:
    return datetime.fromtimestamp(use.day * DAY_S, UTC).date().isoformat()
