"""Hashes of large outputs, computed one after another in a thread of their own, after their jobs were shown."""

from __future__ import annotations

import asyncio
import contextlib
import time
from concurrent.futures import ThreadPoolExecutor

from serve_app import log
from serve_app.errors import ServeAppError
from serve_app.service import Service
from serve_app.store.assets import Asset, SetHash
from serve_app.store.blobs import FilePieces, content_hash

WAITING = 1000
"""How many may wait; of more a client sees the hash once it looks again later."""
LONGEST_S = 1800.0
"""How long one may take: a store may be slow without end."""
_log = log.get("api")


class LateHashes:
    """One an application. Another replica may compute the same hash; that is no harm."""

    def __init__(self) -> None:
        self._thread = ThreadPoolExecutor(1, "late-hashes")
        self._under_way: dict[str, asyncio.Task[None]] = {}

    def begin(self, service: Service, asset: Asset) -> None:
        """Let an asset come to have its hash, unless that is under way."""
        if asset.asset_id not in self._under_way and len(self._under_way) < WAITING:
            work = asyncio.create_task(self._compute(service, asset))
            self._under_way[asset.asset_id] = work
            work.add_done_callback(lambda _: self._under_way.pop(asset.asset_id, None))

    async def _compute(self, service: Service, asset: Asset) -> None:
        def read() -> str:
            until_s = time.monotonic() + LONGEST_S
            with service.store.open(asset.ref) as file:
                return content_hash(FilePieces(file, lambda: time.monotonic() > until_s))[0]

        try:
            found = await asyncio.get_running_loop().run_in_executor(self._thread, read)
            with contextlib.suppress(ServeAppError):  # it is computed again when somebody looks
                await service.inquire(SetHash(asset.asset_id, found))
        except (ServeAppError, OSError) as error:
            _log.warning("output %s has no hash: %s", asset.path, error)
