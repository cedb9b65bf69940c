"""One asset of the web page's: a job's output, an upload, another file of the input area, or a model file.

An output and an upload of v2 are records, under the ids that v2 knows them by; another input file and a model are none,
and their ids say which they are.
"""

from __future__ import annotations

import asyncio
import base64
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime
from typing import Any, NamedTuple
from urllib.parse import urlencode

from starlette.responses import Response

from serve_app.api.files.content import content_type
from serve_app.api.strict_json import Json
from serve_app.errors import FileMissingError, ModelFileError, ServeAppError, shown
from serve_app.service.service import Service
from serve_app.service.submissions import is_job_id
from serve_app.store.files.store import FileRef, FileStat
from serve_app.store.models.catalog import Catalog
from serve_app.store.page.assets import FOLDER, Asset, FindAssets
from serve_app.store.tenants.tenants import MARK

VIEWED = ("image/", "video/", "audio/", "text/")
"""Kinds that the page shows by themselves."""
STATS = 16
"""Files that are looked at in the store at once for one answer."""
OUTPUT_TAGS = ("output", "temp")
MODELS, INPUT = "models", "input"


class RefusedError(ServeAppError):
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

    @property
    def ref(self) -> FileRef:
        """Return the file, of what is no model."""
        return self.record.ref if self.record is not None else input_ref(self.path)

    @property
    def name(self) -> str:
        """Return what it is called: by its client's word for it, or by its path."""
        return (self.record.name if self.record is not None else None) or self.path


async def find_item(service: Service, asset_id: str) -> Item:
    """Return an asset by its id. Errors: RefusedError 404."""
    if (found := (await find_items(service, [asset_id])).get(asset_id)) is None:
        raise missing(asset_id)
    return found


async def find_items(service: Service, asset_ids: Iterable[str]) -> dict[str, Item]:
    """Return assets by id, those that are there."""
    ids = list(dict.fromkeys(asset_ids))
    records: dict[str, Asset] = {}
    if wanted := tuple(filter(is_job_id, ids)):
        records = await service.inquire(FindAssets(wanted))
    found = {asset_id: item_of(asset) for asset_id, asset in records.items() if asset.tenant == service.tenant}
    for asset_id in ids:
        if not is_job_id(asset_id) and (item := await _file(service, asset_id)) is not None:
            found[asset_id] = item
    return found


async def _file(service: Service, asset_id: str) -> Item | None:
    """Return an asset that is no record."""
    kind, _, encoded = asset_id.partition(".")
    try:
        path = base64.urlsafe_b64decode(encoded + "=" * (-len(encoded) % 4)).decode()
        if file_id(kind, path) != asset_id:  # base64 has several spellings, an asset one id
            return None
        if kind == INPUT:
            ref = input_ref(path)
            if ref.subfolder == FOLDER or ref.subfolder.startswith(MARK):
                return None
            stat = await service.stat(ref)
            return Item(asset_id, INPUT, ref.path, (INPUT,), stat.size, stat.modified_s)
        folder, _, name = path.partition("/")
        if kind == MODELS and name in await asyncio.to_thread(service.catalog.names, folder):
            return await asyncio.to_thread(model_item, service.catalog, folder, name)
    except (ValueError, FileMissingError, ModelFileError):
        return None
    return None


async def stats_of(service: Service, refs: Sequence[FileRef]) -> list[FileStat | None]:
    """Return how files are in the store, None of those that are gone."""
    room = asyncio.Semaphore(STATS)

    async def one(ref: FileRef) -> FileStat | None:
        async with room:
            try:
                return await service.stat(ref)
            except FileMissingError:
                return None

    return list(await asyncio.gather(*map(one, refs)))


def item_of(asset: Asset, at_s: float | None = None) -> Item:
    """Return a record as it is listed. at_s: when it came to be, if not when the record did."""
    tags = tuple(dict.fromkeys((asset.area, *asset.tags)))
    changed_s = asset.created_s if at_s is None else at_s
    return Item(asset.asset_id, asset.area, asset.path, tags, asset.size, changed_s, asset)


def model_item(catalog: Catalog, folder: str, name: str) -> Item:
    """Return a model; one that is several files has no size."""
    size, changed_s = None, 0.0
    try:
        stat = catalog.stat(folder, name)
        size, changed_s = stat.size, stat.modified_s
    except ModelFileError:
        pass
    # The page of today finds a model's folder by the last of the tags, an older one by that before it.
    tags = (MODELS, folder, f"model_type:{folder}")
    return Item(file_id(MODELS, f"{folder}/{name}"), MODELS, name, tags, size, changed_s)


def input_ref(path: str) -> FileRef:
    """Return the file of the input area that has a path."""
    subfolder, _, filename = path.rpartition("/")
    return FileRef("input", subfolder, filename)


def file_id(kind: str, path: str) -> str:
    """Return the id of an asset that is no record."""
    return f"{kind}.{base64.urlsafe_b64encode(path.encode()).decode().rstrip('=')}"


def shape(item: Item) -> dict[str, Any]:
    """Return an asset as the page reads it. Its hash is not told: the page would name files by it."""
    subfolder, _, filename = item.path.rpartition("/")
    moment = datetime.fromtimestamp(item.changed_s, UTC).isoformat().replace("+00:00", "Z")
    found: dict[str, Any] = {
        "id": item.asset_id,
        "name": item.path if item.area == MODELS else filename,
        "display_name": item.name,
        "mime_type": content_type(filename),
        "tags": list(item.tags),
        "created_at": moment,
        "updated_at": moment,
        "loader_path": item.path if item.area in (MODELS, INPUT) else None,
        "user_metadata": {"subfolder": subfolder},
    }
    if item.record is not None:
        found["user_metadata"] = {**item.record.user_metadata, "subfolder": subfolder}
    if item.size is not None:
        found["size"] = item.size
    if item.area != MODELS and content_type(filename).startswith(VIEWED):
        query = {"type": item.area, "filename": filename, "subfolder": subfolder}
        found["preview_url"] = f"/api/view?{urlencode(query)}"
    if item.record is not None and item.record.preview_id is not None:
        found["preview_id"] = item.record.preview_id
        found["preview_url"] = f"/api/assets/{item.record.preview_id}/content"
    if item.record is not None and item.record.job_id is not None:
        found["job_id"] = item.record.job_id
        found["user_metadata"] |= {"jobId": item.record.job_id, "nodeId": item.record.node_id}
    return found


def missing(asset_id: str) -> RefusedError:
    """Return the error for an id that no asset has."""
    return RefusedError(404, "ASSET_NOT_FOUND", f"no asset has the id {shown(asset_id)}")


def refused(error: RefusedError) -> Response:
    """Return the answer to a request that is refused."""
    return Json({"error": {"code": error.code, "message": str(error), "details": {}}}, error.status_code)
