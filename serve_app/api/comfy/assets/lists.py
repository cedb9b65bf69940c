"""The lists of the web page's assets: outputs of ended jobs, files of the input area, model files.

Each is sorted by time, newest first, or by name, and is read page by page; where one list ends the next begins.
"""

from __future__ import annotations

import asyncio
import base64
import binascii
import json
from bisect import bisect_right
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from serve_app.api.comfy.assets.items import (
    INPUT,
    MODELS,
    OUTPUT_TAGS,
    AssetItem,
    AssetRefusedError,
    file_id,
    input_ref,
    item_of,
    model_item,
    stats_of,
)
from serve_app.api.comfy.files.input_files import input_files
from serve_app.api.files.content import content_type
from serve_app.api.files.node_outputs import OutputItem, output_items
from serve_app.errors import short_repr
from serve_app.service.service import Service
from serve_app.store.files.store import FileStat
from serve_app.store.models.catalog import FOLDERS, GGUF, Catalog
from serve_app.store.page.assets import Asset, OutputsOf, RecordOutputs
from serve_app.store.page.gallery import EndedOutputs, Uploads, UploadsEnd


class OutputFile(NamedTuple):
    """An output file of a job. at_s: when the job ended, else when it was created."""

    item: OutputItem
    job_id: str
    at_s: float


class Page(NamedTuple):
    """A page of a list, and the cursor of the next page; None at the end."""

    items: Sequence[AssetItem]
    following: str | None


@dataclass(frozen=True, slots=True)
class AssetFilter:
    """Which assets to list: those with all, any and none of some tags, whose name contains a text."""

    all: frozenset[str]
    any: frozenset[str]
    none: frozenset[str]
    name: str
    hash: str

    def fits(self, tags: Sequence[str], name: str) -> bool:
        """Whether an asset passes the filter."""
        own = set(tags)
        return self.all <= own and (not self.any or bool(self.any & own)) and not self.none & own and self._named(name)

    def may_hold(self, *kinds: str) -> bool:
        """Whether assets of these kinds can pass the filter: clients cannot choose their first tags."""
        fixed = {*OUTPUT_TAGS, INPUT, MODELS}
        asked = self.all & fixed
        return asked <= set(kinds) and (not (self.any and self.any <= fixed) or bool(self.any & set(kinds)))

    def _named(self, name: str) -> bool:
        return self.name.lower() in name.lower()


async def next_page(service: Service, wanted: AssetFilter, limit: int, source: str, cursor: str) -> Page:
    """Return the next page of the assets that pass a filter. source: the list that it is in, "" for the first."""
    lists = [name for name, kinds, _ in SOURCES if wanted.may_hold(*kinds)]
    if not lists or wanted.hash:  # assets are shown without their hashes
        return Page((), None)
    if (source or lists[0]) not in lists:
        raise AssetRefusedError(400, "INVALID_CURSOR", f"after={short_repr(source)} is no cursor of this list")
    source = source or lists[0]
    read = next(read for name, _, read in SOURCES if name == source)
    try:
        found = await read(service, limit, cursor)
    except (ValueError, TypeError, binascii.Error) as error:
        raise AssetRefusedError(
            400, "INVALID_CURSOR", f"after={short_repr(cursor)} is no cursor of this list"
        ) from error
    following = None if found.following is None else f"{source}.{found.following}"
    later = lists[lists.index(source) + 1 :]
    if following is None and later:
        following = f"{later[0]}."
    return Page([item for item in found.items if wanted.fits(item.tags, item.path)], following)


async def _outputs(service: Service, limit: int, cursor: str) -> Page:
    """Return outputs of ended jobs as records, without deleted or missing ones. cursor: PLACE-SKIPPED."""
    until, skip = map(int, cursor.split("-")) if cursor else (None, 0)
    jobs, place = await service.query(EndedOutputs(limit, until))
    listed: list[OutputFile] = []
    following = None if place is None else f"{place}-0"
    for job in jobs:
        files = output_files(service, job.job_id, job.ended_s, job.outputs)
        start = skip if job.place == until else 0
        room = limit - len(listed)
        listed += files[start : start + room]
        if len(files) > start + room:
            following = f"{job.place}-{start + room}"
            break
    assets = await assets_of(service, listed)
    ends = {job.job_id: job.ended_s for job in jobs}
    return Page([item_of(asset, ends[asset.job_id or ""]) for asset in assets], following)


