"""Routes of assets of Comfy API v2: upload, refer to stored bytes, read, delete."""

from __future__ import annotations

import asyncio
import re
import time
import uuid
from typing import Any

from starlette.datastructures import FormData, UploadFile
from starlette.requests import Request
from starlette.responses import Response

from serve_app.api.files.content import SHOWN_TYPES, disposition
from serve_app.api.files.content import content_type as type_by_name
from serve_app.api.files.new_asset import CONTROL, asset_hash, asset_name, asset_type, store_asset
from serve_app.api.files.stored_file import stored_file
from serve_app.api.request import Current, read_object, with_body_bound
from serve_app.api.routing import Routes
from serve_app.api.strict_json import JsonResponse
from serve_app.api.v2.failures import CodedError
from serve_app.api.v2.shapes import asset_shape
from serve_app.api.v2.submission import idempotency_key
from serve_app.errors import FileMissingError, short_repr
from serve_app.service.service import Service
from serve_app.service.submissions import is_job_id
from serve_app.store.files.blobs import FilePieces, content_hash, new_file
from serve_app.store.page.assets import Asset, DeleteAsset, FindAssets, HasBytes, MintAsset

router = Routes()

SHORTEST_S, LONGEST_S = 60, 604_800
"""The shortest and longest lifetime of an asset that a client may set."""
TAGS, TAG_LENGTH = 32, 256
FROM_HASH_KEYS = ("hash", "file_path", "tags", "expires_in")


@router.post("/assets")
async def post_asset(request: Request, service: Current) -> Response:
    """Store a file, unless its bytes are stored; the hash is computed here."""
    key = idempotency_key(request)
    async with with_body_bound(request, service.limits.upload).form(max_files=1, max_fields=TAGS + 10) as form:
        file = form.get("file")
        if not isinstance(file, UploadFile):
            raise CodedError("invalid_request", "the form has no file in the field 'file'")
        name = asset_name(_text(form, "file_path") or file.filename or "", "file_path")
        given_type = _text(form, "content_type") or file.content_type or type_by_name(name)
        content_type = asset_type(given_type, "content_type")
        tags, expires_s = _tags(form.getlist("tags")), _expires_s(_text(form, "expires_in"))
        expected = _text(form, "expected_hash")
        if expected is not None:
            asset_hash(expected)
        content = FilePieces(file.file)
        hash_, size = await asyncio.to_thread(content_hash, content)
        if expected not in (None, hash_):
            details = {"expected": expected, "actual": hash_}
            raise CodedError("hash_mismatch", f"the file is {hash_}, not {expected}", details)
        ref = new_file(hash_, name)
        now_s = time.time()
        kept = (content_type, name, tags, now_s, _after(now_s, expires_s))
        asset = Asset(str(uuid.uuid4()), hash_, ref.area, ref.path, size, *kept)
        minted = await store_asset(service, asset, ref, content, key)
    return JsonResponse(
        asset_shape(minted.asset, request, created_new=not minted.shared), 200 if minted.shared else 201
    )


@router.post("/assets/from-hash")
async def post_from_hash(request: Request, service: Current) -> Response:
    """Make an asset of stored bytes."""
    body = await read_object(request, service.limits.command)
    if unknown := sorted(body.keys() - set(FROM_HASH_KEYS)):
        allowed = ", ".join(FROM_HASH_KEYS)
        raise CodedError(
            "invalid_request", f"{short_repr(unknown[0])} is not a key of a reference; allowed are {allowed}"
        )
    hash_ = asset_hash(body.get("hash"))
    name = None if body.get("file_path") is None else asset_name(body["file_path"], "file_path")
    tags = _tags(body.get("tags") or [])
    now_s = time.time()
    expires_s = _after(now_s, _expires_s(body.get("expires_in")))
    asset = Asset(str(uuid.uuid4()), hash_, "input", "", 0, "", name, tags, now_s, expires_s)
    minted = await service.query(MintAsset(asset, stored=False))
    if minted is None:
        raise CodedError("blob_not_found", f"no bytes of {hash_} are here")
    return JsonResponse(asset_shape(minted.asset, request, created_new=False), 201 if minted.created else 200)


