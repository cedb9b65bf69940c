"""Routes for new assets of the web page: uploaded, or references to stored bytes; and an asset's metadata.

An upload is an input, and a record of its own as v2's are. Source: the routes of ComfyUI 0.33's `app/assets`.
"""

from __future__ import annotations

import asyncio
import json
import time
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from starlette.datastructures import FormData, UploadFile
from starlette.requests import Request
from starlette.responses import Response

from serve_app.api.comfy.assets.items import (
    INPUT,
    MODELS,
    OUTPUT_TAGS,
    AssetRefusedError,
    asset_missing,
    find_item,
    find_items,
    item_of,
    shape,
)
from serve_app.api.comfy.body import read_members
from serve_app.api.files.content import content_type as type_by_name
from serve_app.api.files.new_asset import CONTROL, asset_hash, asset_name, asset_type, store_asset
from serve_app.api.request import Current, with_body_bound
from serve_app.api.routing import Routes
from serve_app.api.strict_json import JsonResponse, parse_value
from serve_app.errors import InvalidSubmissionError, short_repr
from serve_app.service.service import Service
from serve_app.store.files.blobs import FilePieces, content_hash, new_file
from serve_app.store.page.assets import Asset, HasBytes, MintAsset, Minted
from serve_app.store.page.gallery import ChangeAsset

router = Routes()

TAGS, TAG_LENGTH = 32, 256
METADATA_CHARACTERS = 20_000
"""The most characters of an asset's metadata, as JSON."""


# Routes ---------------------------------------------------------------------------------------------------------------


@router.post("/assets")
async def post_asset(request: Request, service: Current) -> Response:
    """Store a file as an input, unless its bytes are stored; or refer to stored bytes."""
    if not request.headers.get("content-type", "").lower().startswith("multipart/"):
        raise AssetRefusedError(415, "UNSUPPORTED_MEDIA_TYPE", "an upload is a multipart form with the file in 'file'")
    async with with_body_bound(request, service.limits.upload).form(max_files=1, max_fields=TAGS + 10) as form:
        with _as_refusal():
            if "id" in form:
                raise AssetRefusedError(400, "UNSUPPORTED_FIELD", "an asset's id is given by the server")
            hash_ = None if (given := _text(form, "hash")) is None else asset_hash(given.lower())
            tags = _placed(_split(form.getlist("tags")))
            kept = await _kept_with(service, _parsed(_text(form, "user_metadata")), _text(form, "preview_id"))
            file = form.get("file")
            if not isinstance(file, UploadFile):
                if hash_ is None:
                    raise AssetRefusedError(
                        400, "MISSING_FILE", "the form has neither a file in 'file' nor a known 'hash'"
                    )
                named = _text(form, "name")
                return await _refer(service, hash_, named, _text(form, "mime_type"), tags, kept)
            name = asset_name(_text(form, "name") or file.filename, "name")
            type_ = _text(form, "mime_type") or file.content_type or type_by_name(name)
            type_ = asset_type(type_, "mime_type")
            content = FilePieces(file.file)
            actual, size = await asyncio.to_thread(content_hash, content)
            if not size:
                raise AssetRefusedError(400, "EMPTY_UPLOAD", "the file is empty")
            if hash_ not in (None, actual):
                raise AssetRefusedError(400, "HASH_MISMATCH", f"the file is {actual}, not {hash_}")
            ref = new_file(actual, name)
            new = (str(uuid.uuid4()), actual, ref.area, ref.path, size, type_, name, tags, time.time())
            return _created(await store_asset(service, Asset(*new, **kept), ref, content, None))


@router.post("/assets/from-hash")
async def post_from_hash(request: Request, service: Current) -> Response:
    """Make an asset of stored bytes."""
    members = await read_members(request, service.limits.command)
    with _as_refusal():
        hash_, tags = asset_hash(members.get("hash")), _placed(members.get("tags", []))
        kept = await _kept_with(service, members.get("user_metadata"), members.get("preview_id"))
        return await _refer(service, hash_, members.get("name"), members.get("mime_type"), tags, kept)


@router.on("/assets/hash/{hash}", ["HEAD"])
async def head_bytes(request: Request, service: Current) -> Response:
    """Answer whether bytes are stored."""
    with _as_refusal():
        hash_ = asset_hash(request.path_params["hash"].lower())
    return Response(status_code=200 if await service.query(HasBytes(hash_)) else 404)


