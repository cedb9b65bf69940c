"""Routes to download many assets as one ZIP file: begin an export, poll its state, get its URL, download.

An export is complete as soon as it is begun: it is a list of files, and the archive is made while it is sent. The
request does not name its client, so no websocket event follows; the page polls after ten seconds. Source: the calls of
comfyui-frontend-package 1.58.1 and the answers that they accept.
"""

from __future__ import annotations

import asyncio
import re
import threading
import time
import uuid
from collections.abc import AsyncIterator, Generator, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import PurePosixPath
from typing import Any

from starlette.requests import Request
from starlette.responses import Response, StreamingResponse

from serve_app.api.comfy.assets.items import MODELS, OUTPUT_TAGS, AssetItem, AssetRefusedError, find_items, item_of
from serve_app.api.comfy.assets.lists import assets_of, output_files
from serve_app.api.comfy.body import read_members, too_many_ids
from serve_app.api.files.content import DISARMED
from serve_app.api.request import Current
from serve_app.api.routing import Routes
from serve_app.api.strict_json import JsonResponse
from serve_app.errors import short_repr
from serve_app.service.service import Service
from serve_app.service.submissions import is_job_id
from serve_app.store.files.archive import ArchiveMember, zipped
from serve_app.store.page.assets import BATCH
from serve_app.store.page.exports import Export, FindExport, KeepExport
from serve_app.store.page.gallery import JobOutputs

router = Routes()

FILES = 5000
"""The most files of one export."""
STRATEGIES = ("group_by_job_time", "group_by_job_id", "preserve", "asset_id")
"""How files are named in the archive; the first is the default."""
UNIQUE, UNPLACED = " ({})", "unknown"

_NAME = re.compile(r"comfyui-[0-9]{4}-[0-9]{2}-[0-9]{2}-(?P<export_id>[0-9a-f-]{36})\.zip")


@dataclass(frozen=True, slots=True)
class ExportRequest:
    """A request for an export. names: the wanted files of a job; previews: whether temporary files are wanted."""

    job_ids: tuple[str, ...]
    asset_ids: tuple[str, ...]
    strategy: str
    names: Mapping[str, frozenset[str]]
    previews: bool


class ExportedAsset:
    """An asset of an export. job_s: Unix time of its job's creation."""

    def __init__(self, item: AssetItem, job_s: float | None = None) -> None:
        self.item, self.job_s = item, job_s
        self.job_id = item.record.job_id if item.record is not None else None


# Routes ---------------------------------------------------------------------------------------------------------------


@router.post("/assets/export")
async def post_export(request: Request, service: Current) -> Response:
    """Begin an export of assets, by their ids and by those of their jobs."""
    wish = _wish(await read_members(request, service.limits.command), service.limits.ids)
    found, absent = await _find(service, wish)
    export = Export(str(uuid.uuid4()), time.time(), tuple(_members(found, wish.strategy)), tuple(absent))
    await service.query(KeepExport(export))
    return JsonResponse(
        {"task_id": export.export_id, "status": "created", "message": "ask /api/tasks how it stands"}, 202
    )


@router.read("/tasks/{task_id}")
async def get_task(request: Request, service: Current) -> Response:
    """Show the state of an export."""
    export = await _kept(service, request.path_params["task_id"])
    if export is None:
        raise AssetRefusedError(
            404, "TASK_NOT_FOUND", f"no task has the id {short_repr(request.path_params['task_id'])}"
        )
    moment = _moment(export)
    times = dict.fromkeys(("create_time", "update_time", "started_at", "completed_at"), moment)
    result = {
        "success": True,
        "export_name": _name(export),
        "uncompressed_size": sum(member.size for member in export.members),
        "assets_total": len(export.members),
        "assets_succeeded": len(export.members),
        "assets_failed": len(export.missing),
        "failed_assets": [{"asset_id": asset_id, "error": "not_found"} for asset_id in export.missing],
    }
    what = {"id": export.export_id, "idempotency_key": export.export_id, "task_name": "task:export", "payload": {}}
    return JsonResponse({**what, "status": "completed", **times, "result": result})


