"""Routes for the command line and for health probes: jobs, node classes, models, the cluster."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

from starlette.requests import Request
from starlette.responses import Response

from serve_app.api.auth.principal import Admin, principal_of
from serve_app.api.limited_stream import NOT_BUFFERED, LimitedStream
from serve_app.api.request import Current, query_number, read_object
from serve_app.api.routing import Routes
from serve_app.api.strict_json import JsonResponse
from serve_app.errors import InvalidSubmissionError, JobMissingError, NotReadyError, short_repr
from serve_app.events import Event
from serve_app.service.log_query import IDS as LOG_IDS
from serve_app.service.log_query import LogQuery
from serve_app.service.service import Service
from serve_app.store.tenants.pauses import DRAINS, KINDS, THE_QUEUE, Pause, PauseKind

router = Routes()

LOG_LINES = 10_000
"""The most log lines of the past in one answer."""


@router.read("/jobs/{job_id}/events")
async def get_events(request: Request, service: Current) -> Response:
    """Return a job's events past the cursor `after`, waiting up to `timeout_s` for the first."""
    after, timeout_s = query_number(request, "after", int, 0), query_number(request, "timeout_s", float, 20)
    with request.app.state.concurrency.listeners.acquire():
        found = await service.events(request.path_params["job_id"], int(after), timeout_s)
    return JsonResponse({"events": list(map(_event, found.events)), "last": found.last})


@router.post("/jobs/{job_id}/cancel")
async def post_cancel(request: Request, service: Current) -> Response:
    """Cancel a job; `cancelled` is false if it has ended or is unknown."""
    return JsonResponse({"cancelled": await service.cancel(request.path_params["job_id"])})


@router.on("/jobs/{job_id}", ["DELETE"])
async def delete_job(request: Request, service: Current) -> Response:
    """Delete an ended job and the files that it saved, except those that are another job's outputs too."""
    await service.delete(request.path_params["job_id"])
    return JsonResponse({"deleted": True})


@router.read("/nodes")
async def get_nodes(service: Current) -> Response:
    """Return every node class that can run, by name."""
    specs = await service.specs()
    return JsonResponse({name: specs[name].to_json() for name in sorted(specs)})


@router.read("/catalog")
async def get_models(service: Current) -> Response:
    """Return the model files by folder."""
    return JsonResponse(await service.models())


@router.post("/warm")
async def post_warm(request: Request, service: Current, _: Admin) -> Response:
    """Let replicas, of one pool for `pool`, load `models` in advance; the answer names those replicas."""
    body = await read_object(request, service.limits.command)
    models, pool = body.get("models"), body.get("pool")
    if body.keys() - {"models", "pool"} or not isinstance(pool, str | None):
        raise InvalidSubmissionError('the body must be {"models": [FOLDER/NAME, …]}, and may name a "pool"')
    if not isinstance(models, list) or not models or not all(isinstance(model, str) for model in models):
        raise InvalidSubmissionError(f"'models' must be a list of FOLDER/NAME, not {short_repr(models)}")
    return JsonResponse({"replicas": await service.warm(models[: service.limits.ids], pool)})


@router.post("/pause")
async def post_pause(request: Request, service: Current, _: Admin) -> Response:
    """Stop starting jobs: all, those that need a pool, or those of a tenant. Running jobs go on."""
    return await _set_pause(request, service, paused=True)


@router.post("/resume")
async def post_resume(request: Request, service: Current, _: Admin) -> Response:
    """Resume after a pause."""
    return await _set_pause(request, service, paused=False)


@router.post("/drain")
async def post_drain(request: Request, service: Current, _: Admin) -> Response:
    """Give a replica, or all of a host's, no more tasks; they finish what they have."""
    return await _set_drain(request, service, drained=True)


@router.post("/undrain")
async def post_undrain(request: Request, service: Current, _: Admin) -> Response:
    """Undo a drain: the replica or the host's take tasks again."""
    return await _set_drain(request, service, drained=False)


@router.read("/status")
async def get_status(service: Current) -> Response:
    """Return hosts, replicas, uptime, and how many jobs run and wait."""
    return JsonResponse({**asdict(await service.cluster()), "jobs": asdict(await service.count())})


@router.read("/metrics")
async def get_metrics(service: Current) -> Response:
    """Return the metrics of all hosts, in Prometheus' text format. Errors: NotReadyError where nothing exports them."""
    if service.metrics is None:
        raise NotReadyError("no metrics are exported here")
    return Response(await service.metrics(), media_type="text/plain; version=0.0.4")