@router.on("/assets/{asset_id}", ["PUT"])
async def put_asset(request: Request, service: Current) -> Response:
    """Rename an asset, and change its metadata."""
    item = await find_item(service, request.path_params["asset_id"])
    members = await read_members(request, service.limits.command)
    if item.record is None:
        raise AssetRefusedError(403, "FORBIDDEN", f"{item.path} is a file as it lies there: nothing is kept with it")
    with _as_refusal():
        name = None if members.get("name") is None else asset_name(members["name"], "name")
        kept = await _kept_with(service, members.get("user_metadata"), members.get("preview_id"))
    notes = kept["user_metadata"] if members.get("user_metadata") is not None else None
    changed = await service.query(ChangeAsset(item.asset_id, name, notes, kept["preview_id"]))
    if changed is None:
        raise asset_missing(item.asset_id)
    return JsonResponse(shape(item_of(changed, item.changed_s)))


async def _refer(
    service: Service, hash_: str, name: Any, type_: Any, tags: tuple[str, ...], kept: Mapping[str, Any]
) -> Response:
    """Return the answer to a reference to bytes. Errors: AssetRefusedError, InvalidSubmissionError."""
    name = hash_.partition(":")[2] if name is None else asset_name(name, "name")
    type_ = "" if type_ is None else asset_type(type_, "mime_type")
    new = (str(uuid.uuid4()), hash_, INPUT, "", 0, type_, name, tags, time.time())
    minted = await service.query(MintAsset(Asset(*new, **kept), stored=False))
    if minted is None:
        raise AssetRefusedError(404, "ASSET_NOT_FOUND", f"no bytes of {hash_} are here")
    return _created(minted)


def _created(minted: Minted) -> Response:
    return JsonResponse({**shape(item_of(minted.asset)), "created_new": minted.created}, 201 if minted.created else 200)


# Fields ---------------------------------------------------------------------------------------------------------------


@contextmanager
def _as_refusal() -> Iterator[None]:
    """Turn an error about a field into an AssetRefusedError."""
    try:
        yield
    except InvalidSubmissionError as error:
        raise AssetRefusedError(400, "INVALID_BODY", str(error)) from error


def own_tags(given: Any, least: int = 1) -> tuple[str, ...]:
    """Return tags that a client may set. Errors: AssetRefusedError."""
    fits = isinstance(given, list) and least <= len(given) <= TAGS and all(isinstance(tag, str) for tag in given)
    if not fits or any(not 1 <= len(tag) <= TAG_LENGTH or CONTROL.search(tag) or "," in tag for tag in given):
        allowed = f"{least} to {TAGS} strings of 1 to {TAG_LENGTH} characters without a comma"
        raise AssetRefusedError(400, "INVALID_BODY", f"tags must be {allowed}, not {short_repr(given)}")
    if fixed := {*OUTPUT_TAGS, INPUT, MODELS, "missing"}.intersection(given):
        raise AssetRefusedError(
            400, "INVALID_BODY", f"{', '.join(sorted(fixed))} say where an asset lies, and are the server's"
        )
    return tuple(given)


def _placed(given: Any) -> tuple[str, ...]:
    """Return the tags of an upload, which may include "input". Errors: AssetRefusedError."""
    return own_tags([tag for tag in given if tag != INPUT] if isinstance(given, list) else given, 0)


def _split(texts: list[Any]) -> list[str]:
    """Return the tags in a form's fields, each a JSON list or words between commas."""
    found: list[str] = []
    for text in texts:
        if isinstance(text, str) and text.strip():
            words = _parsed(text) if text.lstrip().startswith("[") else text.split(",")
            found += [word.strip() if isinstance(word, str) else word for word in words]
    return list(dict.fromkeys(map(str, filter(None, found))))


def _parsed(text: str | None) -> Any:
    """Return a JSON value. Errors: InvalidSubmissionError."""
    return None if text is None else parse_value(text.encode(errors="replace"))


async def _kept_with(service: Service, user_metadata: Any, preview_id: Any) -> dict[str, Any]:
    """Return an asset's metadata, by Asset's field names. Errors: AssetRefusedError."""
    notes = {} if user_metadata is None else user_metadata
    if not isinstance(notes, dict) or len(json.dumps(notes)) > METADATA_CHARACTERS:
        allowed = f"an object of at most {METADATA_CHARACTERS} characters of JSON"
        raise AssetRefusedError(
            400, "INVALID_BODY", f"user_metadata must be {allowed}, not {short_repr(user_metadata)}"
        )
    if preview_id is not None:
        found = await find_items(service, [preview_id]) if isinstance(preview_id, str) else {}
        if not found or found[preview_id].record is None:
            raise AssetRefusedError(
                400, "INVALID_BODY", f"preview_id must be of an asset, not {short_repr(preview_id)}"
            )
    return {"user_metadata": notes, "preview_id": preview_id}


def _text(form: FormData, name: str) -> str | None:
    value = form.get(name)
    return value.strip() or None if isinstance(value, str) else None
