"""Assets of Comfy API v2: uploading bytes once, referring to them, reading and deleting them."""

from __future__ import annotations

import asyncio
import re
import time
import uuid
from typing import Any

from starlette.datastructures import FormData, UploadFile
from starlette.requests import Request
from starlette.responses import Response

from serve_app.api.content import SHOWN_TYPES, disposition
from serve_app.api.content import content_type as type_by_name
from serve_app.api.request import Current, bounded, read_object
from serve_app.api.routing import Routes
from serve_app.api.stored_file import stored_file
from serve_app.api.strict_json import Json
from serve_app.api.v2.failures import CodedError
from serve_app.api.v2.shapes import asset_shape
from serve_app.api.v2.submission import idempotency_key
from serve_app.errors import FileMissingError, KeyReusedError, shown
from serve_app.service import Service, is_job_id
from serve_app.store.assets import Asset, DeleteAsset, FindAssets, HasBytes, MintAsset, Minted
from serve_app.store.blobs import HASH, FilePieces, content_hash, new_file
from serve_app.store.store import FileRef

router = Routes()

SHORTEST_S, LONGEST_S = 60, 604_800
"""How long an asset may be asked to live."""
TAGS, TAG_LENGTH, NAME_LENGTH = 32, 256, 1024
FROM_HASH_KEYS = ("hash", "file_path", "tags", "expires_in")

_TYPE = re.compile(r"[\w.+-]{1,100}/[\w.+-]{1,100}(; ?[\w.+-]+=[\w.+\"-]+){0,3}", re.ASCII)
_CONTROL = re.compile("[\0-\x1f\x7f]")


@router.post("/assets")
async def post_asset(request: Request, service: Current) -> Response:
    """Store a file, unless its bytes are there; the hash is computed here."""
    key = idempotency_key(request)
    async with bounded(request, service.limits.upload).form(max_files=1, max_fields=TAGS + 10) as form:
        file = form.get("file")
        if not isinstance(file, UploadFile):
            raise CodedError("invalid_request", "the form has no file in the field 'file'")
        name = _name(_text(form, "file_path") or file.filename or "")
        given_type = _text(form, "content_type") or file.content_type or type_by_name(name)
        content_type = _content_type(given_type)
        tags, expires_s = _tags(form.getlist("tags")), _expires_s(_text(form, "expires_in"))
        expected = _text(form, "expected_hash")
        if expected is not None:
            _check_hash(expected)
        content = FilePieces(file.file)
        hash_, size = await asyncio.to_thread(content_hash, content)
        if expected not in (None, hash_):
            details = {"expected": expected, "actual": hash_}
            raise CodedError("hash_mismatch", f"the file is {hash_}, not {expected}", details)
        ref = new_file(hash_, name)
        now_s = time.time()
        kept = (content_type, name, tags, now_s, _after(now_s, expires_s))
        asset = Asset(str(uuid.uuid4()), hash_, ref.area, ref.path, size, *kept)
        minted = await _kept(service, asset, ref, content, key)
    return Json(asset_shape(minted.asset, request, created_new=not minted.shared), 200 if minted.shared else 201)


@router.post("/assets/from-hash")
async def post_from_hash(request: Request, service: Current) -> Response:
    """Refer to bytes that are there."""
    body = await read_object(request, service.limits.command)
    if unknown := sorted(body.keys() - set(FROM_HASH_KEYS)):
        allowed = ", ".join(FROM_HASH_KEYS)
        raise CodedError("invalid_request", f"{shown(unknown[0])} is not a key of a reference; allowed are {allowed}")
    hash_ = _check_hash(body.get("hash"))
    name = None if body.get("file_path") is None else _name(body["file_path"])
    tags = _tags(body.get("tags") or [])
    now_s = time.time()
    expires_s = _after(now_s, _expires_s(body.get("expires_in")))
    asset = Asset(str(uuid.uuid4()), hash_, "input", "", 0, "", name, tags, now_s, expires_s)
    minted = await service.inquire(MintAsset(asset, stored=False))
    if minted is None:
        raise CodedError("blob_not_found", f"no bytes of {hash_} are here")
    return Json(asset_shape(minted.asset, request, created_new=False), 201 if minted.created else 200)


@router.on("/assets/by-hash/{hash}", ["HEAD"])
async def head_bytes(request: Request, service: Current) -> Response:
    """Say whether bytes are there."""
    hash_ = _check_hash(request.path_params["hash"])
    if not await service.inquire(HasBytes(hash_)):
        raise CodedError("blob_not_found", f"no bytes of {hash_} are here")
    return Response()


