"""Routes for operators of a server with tenants: tenants, API keys, the audit log."""

from __future__ import annotations

import time
from dataclasses import asdict
from typing import Any

from starlette.requests import Request
from starlette.responses import Response

from serve_app.api.auth.principal import Admin
from serve_app.api.request import Current, query_number, read_object
from serve_app.api.routing import Routes
from serve_app.api.strict_json import JsonResponse
from serve_app.errors import InvalidSubmissionError, JobMissingError, short_repr
from serve_app.store.tenants.api_keys import GRACE_S, USUAL_SCOPES, AddKey, ApiKey, EndKey, FindKey, ListKeys, minted
from serve_app.store.tenants.audit import ReadAudit
from serve_app.store.tenants.listing import ListTenants, with_quotas

router = Routes("/tenants")

LISTED = 1000
"""The most entries of the audit log in one answer."""


@router.read("")
async def get_tenants(service: Current, _: Admin) -> Response:
    """List the tenants: numbers of keys and jobs, GPU time today, stored bytes, and quotas."""
    tenants = await service.for_tenant("").query(ListTenants(time.time()))
    return JsonResponse({"tenants": with_quotas(tenants, service.limits.quotas)})


@router.read("/keys")
async def get_keys(service: Current, _: Admin) -> Response:
    """List the keys, without their secrets."""
    return JsonResponse({"keys": list(map(key_summary, await service.for_tenant("").query(ListKeys())))})


@router.post("/keys")
async def post_key(request: Request, service: Current, _: Admin) -> Response:
    """Make a key; only this answer contains its text."""
    body = await read_object(request, service.limits.command)
    if unknown := sorted(body.keys() - {"tenant", "name", "scopes", "expires_in_s"}):
        raise InvalidSubmissionError(
            f"{short_repr(unknown[0])} is not a key of this; allowed: tenant, name, scopes, expires_in_s"
        )
    scopes, seconds = body.get("scopes", list(USUAL_SCOPES)), body.get("expires_in_s")
    if not isinstance(scopes, list) or not all(isinstance(scope, str) for scope in scopes):
        raise InvalidSubmissionError(f"scopes must be a list of strings, not {short_repr(scopes)}")
    ends_s = None if seconds is None else time.time() + _seconds("expires_in_s", seconds)
    key, text = minted(_text(body, "tenant"), _text(body, "name"), scopes, ends_s)
    await service.for_tenant("").query(AddKey(key))
    return JsonResponse({"key": text, **key_summary(key)}, 201, {"Cache-Control": "no-store"})


@router.post("/keys/{key_id}/rotate")
async def post_rotation(request: Request, service: Current, _: Admin) -> Response:
    """Make a key's successor; the old one stays valid for `grace_s`."""
    body = await read_object(request, service.limits.command)
    grace_s = _seconds("grace_s", body.get("grace_s", GRACE_S))
    service = service.for_tenant("")
    old = await service.query(FindKey(request.path_params["key_id"]))
    if old is None or old.ended(time.time()):
        raise _missing(request)
    key, text = minted(old.tenant, old.name, old.scopes, old.ends_s)
    await service.query(AddKey(key, old.key_id, grace_s))
    return JsonResponse({"key": text, **key_summary(key)}, 201, {"Cache-Control": "no-store"})


@router.post("/keys/{key_id}/revoke")
async def post_revocation(request: Request, service: Current, _: Admin) -> Response:
    """Revoke a key; within seconds all processes refuse it."""
    if not await service.for_tenant("").query(EndKey(request.path_params["key_id"])):
        raise _missing(request)
    return JsonResponse({"revoked": request.path_params["key_id"]})


@router.read("/audit")
async def get_audit(request: Request, service: Current, _: Admin) -> Response:
    """List entries of the audit log, the newest first: at most `limit`, from before `before_s`, of the tenant
    `whose`.
    """
    limit, before_s = int(query_number(request, "limit", int, 100)), query_number(request, "before_s", float, 0.0)
    asked = ReadAudit(min(limit, LISTED), before_s or None, request.query_params.get("whose"))
    return JsonResponse({"entries": list(map(asdict, await service.for_tenant("").query(asked)))})


def key_summary(key: ApiKey) -> dict[str, Any]:
    """Return a key without its secret."""
    summary = {"key_id": key.key_id, "shown": key.shown, "tenant": key.tenant, "name": key.name}
    return {**summary, "scopes": list(key.scopes), "created_s": key.created_s, "ends_s": key.ends_s}


def _missing(request: Request) -> JobMissingError:
    return JobMissingError(f"no key that holds has the id {short_repr(request.path_params['key_id'])}")


def _text(body: dict[str, Any], name: str) -> str:
    value = body.get(name, "")
    if not isinstance(value, str):
        raise InvalidSubmissionError(f"{name} must be a string, not {short_repr(value)}")
    return value


def _seconds(name: str, value: Any) -> float:
    if not isinstance(value, int | float) or isinstance(value, bool) or not 0 <= value <= 10**9:
        raise InvalidSubmissionError(f"{name} must be a number of seconds from 0 to 10^9, not {short_repr(value)}")
    return float(value)
