"""The web page's assets: what its gallery shows and deletes, and its library of models.

Three lists, each the newest first or by name: outputs of ended jobs, files of the input area, model files. An output
and an upload of v2 are records, under the ids that v2 knows them by; another input file and a model are none, and
their ids say which they are. Source: the routes and answers that comfyui-frontend-package 1.58.1 uses, ComfyUI 0.38.
"""

from __future__ import annotations

import asyncio
import base64
import binascii
import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, NamedTuple
from urllib.parse import urlencode

from starlette.requests import Request
from starlette.responses import Response

from serve_app.api.comfy.body import read_members
from serve_app.api.content import content_type, disposition
from serve_app.api.request import Current
from serve_app.api.routing import Routes
from serve_app.api.shown_outputs import Shown, shown_by
from serve_app.api.stored_file import stored_file
from serve_app.api.strict_json import Json
from serve_app.errors import FileMissingError, ModelFileError, shown
from serve_app.service import Service, is_job_id
from serve_app.store.assets import FOLDER, Asset, DeleteAsset, FindAssets, OutputsOf, RecordOutputs
from serve_app.store.atomic_write import UNFINISHED
from serve_app.store.catalog import FOLDERS, GGUF, Catalog
from serve_app.store.gallery import ChangeTags, EndedOutputs, Uploads, UploadsEnd
from serve_app.store.named_files import NeededFiles, places
from serve_app.store.store import FileRef, FileStat, Store
from serve_app.store.tenants import MARK

router = Routes()

LIMIT, MOST = 100, 500
"""Assets of one answer where none is asked for, and at most."""
TAGS, TAG_LENGTH = 32, 256
STATS = 16
"""Files that are looked at in the store at once for one answer."""
VIEWED = ("image/", "video/", "audio/", "text/")
"""Kinds that the page shows by themselves."""
OUTPUT_TAGS = ("output", "temp")
MODELS, INPUT = "models", "input"

_CONTROL = re.compile("[\0-\x1f\x7f]")


class RefusedError(Exception):
    """What the page is told of a request about assets that is not done."""

    def __init__(self, status_code: int, code: str, message: str) -> None:
        super().__init__(message)
        self.status_code, self.code = status_code, code


class Item(NamedTuple):
    """An asset as it is listed. path: within its area, or its folder of models. record: of one that is a record."""

    asset_id: str
    area: str
    path: str
    tags: tuple[str, ...]
    size: int | None
    changed_s: float
    record: Asset | None = None


class Stretch(NamedTuple):
    """A part of a list, and the cursor of what follows it; None where nothing does."""

    items: Sequence[Item]
    following: str | None


@dataclass(frozen=True, slots=True)
class Wanted:
    """What a list is to hold: assets with all, any and none of some tags, whose name contains a text."""

    all: frozenset[str]
    any: frozenset[str]
    none: frozenset[str]
    name: str
    hash: str

    def fits(self, tags: Sequence[str], name: str) -> bool:
        """Whether an asset is wanted."""
        own = set(tags)
        return self.all <= own and (not self.any or bool(self.any & own)) and not self.none & own and self._named(name)

    def may_hold(self, *kinds: str) -> bool:
        """Whether assets of these kinds may be wanted: their first tags are no client's to choose."""
        fixed = {*OUTPUT_TAGS, INPUT, MODELS}
        asked = self.all & fixed
        return asked <= set(kinds) and (not (self.any and self.any <= fixed) or bool(self.any & set(kinds)))

    def _named(self, name: str) -> bool:
        return self.name.lower() in name.lower()


# Routes ---------------------------------------------------------------------------------------------------------------


@router.read("/assets")
async def get_assets(request: Request, service: Current) -> Response:
    """List assets. `total` counts those of this answer, and one more if more follow: nobody counts the whole."""
    try:
        wanted, limit = _wanted(request), _limit(request)
        source, _, cursor = request.query_params.get("after", "").partition(".")
        stretch = await _stretch(service, wanted, limit, source, cursor)
    except RefusedError as error:
        return _refused(error)
    return Json(
        {
            "assets": [_shape(item) for item in stretch.items],
            "total": len(stretch.items) + (stretch.following is not None),
            "has_more": stretch.following is not None,
            **({} if stretch.following is None else {"next_cursor": stretch.following}),
        }
    )


