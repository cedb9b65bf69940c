"""Outputs of jobs as assets of v2: each file and each text of an output node, under whatever key.

An output becomes an asset when a client of v2, or the web page's gallery, first reads it.
"""

from __future__ import annotations

import asyncio
import io
import time
from collections.abc import Mapping, Sequence
from typing import Any

from starlette.requests import Request

from serve_app.api.files.content import content_type, kind
from serve_app.api.files.node_outputs import OutputItem, output_items
from serve_app.api.v2.background_hasher import BackgroundHasher
from serve_app.api.v2.shapes import output_shape
from serve_app.errors import FileMissingError
from serve_app.service.service import Service
from serve_app.store.files.blobs import FilePieces, content_hash
from serve_app.store.files.store import Store
from serve_app.store.page.assets import Asset, OutputsOf, RecordOutputs

HASHED_BYTES = 32 * 1024 * 1024
"""Outputs of up to this size are hashed when a job is first read; larger ones have no hash at first."""
LOOKS = 2
"""How many jobs' outputs are hashed at once, which leaves threads for other requests."""


async def outputs_of(
    request: Request, service: Service, job_id: str, outputs: Mapping[str, Mapping[str, Any]]
) -> list[dict[str, Any]]:
    """Return the outputs of a job's nodes, without those that its client has deleted. outputs: ui dict by node id."""
    items = [item for node_id, ui in outputs.items() for item in output_items(job_id, service.tenant, node_id, ui)]
    if not items:
        return []
    kept = await service.query(OutputsOf((job_id,)))
    items = [item.with_stored_id(kept) for item in items]
    new = [item for item in items if item.asset_id not in kept]
    made: list[Asset] = []
    if new:
        async with background_hasher(request).looking:
            made = await asyncio.to_thread(_assets, service.job_store, job_id, new)
        await service.query(RecordOutputs(tuple(made)))
    there = {asset.asset_id: asset for asset in made}
    there |= {asset_id: asset for asset_id, (asset, deleted) in kept.items() if not deleted}
    for asset in there.values():
        if asset.hash is None and asset.size:
            background_hasher(request).begin(service, asset)
    return [output_shape(there[i.asset_id], _type(i), request) for i in items if i.asset_id in there]


def background_hasher(request: Request) -> BackgroundHasher:
    """Return the application's background hasher."""
    state = request.app.state
    if not hasattr(state, "background_hasher"):
        state.background_hasher = BackgroundHasher(LOOKS)
    found: BackgroundHasher = state.background_hasher
    return found


def _assets(store: Store, job_id: str, items: Sequence[OutputItem]) -> list[Asset]:
    """Return outputs as assets, small ones with their hashes; one without a file has no bytes."""
    left = HASHED_BYTES
    found = []
    for item in items:
        hash_, size = None, 0
        if item.text is not None:
            text = item.text.encode(errors="replace")
            store.write(item.ref, text)
            hash_, size = content_hash(FilePieces(io.BytesIO(text)))
        else:
            try:
                size = store.stat(item.ref).size
                if size <= left:
                    left -= size
                    with store.open(item.ref) as file:
                        hash_, size = content_hash(FilePieces(file))
            except FileMissingError:
                pass
        path, type_ = item.ref.path, content_type(item.ref.filename)
        kept = (item.asset_id, hash_, item.ref.area, path, size, type_, path, (), time.time())
        found.append(Asset(*kept, job_id=job_id, node_id=item.node_id))
    return found


def _type(item: OutputItem) -> str:
    """Return v2's name of an output's kind."""
    if item.text is not None:
        return "text"
    if item.ref.filename.lower().endswith(".latent"):
        return "latent"
    found = kind(item.ref.filename)
    return found if found in ("image", "video", "audio", "text") else "file"
