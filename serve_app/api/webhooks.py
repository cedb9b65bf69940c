"""Routes of webhooks: register URLs for events of jobs, list deliveries, send one again.

Deliveries follow the Standard Webhooks specification. A secret is shown once, when the webhook is made.
"""

from __future__ import annotations

import time
import uuid
from datetime import UTC, datetime
from json import loads
from typing import Any

from starlette.requests import Request
from starlette.responses import Response

from serve_app.api.problems import problem
from serve_app.api.request import Current, query_number, read_object
from serve_app.api.routing import Routes
from serve_app.api.strict_json import JsonResponse
from serve_app.errors import InvalidSubmissionError, short_repr
from serve_app.limits import refused
from serve_app.scheduler.webhooks.outgoing import check_secret, check_url, new_secret
from serve_app.service.service import Service
from serve_app.service.submissions import is_job_id
from serve_app.store.database.webhooks import (
    EVENTS,
    AddWebhook,
    DeleteWebhook,
    Deliveries,
    Delivery,
    SendAgain,
    State,
    Webhook,
    Webhooks,
)

router = Routes()

KEYS = ("url", "events", "secret")
USUAL_EVENTS = ("job.succeeded", "job.failed", "job.canceled")
"""The default events of a webhook: how each job ended."""
STATES: tuple[State, ...] = ("pending", "delivered", "failed")
LISTED, MOST_LISTED = 50, 200
"""How many deliveries a page of the list has by default, and at most."""


@router.post("/webhooks")
async def post_webhook(request: Request, service: Current) -> Response:
    """Make a webhook, which receives events from this moment on."""
    body = await read_object(request, service.limits.command)
    if unknown := sorted(body.keys() - set(KEYS)):
        raise InvalidSubmissionError(
            f"{short_repr(unknown[0])} is not a key of a webhook; allowed are {', '.join(KEYS)}"
        )
    limits = service.limits.webhooks
    url = check_url(body.get("url"), limits.allowed_networks)
    secret = new_secret() if body.get("secret") is None else check_secret(body["secret"])
    webhook = Webhook(str(uuid.uuid4()), url, _events(body.get("events")), secret, time.time(), service.tenant)
    if not await service.query(AddWebhook(webhook, limits.most)):
        refused("webhooks.most")
        detail = f"there are as many webhooks as webhooks.most of the configuration allows, {limits.most}; delete one"
        return problem(409, "Too many webhooks", detail)
    return JsonResponse({**_webhook(webhook), "secret": secret}, 201)


@router.read("/webhooks")
async def get_webhooks(service: Current) -> Response:
    """List every webhook, the oldest first."""
    return JsonResponse({"webhooks": list(map(_webhook, await service.query(Webhooks(service.tenant))))})


@router.read("/webhooks/{webhook_id}")
async def get_webhook(request: Request, service: Current) -> Response:
    """Show a webhook."""
    webhook = await _found(request, service)
    return _missing(request) if webhook is None else JsonResponse(_webhook(webhook))


@router.on("/webhooks/{webhook_id}", ["DELETE"])
async def delete_webhook(request: Request, service: Current) -> Response:
    """Delete a webhook with its pending deliveries."""
    webhook = await _found(request, service)
    if webhook is None or not await service.query(DeleteWebhook(webhook.webhook_id)):
        return _missing(request)
    return Response(status_code=204)


@router.read("/webhooks/{webhook_id}/deliveries")
async def get_deliveries(request: Request, service: Current) -> Response:
    """List a webhook's deliveries, sent and pending, the newest first. cursor: the last page's `next_cursor`."""
    limit = int(query_number(request, "limit", int, LISTED))
    if not 1 <= limit <= MOST_LISTED:
        raise InvalidSubmissionError(f"limit must be 1 to {MOST_LISTED}, not {limit}")
    before = int(query_number(request, "cursor", int, 0)) or None
    asked = request.query_params.get("state")
    state = next((known for known in STATES if known == asked), None)
    if state is None and asked is not None:
        raise InvalidSubmissionError(f"state must be one of {', '.join(STATES)}, not {short_repr(asked)}")
    webhook = await _found(request, service)
    if webhook is None:
        return _missing(request)
    found = await service.query(Deliveries(webhook.webhook_id, limit + 1, before, state))
    page: dict[str, Any] = {"deliveries": list(map(_delivery, found[:limit]))}
    if len(found) > limit:
        page["next_cursor"] = str(found[limit - 1].place)
    return JsonResponse(page)


@router.post("/webhooks/{webhook_id}/deliveries/{delivery_id}/send")
async def post_send(request: Request, service: Current) -> Response:
    """Send a delivery again, or a pending one at once. A disabled webhook is enabled again."""
    webhook = await _found(request, service)
    if webhook is None:
        return _missing(request)
    delivery_id = request.path_params["delivery_id"]
    sent = None
    if is_job_id(delivery_id):
        sent = await service.query(SendAgain(webhook.webhook_id, delivery_id, time.time()))
    if sent is None:
        return problem(404, "Delivery not found", f"the webhook has no delivery {short_repr(delivery_id)}")
    return JsonResponse(_delivery(sent), 202)


async def _found(request: Request, service: Service) -> Webhook | None:
    webhook_id = request.path_params["webhook_id"]
    return next((w for w in await service.query(Webhooks(service.tenant)) if w.webhook_id == webhook_id), None)


def _missing(request: Request) -> Response:
    return problem(404, "Webhook not found", f"no webhook has the id {short_repr(request.path_params['webhook_id'])}")


def _events(given: Any) -> tuple[str, ...]:
    if given is None:
        return USUAL_EVENTS
    if not isinstance(given, list) or not given or any(event not in EVENTS for event in given):
        raise InvalidSubmissionError(f"'events' must be a list of some of {', '.join(EVENTS)}, not {short_repr(given)}")
    return tuple(event for event in EVENTS if event in given)


def _webhook(webhook: Webhook) -> dict[str, Any]:
    return {
        "id": webhook.webhook_id,
        "url": webhook.url,
        "events": list(webhook.events),
        "created_at": _moment(webhook.created_s),
        "disabled": webhook.disabled or None,
    }


def _delivery(delivery: Delivery) -> dict[str, Any]:
    return {
        "id": delivery.delivery_id,
        "job_id": delivery.job_id,
        "type": delivery.event,
        "state": delivery.state,
        "attempts": delivery.attempts,
        "status": delivery.status,
        "problem": delivery.problem or None,
        "asked_at": _moment(delivery.asked_s),
        "next_attempt_at": _moment(delivery.due_s) if delivery.state == "pending" else None,
        "ended_at": None if delivery.ended_s is None else _moment(delivery.ended_s),
        "payload": loads(delivery.payload),
    }


def _moment(unix_s: float) -> str:
    return datetime.fromtimestamp(unix_s, UTC).isoformat().replace("+00:00", "Z")