@router.read("/assets/{asset_id}")
async def get_asset(request: Request, service: Current) -> Response:
    """Show an asset."""
    try:
        return Json(_shape(await _item(service, request.path_params["asset_id"])))
    except RefusedError as error:
        return _refused(error)


@router.read("/assets/{asset_id}/content")
async def get_content(request: Request, service: Current) -> Response:
    """Return an asset's bytes, or a range of them. Model files are not given out."""
    try:
        item = await _item(service, request.path_params["asset_id"])
        if item.area == MODELS:
            raise RefusedError(403, "FORBIDDEN", "model files are listed only: the server does not give them out")
    except RefusedError as error:
        return _refused(error)
    ref = _ref(item)
    how = disposition(ref.filename)
    if request.query_params.get("disposition") == "attachment" and not how.startswith("attachment"):
        how = f"attachment; {how}"
    return await stored_file(service, ref, content_type(ref.filename), how, request.method, request.headers)


@router.on("/assets/{asset_id}", ["DELETE"])
async def delete_asset(request: Request, service: Current) -> Response:
    """Take an asset away. An output's file stays its job's; an input file that a job may need yet is not deleted."""
    try:
        await _delete(service, await _item(service, request.path_params["asset_id"]))
    except RefusedError as error:
        return _refused(error)
    return Response(status_code=204)


@router.post("/assets/{asset_id}/tags")
async def post_tags(request: Request, service: Current) -> Response:
    """Give an asset tags."""
    return await _change_tags(request, service, add=True)


@router.on("/assets/{asset_id}/tags", ["DELETE"])
async def delete_tags(request: Request, service: Current) -> Response:
    """Take tags from an asset; those that say where it lies stay."""
    return await _change_tags(request, service, add=False)


@router.post("/assets/seed")
async def post_seed() -> Response:
    """Say that every file is known: lists are made of what is there, and nothing scans for it."""
    return Json({"status": "completed"})


# Lists ----------------------------------------------------------------------------------------------------------------


async def _stretch(service: Service, wanted: Wanted, limit: int, source: str, cursor: str) -> Stretch:
    """Return the next stretch of what is wanted. source: of the list that it is in, "" for the first."""
    lists = [name for name, kinds, _ in SOURCES if wanted.may_hold(*kinds)]
    if not lists or wanted.hash:  # assets are shown without their hashes
        return Stretch((), None)
    if (source or lists[0]) not in lists:
        raise RefusedError(400, "INVALID_CURSOR", f"after={shown(source)} is no cursor of this list")
    source = source or lists[0]
    read = next(read for name, _, read in SOURCES if name == source)
    try:
        found = await read(service, limit, cursor)
    except (ValueError, TypeError, binascii.Error) as error:
        raise RefusedError(400, "INVALID_CURSOR", f"after={shown(cursor)} is no cursor of this list") from error
    following = None if found.following is None else f"{source}.{found.following}"
    later = lists[lists.index(source) + 1 :]
    if following is None and later:
        following = f"{later[0]}."
    return Stretch([item for item in found.items if wanted.fits(item.tags, item.path)], following)


async def _outputs(service: Service, limit: int, cursor: str) -> Stretch:
    """Return what ended jobs have shown, as records, without what is deleted or gone. cursor: PLACE-SKIPPED."""
    until, skip = map(int, cursor.split("-")) if cursor else (None, 0)
    jobs = await service.inquire(EndedOutputs(limit, until))
    listed: list[tuple[Shown, str, float]] = []
    following = None
    for job in jobs:
        items = [item for node, ui in job.outputs.items() for item in shown_by(job.job_id, node, ui)]
        files = [item for item in items if item.text is None and item.ref.area in OUTPUT_TAGS]
        start = skip if job.place == until else 0
        room = limit - len(listed)
        listed += [(item, job.job_id, job.ended_s) for item in files[start : start + room]]
        if len(files) > start + room:
            following = f"{job.place}-{start + room}"
            break
    else:
        if jobs:
            # Whether there are more is asked with the next stretch, which may be empty.
            following = (
                f"{jobs[-1].place - 1}-0" if await service.inquire(EndedOutputs(1, jobs[-1].place - 1)) else None
            )
    kept = await service.inquire(OutputsOf(tuple(job.job_id for job in jobs)))
    shown_ = [one for one in listed if one[0].asset_id not in kept or not kept[one[0].asset_id].deleted]
    stats = await _stats(service, [item.ref for item, _, _ in shown_])
    assets = [
        kept[item.asset_id].asset if item.asset_id in kept else _record(item, job_id, ended_s, stat)
        for (item, job_id, ended_s), stat in zip(shown_, stats, strict=True)
        if stat is not None
    ]
    if new := tuple(asset for asset in assets if asset.asset_id not in kept):
        await service.inquire(RecordOutputs(new))
    ends = {job.job_id: job.ended_s for job in jobs}
    return Stretch([_of_record(asset, ends[asset.job_id or ""]) for asset in assets], following)


