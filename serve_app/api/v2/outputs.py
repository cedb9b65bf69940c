"""What jobs show, as assets: each file and each text that an output node names, whatever it calls it.

An output becomes an asset when a client of v2 first sees it. Its id says which it is, so that whoever makes it makes
the same.
"""

from __future__ import annotations

import asyncio
import io
import json
import time
import uuid
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from starlette.requests import Request

from serve_app.api.content import content_type, kind
from serve_app.api.v2.late_hashes import LateHashes
from serve_app.api.v2.shapes import output_shape
from serve_app.errors import FileMissingError
from serve_app.service import Service
from serve_app.store.assets import FOLDER, Asset, OutputsOf, RecordOutputs
from serve_app.store.blobs import FilePieces, content_hash
from serve_app.store.store import AREAS, FileRef, Store

HASHED_BYTES = 32 * 1024 * 1024
"""Larger outputs are shown without their hash at first: who asks does not wait until they are read."""
FLAGS = frozenset({"animated"})
"""What nodes say of their files beside them, and is none itself."""

_IDS = uuid.UUID("6b0f2f0e-6f53-4a55-9d5b-6a4f0c1f7d2e")
"""The namespace of outputs' ids."""


@dataclass(frozen=True, slots=True)
class _Shown:
    """One thing that a node shows: a file, or a text."""

    asset_id: str
    node_id: str
    ref: FileRef
    text: str | None


async def outputs_of(
    request: Request, service: Service, job_id: str, outputs: Mapping[str, Mapping[str, Any]]
) -> list[dict[str, Any]]:
    """Return what nodes of a job have shown, without what its client has deleted. outputs: ui dict by node id."""
    items = [item for node_id, ui in outputs.items() for item in _items(job_id, node_id, ui)]
    if not items:
        return []
    kept = await service.inquire(OutputsOf(job_id))
    new = [item for item in items if item.asset_id not in kept]
    made = await asyncio.to_thread(lambda: [_asset(service.store, job_id, item) for item in new])
    if made:
        await service.inquire(RecordOutputs(tuple(made)))
    there = {asset.asset_id: asset for asset in made}
    there |= {asset_id: asset for asset_id, (asset, deleted) in kept.items() if not deleted}
    for asset in there.values():
        if asset.hash is None and asset.size > HASHED_BYTES:
            late_hashes(request).begin(service, asset)
    return [output_shape(there[i.asset_id], _type(i), request) for i in items if i.asset_id in there]


def late_hashes(request: Request) -> LateHashes:
    """Return what computes hashes for the application."""
    state = request.app.state
    if not hasattr(state, "late_hashes"):
        state.late_hashes = LateHashes()
    found: LateHashes = state.late_hashes
    return found


def _items(job_id: str, node_id: str, ui: Mapping[str, Any]) -> Iterator[_Shown]:
    for key, values in ui.items():
        if key in FLAGS:
            continue
        for place, value in enumerate(values if isinstance(values, list | tuple) else [values]):
            if value is None or isinstance(value, bool):
                continue
            asset_id = str(uuid.uuid5(_IDS, json.dumps([job_id, node_id, key, place])))
            if (ref := _file(value)) is not None:
                yield _Shown(asset_id, node_id, ref, None)
            else:
                text = value if isinstance(value, str) else json.dumps(value)
                yield _Shown(asset_id, node_id, FileRef("output", FOLDER, f"{asset_id}.txt"), text)


def _file(value: Any) -> FileRef | None:
    """Return the file that a value names, or None."""
    if not isinstance(value, Mapping) or not isinstance(value.get("filename"), str):
        return None
    area = next((known for known in AREAS if known == value.get("type", "output")), None)
    if area is None:
        return None
    subfolder, _, filename = f"{value.get('subfolder') or ''}/{value['filename']}".lstrip("/").rpartition("/")
    ref = FileRef(area, subfolder, filename)
    try:
        _ = ref.path
    except FileMissingError:
        return None
    return ref


def _asset(store: Store, job_id: str, item: _Shown) -> Asset:
    """Return an output as an asset; one whose file is gone has no bytes."""
    hash_, size = None, 0
    if item.text is not None:
        text = item.text.encode(errors="replace")
        store.write(item.ref, text)
        hash_, size = content_hash(FilePieces(io.BytesIO(text)))
    else:
        try:
            size = store.stat(item.ref).size
            if size <= HASHED_BYTES:
                with store.open(item.ref) as file:
                    hash_, size = content_hash(FilePieces(file))
        except FileMissingError:
            pass
    path, type_ = item.ref.path, content_type(item.ref.filename)
    return Asset(
        *(item.asset_id, hash_, item.ref.area, path, size, type_, path, (), time.time()),
        job_id=job_id,
        node_id=item.node_id,
    )


def _type(item: _Shown) -> str:
    """Return v2's word for a kind of output."""
    if item.text is not None:
        return "text"
    if item.ref.filename.lower().endswith(".latent"):
        return "latent"
    found = kind(item.ref.filename)
    return found if found in ("image", "video", "audio", "text") else "file"