@router.read("/assets/exports/{name}")
async def get_place(request: Request, service: Current) -> Response:
    """Return the URL of an export."""
    export = await _named(service, request.path_params["name"])
    return JsonResponse({"url": f"/api/assets/exports/{_name(export)}/content"})


@router.read("/assets/exports/{name}/content")
async def get_archive(request: Request, service: Current) -> Response:
    """Return an export as a ZIP file, made while it is sent; its length is not known before."""
    export = await _named(service, request.path_params["name"])
    headers = {
        "Content-Type": "application/zip",
        "Content-Disposition": f'attachment; filename="{_name(export)}"',
        "Cache-Control": "no-store",
        **DISARMED,
    }
    if request.method == "HEAD":
        return Response(headers=headers)
    return StreamingResponse(_read_in_threads(zipped(service.store, export.members)), headers=headers)


# Parsing -------------------------------------------------------------------------------------------------------------


def _wish(members: Mapping[str, Any], most: int) -> ExportRequest:
    """Parse a request's body. Errors: AssetRefusedError."""

    def ids(key: str) -> tuple[str, ...]:
        given = members.get(key)
        if given is None:
            return ()
        if not isinstance(given, list) or not all(isinstance(one, str) for one in given):
            raise _invalid(f"{key} must be a list of ids, not {short_repr(given)}")
        if len(given) > most:
            raise _invalid(str(too_many_ids(key, len(given), most)))
        return tuple(dict.fromkeys(given))

    job_ids, asset_ids = ids("job_ids"), ids("asset_ids")
    if bad := [job_id for job_id in job_ids if not is_job_id(job_id)]:
        raise _invalid(f"job_ids must be UUIDs, not {short_repr(bad[0])}")
    if not job_ids and not asset_ids:
        raise _invalid("job_ids or asset_ids must name what is to be exported")
    strategy = members.get("naming_strategy", STRATEGIES[0])
    if strategy not in STRATEGIES:
        raise _invalid(f"naming_strategy must be one of {', '.join(STRATEGIES)}, not {short_repr(strategy)}")
    names = members.get("job_asset_name_filters", {})
    if not isinstance(names, dict) or not all(
        isinstance(wanted, list) and wanted and all(isinstance(name, str) for name in wanted)
        for wanted in names.values()
    ):
        raise _invalid(f"job_asset_name_filters must be lists of names by job id, not {short_repr(names)}")
    previews = members.get("include_previews", False)
    if not isinstance(previews, bool):
        raise _invalid(f"include_previews must be true or false, not {short_repr(previews)}")
    return ExportRequest(
        job_ids, asset_ids, strategy, {key: frozenset(wanted) for key, wanted in names.items()}, previews
    )


async def _find(service: Service, wish: ExportRequest) -> tuple[list[ExportedAsset], list[str]]:
    """Return the assets that exist, each once, and the unknown ids. Errors: AssetRefusedError."""
    found, absent = await _of_jobs(service, wish)
    items = await find_items(service, (asset_id for asset_id in wish.asset_ids if asset_id not in found))
    for asset_id in wish.asset_ids:
        if (item := items.get(asset_id)) is not None:
            if item.area == MODELS:
                raise AssetRefusedError(
                    403, "MODEL_NOT_EXPORTABLE", "model files are listed only: they are not given out"
                )
            found[asset_id] = ExportedAsset(item)
        elif asset_id not in found:
            absent.append(asset_id)
    if len(found) > FILES:
        raise AssetRefusedError(400, "TOO_MANY_ASSETS", f"these are {len(found)} files; an export may have {FILES}")
    if not found:
        raise AssetRefusedError(404, "ASSET_NOT_FOUND", "nothing of what is to be exported is there")
    return list(found.values()), absent