async def _uploads(service: Service, limit: int, cursor: str) -> Stretch:
    """Return uploads of v2."""
    found = await service.inquire(Uploads(limit + 1, UploadsEnd(*_decoded(cursor)) if cursor else None))
    last = found[limit - 1] if len(found) > limit else None
    following = None if last is None else _encoded([last.created_s, last.asset_id])
    return Stretch([_of_record(asset) for asset in found[:limit]], following)


async def _inputs(service: Service, limit: int, cursor: str) -> Stretch:
    """Return files of the input area that are no records, the newest first."""
    files = await asyncio.to_thread(_input_files, service.store)
    if cursor:
        changed_s, path = _decoded(cursor)
        files = [one for one in files if (-one[0], one[1]) > (-float(changed_s), str(path))]
    some = files[:limit]
    stats = await _stats(service, [_input_ref(path) for _, path in some])
    items = [
        Item(_file_id(INPUT, path), INPUT, path, (INPUT,), stat.size, stat.modified_s)
        for (_, path), stat in zip(some, stats, strict=True)
        if stat is not None
    ]
    return Stretch(items, _encoded(list(some[-1])) if len(files) > limit else None)


async def _models(service: Service, limit: int, cursor: str) -> Stretch:
    """Return the model files by folder and name."""
    return await asyncio.to_thread(
        _model_items, service.catalog, limit, tuple(_decoded(cursor)) if cursor else ("", "")
    )


SOURCES: Sequence[tuple[str, Sequence[str], Any]] = (
    ("outputs", OUTPUT_TAGS, _outputs),
    ("uploads", (INPUT,), _uploads),
    ("inputs", (INPUT,), _inputs),
    ("models", (MODELS,), _models),
)
"""The lists in their order, the kinds of assets in each, and what reads a stretch."""


def _input_files(store: Store) -> list[tuple[float, str]]:
    """Return when input files changed, and their paths, the newest first; without what v2 keeps there."""
    found = []
    for ref, changed_s in store.files("input"):
        hidden = ref.filename.endswith(UNFINISHED) or ref.filename.startswith(".")
        if not hidden and ref.subfolder != FOLDER and not ref.subfolder.startswith(MARK):
            found.append((changed_s, ref.path))
    return sorted(found, key=lambda one: (-one[0], one[1]))


def _model_items(catalog: Catalog, limit: int, past: tuple[str, ...]) -> Stretch:
    names = [
        (folder, name)
        for folder in FOLDERS
        for name in catalog.names(folder)
        if folder not in GGUF or name.lower().endswith(".gguf")
    ]
    left = sorted(name for name in names if name > past)
    items = [_model_item(catalog, folder, name) for folder, name in left[:limit]]
    return Stretch(items, _encoded(list(left[limit - 1])) if len(left) > limit else None)


def _model_item(catalog: Catalog, folder: str, name: str) -> Item:
    """Return a model; one that is several files has no size."""
    size, changed_s = None, 0.0
    try:
        stat = catalog.stat(folder, name)
        size, changed_s = stat.size, stat.modified_s
    except ModelFileError:
        pass
    return Item(_file_id(MODELS, f"{folder}/{name}"), MODELS, name, (MODELS, folder), size, changed_s)


async def _stats(service: Service, refs: Sequence[FileRef]) -> list[FileStat | None]:
    """Return how files are in the store, None of those that are gone."""
    room = asyncio.Semaphore(STATS)

    async def one(ref: FileRef) -> FileStat | None:
        async with room:
            try:
                return await service.stat(ref)
            except FileMissingError:
                return None

    return list(await asyncio.gather(*map(one, refs)))