@router.read("/logs")
async def get_logs(request: Request, service: Current, _: Admin) -> Response:
    """Stream log lines of the ingress's host as JSON lines: the `last` ones, and with `follow=true` new ones.

    `level`, `job`, `request` and `replica` choose among them. Empty lines are heartbeats. Errors: NotReadyError where
    no file has them.
    """
    if service.logs is None:
        raise NotReadyError("no log file is known here")
    query = request.query_params
    ids = {name: query[name] for name in LOG_IDS if name in query}
    last = min(LOG_LINES, int(query_number(request, "last", int, 200)))
    wanted = LogQuery(query.get("level", "debug"), ids, last, follow=query.get("follow") == "true")
    limit = request.app.state.concurrency.listeners
    return LimitedStream(service.logs(wanted), limit, media_type="application/x-ndjson", headers=NOT_BUFFERED)


@router.read("/status/{job_id}")
async def get_story(request: Request, service: Current) -> Response:
    """Return a job's state, and until it has ended the scheduler's latest events about it, oldest first."""
    job_id = request.path_params["job_id"]
    if (job := await service.job(job_id)) is None:
        raise JobMissingError(f"no job has the id {job_id!r}")
    story = [{"at_s": at_s, "what": what} for at_s, what in await service.job_trace(job.job_id)]
    return JsonResponse({"job_id": job.job_id, "state": job.state, "percent": job.percent, "story": story})


@router.read("/healthz")
async def get_health() -> Response:
    """Return that this process answers."""
    return JsonResponse({"status": "ok"})


@router.read("/readyz")
async def get_ready(request: Request, service: Current) -> Response:
    """Return that jobs can be submitted, as a recent database commit shows, and which replicas cannot work.

    working: how many other replicas of the pool work. A pool without any is no error: jobs for it are accepted, and
    wait. The route needs no credentials, so with tenants it names pools only: `GET /status` has the reasons for
    operators. Errors: subclasses of UnavailableError, answered 503, while no job can be submitted.
    """
    whys = principal_of(request).may("admin")
    troubles = [
        {"pool": t.pool, "working": t.working, **({"why": t.why} if whys else {})} for t in await service.ready()
    ]
    return JsonResponse({"status": "ready", **({"troubles": troubles} if troubles else {})})


async def _set_pause(request: Request, service: Service, *, paused: bool) -> Response:
    """Pause or resume, and return what is paused. The body is empty for the queue, else names one thing, as {"pool":
    NAME}.
    """
    body = await read_object(request, service.limits.command)
    named = KINDS[1:]
    if len(body) > 1 or any(key not in named for key in body):
        raise InvalidSubmissionError(f"the body must be {{}} for the queue, or name one {' or '.join(named)}")
    pause = _named(body, named) if body else THE_QUEUE
    return JsonResponse({"paused": [str(each) for each in await service.pause(pause, paused=paused)]})


async def _set_drain(request: Request, service: Service, *, drained: bool) -> Response:
    """Drain or undo that, and return what is drained. The body is {"replica": ID} or {"host": NAME}.

    A drain's may have "hand_over": true.
    """
    body = await read_object(request, service.limits.command)
    hand_over = body.pop("hand_over", False) if drained else False
    if not isinstance(hand_over, bool):
        raise InvalidSubmissionError(f"hand_over must be true or false, not {short_repr(hand_over)}")
    if len(body) != 1 or any(key not in DRAINS for key in body):
        raise InvalidSubmissionError(f"the body must name one {' or '.join(DRAINS)}")
    pause = _named(body, DRAINS)
    return JsonResponse(
        {"drained": [str(each) for each in await service.pause(pause, paused=drained, hand_over=hand_over)]}
    )


def _named(body: Mapping[str, Any], kinds: Sequence[PauseKind]) -> Pause:
    """Return what a body names, which has one key, a kind. Errors: InvalidSubmissionError."""
    [kind] = [kind for kind in kinds if kind in body]
    if not isinstance(body[kind], str) or not body[kind]:
        raise InvalidSubmissionError(f"'{kind}' must be a name, not {short_repr(body[kind])}")
    return Pause(kind, body[kind])


def _event(event: Event) -> dict[str, Any]:
    return {"seq": event.seq, "kind": event.kind, "at_s": event.at_s, "data": event.data}