@router.read("/assets/{asset_id}")
async def get_asset(request: Request, service: Current) -> Response:
    """Show an asset."""
    return Json(asset_shape(await _asset(request, service), request))


@router.on("/assets/{asset_id}", ["DELETE"])
async def delete_asset(request: Request, service: Current) -> Response:
    """Take an asset away; bytes that another one has, or a job, stay."""
    asset_id = request.path_params["asset_id"]
    if not is_job_id(asset_id):
        raise _missing(asset_id)
    deleted = await service.inquire(DeleteAsset(asset_id))
    if deleted.what == "missing":
        raise _missing(asset_id)
    if deleted.what == "in use":
        raise CodedError("asset_in_use", f"asset {asset_id} is used by a job that has not ended")
    for ref in deleted.files:
        await asyncio.to_thread(service.store.delete, ref)
    return Response(status_code=204)


@router.read("/assets/{asset_id}/content")
async def get_content(request: Request, service: Current) -> Response:
    """Return the bytes, or a range of them; or a link to them, where the store gives out links."""
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


async def _kept(service: Service, asset: Asset, ref: FileRef, content: FilePieces, key: str | None) -> Minted:
    """Keep an asset, and its bytes in `ref` unless others have them. Errors: KeyReusedError."""
    if await service.inquire(HasBytes(asset.hash or "")):
        minted = await service.inquire(MintAsset(asset, stored=False, key=key))
        if minted is not None:
            return minted
    await asyncio.to_thread(service.store.write, ref, content)
    try:
        minted = await service.inquire(MintAsset(asset, stored=True, key=key))
        assert minted is not None, "an asset that came with its bytes is kept"
    except KeyReusedError:
        await asyncio.to_thread(service.store.delete, ref)
        raise
    if minted.asset.path != asset.path:  # another upload of the same bytes was first
        await asyncio.to_thread(service.store.delete, ref)
    return minted


async def _asset(request: Request, service: Service) -> Asset:
    asset_id = request.path_params["asset_id"]
    found = await service.inquire(FindAssets((asset_id,))) if is_job_id(asset_id) else {}
    if asset_id not in found:
        raise _missing(asset_id)
    return found[asset_id]


def _missing(asset_id: str) -> CodedError:
    return CodedError("not_found", f"no asset has the id {shown(asset_id)}")


def _text(form: FormData, name: str) -> str | None:
    value = form.get(name)
    return value if isinstance(value, str) and value else None


def _name(given: Any) -> str:
    """Return the path that a client gives its asset. Errors: CodedError invalid_request."""
    if not isinstance(given, str) or not 1 <= len(given) <= NAME_LENGTH or _CONTROL.search(given) or "\\" in given:
        raise CodedError("invalid_request", f"file_path must be a relative path, not {shown(given)}")
    parts = given.split("/")
    if given.startswith("/") or ".." in parts or not parts[-1] or re.match(r"[A-Za-z]:", given):
        raise CodedError("invalid_request", f"file_path must be relative and stay in its folder, not {shown(given)}")
    if parts[0] == "models":
        raise CodedError("invalid_request", "model files cannot be uploaded here: put them where the server loads them")
    return given


def _content_type(given: str) -> str:
    if not _TYPE.fullmatch(given):
        raise CodedError("invalid_request", f"content_type must be like image/png, not {shown(given)}")
    return given


def _tags(given: Any) -> tuple[str, ...]:
    fits = isinstance(given, list) and len(given) <= TAGS and all(isinstance(tag, str) for tag in given)
    if not fits or any(len(tag) > TAG_LENGTH or _CONTROL.search(tag) for tag in given):
        allowed = f"at most {TAGS} strings of {TAG_LENGTH} characters"
        raise CodedError("invalid_request", f"tags must be {allowed}, not {shown(given)}")
    return tuple(given)


def _expires_s(given: Any) -> int | None:
    """Return for how many seconds an asset is to live; None for ever. Errors: CodedError invalid_request."""
    if given is None:
        return None
    if isinstance(given, str) and re.fullmatch(r"[0-9]{1,9}", given):
        given = int(given)
    if not isinstance(given, int) or isinstance(given, bool) or not SHORTEST_S <= given <= LONGEST_S:
        allowed = f"{SHORTEST_S} to {LONGEST_S}"
        raise CodedError("invalid_request", f"expires_in must be {allowed} seconds, not {shown(given)}")
    return given


def _after(now_s: float, seconds: int | None) -> float | None:
    return None if seconds is None else now_s + seconds


def _check_hash(given: Any) -> str:
    if not isinstance(given, str) or not HASH.fullmatch(given):
        raise CodedError("invalid_request", f"a hash is blake3: and 64 of 0-9 a-f, not {shown(given)}")
    return given