# One asset ------------------------------------------------------------------------------------------------------------


async def _item(service: Service, asset_id: str) -> Item:
    """Return an asset by its id. Errors: RefusedError 404."""
    if is_job_id(asset_id):
        found = await service.inquire(FindAssets((asset_id,)))
        if asset_id in found and found[asset_id].tenant == service.tenant:
            return _of_record(found[asset_id])
        raise _missing(asset_id)
    kind, _, encoded = asset_id.partition(".")
    try:
        path = base64.urlsafe_b64decode(encoded + "=" * (-len(encoded) % 4)).decode()
        if _file_id(kind, path) != asset_id:  # base64 has several spellings, an asset one id
            raise _missing(asset_id)
        if kind == INPUT:
            ref = _input_ref(path)
            if ref.subfolder == FOLDER or ref.subfolder.startswith(MARK):
                raise _missing(asset_id)
            stat = await service.stat(ref)
            return Item(asset_id, INPUT, ref.path, (INPUT,), stat.size, stat.modified_s)
        folder, _, name = path.partition("/")
        if kind == MODELS and name in await asyncio.to_thread(service.catalog.names, folder):
            return await asyncio.to_thread(_model_item, service.catalog, folder, name)
    except (ValueError, FileMissingError, ModelFileError) as error:
        raise _missing(asset_id) from error
    raise _missing(asset_id)


async def _delete(service: Service, item: Item) -> None:
    """Delete an asset. Errors: RefusedError."""
    if item.area == MODELS:
        raise RefusedError(403, "FORBIDDEN", "model files are everyone's and are not deleted from the page")
    if item.record is None:
        place = tuple(places([_ref(item)], service.tenant))
        if await service.inquire(NeededFiles(place)):
            raise RefusedError(409, "ASSET_IN_USE", f"{item.path} is named by a job that has not ended, or by an asset")
        await asyncio.to_thread(service.store.delete, _ref(item))
        return
    deleted = await service.inquire(DeleteAsset(item.asset_id))
    if deleted.what == "missing":
        raise _missing(item.asset_id)
    if deleted.what == "in use":
        raise RefusedError(409, "ASSET_IN_USE", f"asset {item.asset_id} is used by a job that has not ended")
    for ref in deleted.files:
        await asyncio.to_thread(service.store.delete, ref)


async def _change_tags(request: Request, service: Service, *, add: bool) -> Response:
    try:
        item = await _item(service, request.path_params["asset_id"])
        given = _tags((await read_members(request, service.limits.command)).get("tags"))
        if item.record is None:
            raise RefusedError(403, "FORBIDDEN", f"{item.path} is a file as it lies there: it keeps no tags")
        own = item.record.tags
        changed = await service.inquire(ChangeTags(item.asset_id, given if add else (), () if add else given, TAGS))
        if changed is None:
            raise _missing(item.asset_id)
        if add and not set(given) <= set(changed):
            raise RefusedError(400, "TOO_MANY_TAGS", f"an asset may have {TAGS} tags")
    except RefusedError as error:
        return _refused(error)
    had = [tag for tag in given if tag in own]
    new = [tag for tag in given if tag not in own]
    told = {"added": new, "already_present": had} if add else {"removed": had, "not_present": new}
    return Json({"total_tags": [item.area, *changed], **told})


# Shapes ---------------------------------------------------------------------------------------------------------------


def _record(item: Shown, job_id: str, ended_s: float, stat: FileStat) -> Asset:
    """Return an output as an asset that nobody has read for its hash."""
    path = item.ref.path
    type_ = content_type(item.ref.filename)
    kept = (item.asset_id, None, item.ref.area, path, stat.size, type_, path, (), ended_s)
    return Asset(*kept, job_id=job_id, node_id=item.node_id)


def _of_record(asset: Asset, at_s: float | None = None) -> Item:
    tags = tuple(dict.fromkeys((asset.area, *asset.tags)))
    changed_s = asset.created_s if at_s is None else at_s
    return Item(asset.asset_id, asset.area, asset.path, tags, asset.size, changed_s, asset)


