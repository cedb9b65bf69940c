"""The lists of the web page's assets: outputs of ended jobs, files of the input area, model files.

Each is the newest first or by name, and is read stretch by stretch; where one list ends the next begins.
"""

from __future__ import annotations

import asyncio
import base64
import binascii
import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from serve_app.api.content import content_type
from serve_app.api.shown_outputs import Shown, shown_by
from serve_app.errors import FileMissingError, ModelFileError, shown
from serve_app.service import Service
from serve_app.store.assets import FOLDER, Asset, OutputsOf, RecordOutputs
from serve_app.store.atomic_write import UNFINISHED
from serve_app.store.catalog import FOLDERS, GGUF, Catalog
from serve_app.store.gallery import EndedOutputs, Uploads, UploadsEnd
from serve_app.store.store import FileRef, FileStat, Store
from serve_app.store.tenants import MARK

STATS = 16
"""Files that are looked at in the store at once for one answer."""
OUTPUT_TAGS = ("output", "temp")
MODELS, INPUT = "models", "input"


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


async def next_stretch(service: Service, wanted: Wanted, limit: int, source: str, cursor: str) -> Stretch:
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
    return Stretch([item_of(asset, ends[asset.job_id or ""]) for asset in assets], following)


async def _uploads(service: Service, limit: int, cursor: str) -> Stretch:
    """Return uploads of v2."""
    found = await service.inquire(Uploads(limit + 1, UploadsEnd(*_decoded(cursor)) if cursor else None))
    last = found[limit - 1] if len(found) > limit else None
    following = None if last is None else _encoded([last.created_s, last.asset_id])
    return Stretch([item_of(asset) for asset in found[:limit]], following)


async def _inputs(service: Service, limit: int, cursor: str) -> Stretch:
    """Return files of the input area that are no records, the newest first."""
    files = await asyncio.to_thread(_input_files, service.store)
    if cursor:
        changed_s, path = _decoded(cursor)
        files = [one for one in files if (-one[0], one[1]) > (-float(changed_s), str(path))]
    some = files[:limit]
    stats = await _stats(service, [input_ref(path) for _, path in some])
    items = [
        Item(file_id(INPUT, path), INPUT, path, (INPUT,), stat.size, stat.modified_s)
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
    items = [model_item(catalog, folder, name) for folder, name in left[:limit]]
    return Stretch(items, _encoded(list(left[limit - 1])) if len(left) > limit else None)


def model_item(catalog: Catalog, folder: str, name: str) -> Item:
    """Return a model; one that is several files has no size."""
    size, changed_s = None, 0.0
    try:
        stat = catalog.stat(folder, name)
        size, changed_s = stat.size, stat.modified_s
    except ModelFileError:
        pass
    return Item(file_id(MODELS, f"{folder}/{name}"), MODELS, name, (MODELS, folder), size, changed_s)


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


# Items ----------------------------------------------------------------------------------------------------------------


def _record(item: Shown, job_id: str, ended_s: float, stat: FileStat) -> Asset:
    """Return an output as an asset that nobody has read for its hash."""
    path = item.ref.path
    type_ = content_type(item.ref.filename)
    kept = (item.asset_id, None, item.ref.area, path, stat.size, type_, path, (), ended_s)
    return Asset(*kept, job_id=job_id, node_id=item.node_id)


def item_of(asset: Asset, at_s: float | None = None) -> Item:
    tags = tuple(dict.fromkeys((asset.area, *asset.tags)))
    changed_s = asset.created_s if at_s is None else at_s
    return Item(asset.asset_id, asset.area, asset.path, tags, asset.size, changed_s, asset)


def input_ref(path: str) -> FileRef:
    subfolder, _, filename = path.rpartition("/")
    return FileRef("input", subfolder, filename)


def file_id(kind: str, path: str) -> str:
    return f"{kind}.{base64.urlsafe_b64encode(path.encode()).decode().rstrip('=')}"


def _encoded(place: Sequence[Any]) -> str:
    return base64.urlsafe_b64encode(json.dumps(place).encode()).decode().rstrip("=")


def _decoded(cursor: str) -> Sequence[Any]:
    """Return the two values of a cursor. Errors: ValueError."""
    place = json.loads(base64.urlsafe_b64decode(cursor + "=" * (-len(cursor) % 4)))
    if not isinstance(place, list) or len(place) != 2 or not isinstance(place[1], str):
        raise ValueError("a cursor is of two values")
    return place