async def _of_jobs(service: Service, wish: ExportRequest) -> tuple[dict[str, ExportedAsset], list[str]]:
    """Return the assets of the jobs by id, and the unknown jobs. Errors: AssetRefusedError."""
    found: dict[str, ExportedAsset] = {}
    known: set[str] = set()
    left = wish.job_ids
    while left:
        jobs, asked = await service.query(JobOutputs(left[:BATCH]))
        left = left[asked:]
        known.update(job.job_id for job in jobs)
        created = {job.job_id: job.created_s for job in jobs}
        files = [file for job in jobs for file in output_files(service, *job)]
        if len(files) > FILES:
            raise AssetRefusedError(
                400, "TOO_MANY_ASSETS", f"the jobs show {len(files)} files; an export may have {FILES}"
            )
        for asset in await assets_of(service, files):
            wanted = wish.names.get(asset.job_id or "")
            shown_as = {asset.path, asset.ref.filename}
            if (wish.previews or asset.area == OUTPUT_TAGS[0]) and (wanted is None or wanted & shown_as):
                found[asset.asset_id] = ExportedAsset(item_of(asset), created[asset.job_id or ""])
    return found, [job_id for job_id in wish.job_ids if job_id not in known]


# The archive ----------------------------------------------------------------------------------------------------------


def _members(found: Sequence[ExportedAsset], strategy: str) -> Iterator[ArchiveMember]:
    """Yield the archive's members. Of two files with one name the second gets a number."""
    used: set[str] = set()
    folders: dict[str | None, str] = {}
    for one in found:
        item = one.item
        folder = ""
        if strategy == "group_by_job_id":
            folder = one.job_id or UNPLACED
        elif strategy == "group_by_job_time":
            if one.job_id not in folders:
                moment = datetime.fromtimestamp(one.job_s or item.changed_s, UTC)
                folders[one.job_id] = _unused(f"{moment:%Y-%m-%dT%H-%M-%S}", set(folders.values()))
            folder = folders[one.job_id]
        if folder and item.area == OUTPUT_TAGS[1]:
            folder += "/previews"
        named = PurePosixPath(item.name)
        path = f"{item.asset_id}{named.suffix}" if strategy == "asset_id" else str(PurePosixPath(folder) / named)
        used.add(name := _unused(path, used))
        yield ArchiveMember(item.ref, name, item.size or 0, item.changed_s)


def _unused(path: str, used: set[str]) -> str:
    """Return a path, with a number in its name if it is used."""
    place, name, count = PurePosixPath(path), path, 1
    while name in used:
        count += 1
        name = str(place.with_name(f"{place.stem} ({count}){place.suffix}"))
    return name


async def _read_in_threads(pieces: Generator[bytes]) -> AsyncIterator[bytes]:
    """Iterate over a blocking generator in a thread; close it whatever happens."""
    running = threading.Lock()

    def following() -> bytes | None:
        with running:
            return next(pieces, None)

    def end() -> None:
        with running:
            pieces.close()

    try:
        while (piece := await asyncio.to_thread(following)) is not None:
            yield piece
    finally:
        # A disconnect cancels this, but not a thread that is still reading: it is not awaited here.
        asyncio.get_running_loop().run_in_executor(None, end)


async def _kept(service: Service, export_id: str) -> Export | None:
    return await service.query(FindExport(export_id)) if is_job_id(export_id) else None


async def _named(service: Service, name: str) -> Export:
    """Return the export of that name. Errors: AssetRefusedError 404."""
    named = _NAME.fullmatch(name)
    export = None if named is None else await _kept(service, named["export_id"])
    if export is None or _name(export) != name:
        raise AssetRefusedError(
            404, "EXPORT_NOT_FOUND", f"no export has the name {short_repr(name)}, or none has it any more"
        )
    return export


def _name(export: Export) -> str:
    return f"comfyui-{_moment(export)[:10]}-{export.export_id}.zip"


def _moment(export: Export) -> str:
    return datetime.fromtimestamp(export.created_s, UTC).isoformat().replace("+00:00", "Z")


def _invalid(message: str) -> AssetRefusedError:
    return AssetRefusedError(400, "INVALID_REQUEST", message)
