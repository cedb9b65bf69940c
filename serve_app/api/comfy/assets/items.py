"""One asset of the web page's: a job's output, an upload, another file of the input area, or a model file.

An output and an upload of v2 are records in the database, with the ids that they have in v2; other input files and
models have no record, and their ids encode their paths.
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
from serve_app.api.strict_json import JsonResponse
from serve_app.errors import FileMissingError, ModelFileError, ServeAppError, short_repr
from serve_app.service.service import Service
from serve_app.service.submissions import is_job_id
from serve_app.store.files.store import FileRef, FileStat
from serve_app.store.models.catalog import Catalog
from serve_app.store.page.assets import FOLDER, Asset, FindAssets
from serve_app.store.tenants.tenants import MARK

VIEWED = ("image/", "video/", "audio/", "text/")
"""Content types that the page can show."""
STATS = 16
"""How many files one answer looks up in the store at once."""
OUTPUT_TAGS = ("output", "temp")
MODELS, INPUT = "models", "input"


class AssetRefusedError(ServeAppError):
    """A request about assets that is refused, with the error body that the page reads."""

    def __init__(self, status_code: int, code: str, message: str) -> None:
        super().__init__(message)
        self.status_code, self.code = status_code, code


class AssetItem(NamedTuple):
    """An asset as it is listed. path: within its area, or its folder of models. record: its row in the database, if
    any.
    """

    asset_id: str
    area: str
    path: str
    tags: tuple[str, ...]
    size: int | None
    changed_s: float
    record: Asset | None = None

    @property
    def ref(self) -> FileRef:
        """Return the file, of an asset that is no model."""
        return self.record.ref if self.record is not None else input_ref(self.path)

    @property
    def name(self) -> str:
        """Return its display name: the client's name for it, or its path."""
        return (self.record.name if self.record is not None else None) or self.path


async def find_item(service: Service, asset_id: str) -> AssetItem:
    """Return an asset by its id. Errors: AssetRefusedError 404."""
    if (found := (await find_items(service, [asset_id])).get(asset_id)) is None:
        raise asset_missing(asset_id)
    return found


async def find_items(service: Service, asset_ids: Iterable[str]) -> dict[str, AssetItem]:
    """Return the assets that exist by id."""
    ids = list(dict.fromkeys(asset_ids))
    records: dict[str, Asset] = {}
    if wanted := tuple(filter(is_job_id, ids)):
        records = await service.query(FindAssets(wanted))
    found = {asset_id: item_of(asset) for asset_id, asset in records.items() if asset.tenant == service.tenant}
    for asset_id in ids:
        if not is_job_id(asset_id) and (item := await _file(service, asset_id)) is not None:
            found[asset_id] = item
    return found


async def _file(service: Service, asset_id: str) -> AssetItem | None:
    """Return an asset without a record."""
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
            return AssetItem(asset_id, INPUT, ref.path, (INPUT,), stat.size, stat.modified_s)
        folder, _, name = path.partition("/")
        if kind == MODELS and name in await asyncio.to_thread(service.catalog.names, folder):
            return await asyncio.to_thread(model_item, service.catalog, folder, name)
    except (ValueError, FileMissingError, ModelFileError):
        return None
    return None


async def stats_of(service: Service, refs: Sequence[FileRef]) -> list[FileStat | None]:
    """Return the files' stats in the store, None for missing files."""
    room = asyncio.Semaphore(STATS)

    async def one(ref: FileRef) -> FileStat | None:
        async with room:
            try:
                return await service.stat(ref)
            except FileMissingError:
                return None

    return list(await asyncio.gather(*map(one, refs)))


def item_of(asset: Asset, at_s: float | None = None) -> AssetItem:
    """Return a record as it is listed. at_s: when it was created, if not with the record."""
    tags = tuple(dict.fromkeys((asset.area, *asset.tags)))
    changed_s = asset.created_s if at_s is None else at_s
    return AssetItem(asset.asset_id, asset.area, asset.path, tags, asset.size, changed_s, asset)


def model_item(catalog: Catalog, folder: str, name: str) -> AssetItem:
    """Return a model; one that is several files has no size."""
    size, changed_s = None, 0.0
    try:
        stat = catalog.stat(folder, name)
        size, changed_s = stat.size, stat.modified_s
    except ModelFileError:
        pass
    # The page of today finds a model's folder by the last of the tags, an older one by that before it.
    tags = (MODELS, folder, f"model_type:{folder}")
    return AssetItem(file_id(MODELS, f"{folder}/{name}"), MODELS, name, tags, size, changed_s)


def input_ref(path: str) -> FileRef:
    """Return the file of the input area that has a path."""
    subfolder, _, filename = path.rpartition("/")
    return FileRef("input", subfolder, filename)


def file_id(kind: str, path: str) -> str:
    """Return the id of an asset without a record."""
    return f"{kind}.{base64.urlsafe_b64encode(path.encode()).decode().rstrip('=')}"


def shape(item: AssetItem) -> dict[str, Any]:
    """Return an asset as the page reads it, without its hash: the page would name files by it."""
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


def asset_missing(asset_id: str) -> AssetRefusedError:
    """Return the error for an id that no asset has."""
    return AssetRefusedError(404, "ASSET_NOT_FOUND", f"no asset has the id {short_repr(asset_id)}")


def refusal_response(error: AssetRefusedError) -> Response:
    """Return the answer to a refused request."""
    return JsonResponse({"error": {"code": error.code, "message": str(error), "details": {}}}, error.status_code)