async def assets_of(service: Service, outputs: Sequence[OutputFile]) -> list[Asset]:
    """Return outputs of at most BATCH jobs as records, and store those; without deleted or missing ones."""
    kept = await service.query(OutputsOf(tuple(dict.fromkeys(output.job_id for output in outputs))))
    outputs = [output._replace(item=output.item.with_stored_id(kept)) for output in outputs]
    left = [o for o in outputs if o.item.asset_id not in kept or not kept[o.item.asset_id].deleted]
    stats = await stats_of(service, [output.item.ref for output in left])
    assets = [
        kept[output.item.asset_id].asset if output.item.asset_id in kept else _record(output, stat)
        for output, stat in zip(left, stats, strict=True)
        if stat is not None
    ]
    if new := tuple(asset for asset in assets if asset.asset_id not in kept):
        await service.query(RecordOutputs(new))
    return assets


async def _uploads(service: Service, limit: int, cursor: str) -> Page:
    """Return uploads of v2."""
    found = await service.query(Uploads(limit + 1, UploadsEnd(*_decoded(cursor)) if cursor else None))
    last = found[limit - 1] if len(found) > limit else None
    following = None if last is None else _encoded([last.created_s, last.asset_id])
    return Page([item_of(asset) for asset in found[:limit]], following)


async def _inputs(service: Service, limit: int, cursor: str) -> Page:
    """Return files of the input area without a record, the newest first."""
    files = await input_files(service, anew=not cursor)
    if cursor:
        changed_s, path = _decoded(cursor)
        files = files[bisect_right(files, (-float(changed_s), str(path)), key=lambda one: (-one[0], one[1])) :]
    some = files[:limit]
    stats = await stats_of(service, [input_ref(path) for _, path in some])
    items = [
        AssetItem(file_id(INPUT, path), INPUT, path, (INPUT,), stat.size, stat.modified_s)
        for (_, path), stat in zip(some, stats, strict=True)
        if stat is not None
    ]
    return Page(items, _encoded(list(some[-1])) if len(files) > limit else None)


async def _models(service: Service, limit: int, cursor: str) -> Page:
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
"""The lists in their order, the kinds of assets in each, and the function that reads a page."""


def _model_items(catalog: Catalog, limit: int, past: tuple[str, ...]) -> Page:
    names = [
        (folder, name)
        for folder in FOLDERS
        for name in catalog.names(folder)
        if folder not in GGUF or name.lower().endswith(".gguf")
    ]
    left = sorted(name for name in names if name > past)
    items = [model_item(catalog, folder, name) for folder, name in left[:limit]]
    return Page(items, _encoded(list(left[limit - 1])) if len(left) > limit else None)


# Items ----------------------------------------------------------------------------------------------------------------


def output_files(
    service: Service, job_id: str, at_s: float, outputs: Mapping[str, Mapping[str, Any]]
) -> list[OutputFile]:
    """Return a job's output files. outputs: ui dict by node id."""
    items = [item for node, ui in outputs.items() for item in output_items(job_id, service.tenant, node, ui)]
    return [OutputFile(item, job_id, at_s) for item in items if item.text is None and item.ref.area in OUTPUT_TAGS]


def _record(output: OutputFile, stat: FileStat) -> Asset:
    """Return an output as an asset whose hash is not computed."""
    item, path = output.item, output.item.ref.path
    type_ = content_type(item.ref.filename)
    kept = (item.asset_id, None, item.ref.area, path, stat.size, type_, path, (), output.at_s)
    return Asset(*kept, job_id=output.job_id, node_id=item.node_id)


def _encoded(place: Sequence[Any]) -> str:
    return base64.urlsafe_b64encode(json.dumps(place).encode()).decode().rstrip("=")


def _decoded(cursor: str) -> Sequence[Any]:
    """Return the two values of a cursor. Errors: ValueError."""
    place = json.loads(base64.urlsafe_b64decode(cursor + "=" * (-len(cursor) % 4)))
    if not isinstance(place, list) or len(place) != 2 or not isinstance(place[1], str):
        raise ValueError("a cursor is of two values")
    return place
