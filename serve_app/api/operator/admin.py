"""Routes of the operator's where there are tenants: keys, the audit log, and who there is."""

from __future__ import annotations

import time
from dataclasses import asdict
from typing import Any

from starlette.requests import Request
from starlette.responses import Response

from serve_app.api.auth.principal import Admin
from serve_app.api.request import Current, number, read_object
from serve_app.api.routing import Routes
from serve_app.api.strict_json import Json
from serve_app.errors import InvalidSubmissionError, JobMissingError, shown
from serve_app.store.tenants.api_keys import GRACE_S, USUAL_SCOPES, AddKey, ApiKey, EndKey, FindKey, ListKeys, minted
from serve_app.store.tenants.audit import ReadAudit
from serve_app.store.tenants.listing import ListTenants, with_quotas

router = Routes("/tenants")

LISTED = 1000
"""Entries of the audit log that one answer has at most."""


@router.read("")
async def get_tenants(service: Current, _: Admin) -> Response:
    """List the tenants: how many keys and jobs each has, what it has used of GPUs today and stored, and its quotas."""
    tenants = await service.within("").inquire(ListTenants(time.time()))
    return Json({"tenants": with_quotas(tenants, service.limits.quotas)})


@router.read("/keys")
async def get_keys(service: Current, _: Admin) -> Response:
    """List the keys, without what proves them."""
    return Json({"keys": list(map(described, await service.within("").inquire(ListKeys())))})


@router.post("/keys")
async def post_key(request: Request, service: Current, _: Admin) -> Response:
    """Make a key; its text is in this answer and nowhere else."""
    body = await read_object(request, service.limits.command)
    if unknown := sorted(body.keys() - {"tenant", "name", "scopes", "expires_in_s"}):
        raise InvalidSubmissionError(
            f"{shown(unknown[0])} is not a key of this; allowed: tenant, name, scopes, expires_in_s"
        )
    scopes, seconds = body.get("scopes", list(USUAL_SCOPES)), body.get("expires_in_s")
    if not isinstance(scopes, list) or not all(isinstance(scope, str) for scope in scopes):
        raise InvalidSubmissionError(f"scopes must be a list of strings, not {shown(scopes)}")
    ends_s = None if seconds is None else time.time() + _seconds("expires_in_s", seconds)
    key, text = minted(_text(body, "tenant"), _text(body, "name"), scopes, ends_s)
    await service.within("").inquire(AddKey(key))
    return Json({"key": text, **described(key)}, 201, {"Cache-Control": "no-store"})


@router.post("/keys/{key_id}/rotate")
async def post_rotation(request: Request, service: Current, _: Admin) -> Response:
    """Make a key's successor; the old one holds for `grace_s` more."""
    body = await read_object(request, service.limits.command)
    grace_s = _seconds("grace_s", body.get("grace_s", GRACE_S))
    service = service.within("")
    old = await service.inquire(FindKey(request.path_params["key_id"]))
    if old is None or old.ended(time.time()):
        raise _missing(request)
    key, text = minted(old.tenant, old.name, old.scopes, old.ends_s)
    await service.inquire(AddKey(key, old.key_id, grace_s))
    return Json({"key": text, **described(key)}, 201, {"Cache-Control": "no-store"})


@router.post("/keys/{key_id}/revoke")
async def post_revocation(request: Request, service: Current, _: Admin) -> Response:
    """End a key; within seconds no process takes it any more."""
    if not await service.within("").inquire(EndKey(request.path_params["key_id"])):
        raise _missing(request)
    return Json({"revoked": request.path_params["key_id"]})


@router.read("/audit")
async def get_audit(request: Request, service: Current, _: Admin) -> Response:
    """List what was done, the newest first: at most `limit`, from before `before_s`, of `whose`."""
    limit, before_s = int(number(request, "limit", int, 100)), number(request, "before_s", float, 0.0)
    asked = ReadAudit(min(limit, LISTED), before_s or None, request.query_params.get("whose"))
    return Json({"entries": list(map(asdict, await service.within("").inquire(asked)))})


def described(key: ApiKey) -> dict[str, Any]:
    """Return what is told of a key."""
    told = {"key_id": key.key_id, "shown": key.shown, "tenant": key.tenant, "name": key.name}
    return {**told, "scopes": list(key.scopes), "created_s": key.created_s, "ends_s": key.ends_s}


def _missing(request: Request) -> JobMissingError:
    return JobMissingError(f"no key that holds has the id {shown(request.path_params['key_id'])}")


def _text(body: dict[str, Any], name: str) -> str:
    value = body.get(name, "")
    if not isinstance(value, str):
        raise InvalidSubmissionError(f"{name} must be a string, not {shown(value)}")
    return value


def _seconds(name: str, value: Any) -> float:
    if not isinstance(value, int | float) or isinstance(value, bool) or not 0 <= value <= 10**9:
        raise InvalidSubmissionError(f"{name} must be a number of seconds from 0 to 10^9, not {shown(value)}")
    return float(value)