@router.on("/assets/by-hash/{hash}", ["HEAD"])
async def head_bytes(request: Request, service: Current) -> Response:
    """Answer whether bytes are stored."""
    hash_ = asset_hash(request.path_params["hash"])
    if not await service.query(HasBytes(hash_)):
        raise CodedError("blob_not_found", f"no bytes of {hash_} are here")
    return Response()


@router.read("/assets/{asset_id}")
async def get_asset(request: Request, service: Current) -> Response:
    """Show an asset."""
    return JsonResponse(asset_shape(await _asset(request, service), request))


@router.on("/assets/{asset_id}", ["DELETE"])
async def delete_asset(request: Request, service: Current) -> Response:
    """Delete an asset; bytes that another asset or a job uses stay."""
    asset_id = request.path_params["asset_id"]
    if not is_job_id(asset_id):
        raise _missing(asset_id)
    deleted = await service.query(DeleteAsset(asset_id))
    if deleted.what == "missing":
        raise _missing(asset_id)
    if deleted.what == "in use":
        raise CodedError("asset_in_use", f"asset {asset_id} is used by a job that has not ended")
    for ref in deleted.files:
        await asyncio.to_thread(service.store.delete, ref)
    return Response(status_code=204)


@router.read("/assets/{asset_id}/content")
async def get_content(request: Request, service: Current) -> Response:
    """Return the bytes, or a range of them; or redirect to the store, where it can sign links."""
    asset = await _asset(request, service)
    name = (asset.name or asset.path).rpartition("/")[2]
    safe = asset.content_type if asset.content_type in SHOWN_TYPES.values() else type_by_name(name)
    try:
        answer = await stored_file(service, asset.ref, safe, disposition(name), request.method, request.headers)
    except FileMissingError as error:
        code = "not_found" if asset.job_id is None else "output_unavailable"
        raise CodedError(code, f"the bytes of asset {asset.asset_id} are gone: {error}") from error
    if answer.status_code == 416:
        headers = {"Content-Range": answer.headers["content-range"]}
        raise CodedError("range_not_satisfiable", f"the asset has {asset.size} bytes", headers=headers)
    return answer


async def _asset(request: Request, service: Service) -> Asset:
    asset_id = request.path_params["asset_id"]
    found = await service.query(FindAssets((asset_id,))) if is_job_id(asset_id) else {}
    if asset_id not in found:
        raise _missing(asset_id)
    return found[asset_id]


def _missing(asset_id: str) -> CodedError:
    return CodedError("not_found", f"no asset has the id {short_repr(asset_id)}")


def _text(form: FormData, name: str) -> str | None:
    value = form.get(name)
    return value if isinstance(value, str) and value else None


def _tags(given: Any) -> tuple[str, ...]:
    fits = isinstance(given, list) and len(given) <= TAGS and all(isinstance(tag, str) for tag in given)
    if not fits or any(len(tag) > TAG_LENGTH or CONTROL.search(tag) for tag in given):
        allowed = f"at most {TAGS} strings of {TAG_LENGTH} characters"
        raise CodedError("invalid_request", f"tags must be {allowed}, not {short_repr(given)}")
    return tuple(given)


def _expires_s(given: Any) -> int | None:
    """Return an asset's lifetime in seconds; None for no end. Errors: CodedError invalid_request."""
    if given is None:
        return None
    if isinstance(given, str) and re.fullmatch(r"[0-9]{1,9}", given):
        given = int(given)
    if not isinstance(given, int) or isinstance(given, bool) or not SHORTEST_S <= given <= LONGEST_S:
        allowed = f"{SHORTEST_S} to {LONGEST_S}"
        raise CodedError("invalid_request", f"expires_in must be {allowed} seconds, not {short_repr(given)}")
    return given


def _after(now_s: float, seconds: int | None) -> float | None:
    return None if seconds is None else now_s + seconds