def _shape(item: Item) -> dict[str, Any]:
    """Return an asset as the page reads it. Its hash is not told: the page would name files by it."""
    subfolder, _, filename = item.path.rpartition("/")
    named = item.record.name if item.record is not None and item.record.job_id is None else None
    moment = datetime.fromtimestamp(item.changed_s, UTC).isoformat().replace("+00:00", "Z")
    found: dict[str, Any] = {
        "id": item.asset_id,
        "name": item.path if item.area == MODELS else filename,
        "display_name": named or item.path,
        "mime_type": content_type(filename),
        "tags": list(item.tags),
        "created_at": moment,
        "updated_at": moment,
        "loader_path": item.path if item.area in (MODELS, INPUT) else None,
        "user_metadata": {"subfolder": subfolder},
    }
    if item.size is not None:
        found["size"] = item.size
    if item.area != MODELS and content_type(filename).startswith(VIEWED):
        query = {"type": item.area, "filename": filename, "subfolder": subfolder}
        found["preview_url"] = f"/api/view?{urlencode(query)}"
    if item.record is not None and item.record.job_id is not None:
        found["job_id"] = item.record.job_id
        found["user_metadata"] |= {"jobId": item.record.job_id, "nodeId": item.record.node_id}
    return found


def _ref(item: Item) -> FileRef:
    return item.record.ref if item.record is not None else _input_ref(item.path)


def _input_ref(path: str) -> FileRef:
    subfolder, _, filename = path.rpartition("/")
    return FileRef("input", subfolder, filename)


def _file_id(kind: str, path: str) -> str:
    return f"{kind}.{base64.urlsafe_b64encode(path.encode()).decode().rstrip('=')}"


def _encoded(place: Sequence[Any]) -> str:
    return base64.urlsafe_b64encode(json.dumps(place).encode()).decode().rstrip("=")


def _decoded(cursor: str) -> Sequence[Any]:
    """Return the two values of a cursor. Errors: ValueError."""
    place = json.loads(base64.urlsafe_b64decode(cursor + "=" * (-len(cursor) % 4)))
    if not isinstance(place, list) or len(place) != 2 or not isinstance(place[1], str):
        raise ValueError("a cursor is of two values")
    return place


# Requests -------------------------------------------------------------------------------------------------------------


def _wanted(request: Request) -> Wanted:
    """Return what is asked for, in ComfyUI's newer words or its older ones."""
    query = request.query_params

    def tags(*names: str) -> frozenset[str]:
        return frozenset(tag.strip() for name in names for tag in query.get(name, "").split(",") if tag.strip())

    found = Wanted(
        tags("tags_all", "include_tags"),
        tags("tags_any"),
        tags("tags_none", "exclude_tags"),
        query.get("name_contains", ""),
        query.get("hash", ""),
    )
    if len(found.all | found.any | found.none) > 100:
        raise RefusedError(400, "INVALID_QUERY", "a list may be asked for by 100 tags")
    return found


def _limit(request: Request) -> int:
    text = request.query_params.get("limit", str(LIMIT))
    if not (text.isascii() and text.isdigit() and len(text) < 10 and int(text) >= 1):
        raise RefusedError(
            400, "INVALID_QUERY", f"limit={shown(text)} must be a whole number from 1, at most {MOST} count"
        )
    return min(int(text), MOST)


def _tags(given: Any) -> tuple[str, ...]:
    fits = isinstance(given, list) and 1 <= len(given) <= TAGS and all(isinstance(tag, str) for tag in given)
    if not fits or any(not 1 <= len(tag) <= TAG_LENGTH or _CONTROL.search(tag) or "," in tag for tag in given):
        allowed = f"1 to {TAGS} strings of 1 to {TAG_LENGTH} characters without a comma"
        raise RefusedError(400, "INVALID_BODY", f"tags must be {allowed}, not {shown(given)}")
    if fixed := {*OUTPUT_TAGS, INPUT, MODELS, "missing"}.intersection(given):
        raise RefusedError(
            400, "INVALID_BODY", f"{', '.join(sorted(fixed))} say where an asset lies, and are the server's"
        )
    return tuple(given)


def _missing(asset_id: str) -> RefusedError:
    return RefusedError(404, "ASSET_NOT_FOUND", f"no asset has the id {shown(asset_id)}")


def _refused(error: RefusedError) -> Response:
    return Json({"error": {"code": error.code, "message": str(error), "details": {}}}, error.status_code)
