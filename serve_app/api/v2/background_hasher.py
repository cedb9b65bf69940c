"""Computes hashes of large outputs in the background, one after another in a thread.

Tenants take turns, so that one with many large outputs does not delay the others.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections import OrderedDict
from concurrent.futures import ThreadPoolExecutor

from serve_app import log
from serve_app.errors import ServeAppError
from serve_app.service.service import Service
from serve_app.store.files.blobs import FilePieces, content_hash
from serve_app.store.page.assets import Asset, SetHash

WAITING = 1000
"""How many files of a tenant may wait; further ones are queued when a client reads them again."""
LONGEST_S = 1800.0
"""The timeout for one file."""
_log = log.get("api")


class BackgroundHasher:
    """The background hasher of an application; another replica may compute the same hash, which is harmless.

    looks: how many requests may hash a job's small outputs at once: the semaphore `looking`.
    """

    def __init__(self, looks: int) -> None:
        self.looking = asyncio.Semaphore(looks)
        self._thread = ThreadPoolExecutor(1, "late-hashes")
        self._waiting: OrderedDict[str, dict[str, tuple[Service, Asset]]] = OrderedDict()
        self._under_way: str | None = None
        self._working: asyncio.Task[None] | None = None

    def begin(self, service: Service, asset: Asset) -> None:
        """Queue an asset for hashing, unless it is queued."""
        if asset.asset_id == self._under_way:
            return
        own = self._waiting.setdefault(service.tenant, {})
        if len(own) < WAITING:
            own.setdefault(asset.asset_id, (service, asset))
        if self._working is None or self._working.done():
            self._working = asyncio.create_task(self._work())

    async def _work(self) -> None:
        while self._waiting:
            tenant, own = self._waiting.popitem(last=False)
            self._under_way = next(iter(own))
            service, asset = own.pop(self._under_way)
            if own:
                self._waiting[tenant] = own
            await self._compute(service, asset)
            self._under_way = None

    async def _compute(self, service: Service, asset: Asset) -> None:
        def read() -> str:
            until_s = time.monotonic() + LONGEST_S
            with service.store.open(asset.ref) as file:
                return content_hash(FilePieces(file, lambda: time.monotonic() > until_s))[0]

        try:
            found = await asyncio.get_running_loop().run_in_executor(self._thread, read)
            with contextlib.suppress(ServeAppError):  # it is queued again at the next read
                await service.query(SetHash(asset.asset_id, found))
        except Exception as error:
            _log.warning("output %s has no hash: %r", asset.path, error)
