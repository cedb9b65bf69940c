"""The files of the input area, the newest first: read from the store for a list's first page, cached for the others.

For each tenant one thread at a time reads the store; requests that arrive meanwhile share the next read. So a tenant
uses one thread, however many requests it makes and files it has.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from typing import TypeAlias
from weakref import WeakKeyDictionary

from serve_app.service.service import Service
from serve_app.store.files.atomic_write import UNFINISHED
from serve_app.store.files.store import Store
from serve_app.store.page.assets import FOLDER
from serve_app.store.tenants.tenants import MARK

KEPT_S = 30.0
"""How long a list is cached for its later pages."""
KEPT = 20_000
"""Longer lists are not cached, and are read again for each page."""

Files: TypeAlias = Sequence[tuple[float, str]]
"""When files changed, Unix time, and their paths."""


async def input_files(service: Service, *, anew: bool) -> Files:
    """Return a tenant's input files without v2's own; cached ones unless `anew`."""
    return await _READINGS.setdefault(service, _Reading(service.store)).files(anew=anew)


class _Reading:
    """The cached list of one tenant's files, and the read in progress."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._one = asyncio.Lock()
        self._begun_s = float("-inf")
        self._files: Files | None = None

    async def files(self, *, anew: bool) -> Files:
        asked_s = time.monotonic()
        async with self._one:
            recent = self._begun_s >= (asked_s if anew else asked_s - KEPT_S)
            if self._files is not None and recent:
                return self._files
            self._files, self._begun_s = None, time.monotonic()
            found = await asyncio.to_thread(_read, self._store)
            if len(found) <= KEPT:
                self._files = found
                asyncio.get_running_loop().call_later(KEPT_S, self._forget, found)
            return found

    def _forget(self, files: Files) -> None:
        if self._files is files:
            self._files = None


_READINGS: WeakKeyDictionary[Service, _Reading] = WeakKeyDictionary()


def _read(store: Store) -> Files:
    found = []
    for ref, changed_s in store.files("input"):
        hidden = ref.filename.endswith(UNFINISHED) or ref.filename.startswith(".")
        if not hidden and ref.subfolder != FOLDER and not ref.subfolder.startswith(MARK):
            found.append((changed_s, ref.path))
    return sorted(found, key=lambda one: (-one[0], one[1]))
