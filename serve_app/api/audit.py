"""Writing the audit log: each entry is a line of the log at once, and in the database within a few seconds.

Requests do not wait for it. While the database is away the newest entries are kept, and how many were not is told.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import secrets
import time
from collections import deque
from collections.abc import Callable
from dataclasses import asdict

from serve_app import log
from serve_app.api.principal import Principal
from serve_app.errors import ServeAppError
from serve_app.service import Service
from serve_app.store.audit import AuditEntry, WriteAudit

EVERY_S = 1.0
WAITING = 5000
"""Entries that wait for the database at most."""
DAY_S = 86_400.0
_log = log.get("audit")


class AuditLog:
    """One a process. days: how long entries are kept."""

    def __init__(self, service: Callable[[], Service], days: float) -> None:
        self._service = service
        self._kept_s = days * DAY_S
        self._ingress = secrets.token_hex(8)
        self._number = 0
        self._waiting: deque[AuditEntry] = deque()
        self._writing: asyncio.Task[None] | None = None

    def note(self, who: Principal, what: str, source: str, result: int, reason: str = "") -> None:
        """Write an entry."""
        self._number += 1
        name, at_s = who.name[:200], time.time()
        entry = AuditEntry(
            at_s, self._ingress, self._number, who.tenant, name, what[:500], source, result, reason[:500]
        )
        told = {key: value for key, value in asdict(entry).items() if key not in ("ingress", "number")}
        _log.info("%s", json.dumps(told, ensure_ascii=False))
        self._waiting.append(entry)
        if len(self._waiting) > WAITING:
            self._waiting.popleft()
        if self._writing is None or self._writing.done():
            self._writing = asyncio.create_task(self._write())

    async def close(self) -> None:
        """Write what waits, if the database takes it, and stop."""
        if self._writing is not None:
            self._writing.cancel()
            await asyncio.gather(self._writing, return_exceptions=True)
        with contextlib.suppress(ServeAppError):
            await self._put()

    async def _write(self) -> None:
        """Write what waits, until nothing does."""
        while self._waiting:
            await asyncio.sleep(EVERY_S)
            try:
                await self._put()
            except ServeAppError as error:
                _log.warning("the audit log waits: %s", error)

    async def _put(self) -> None:
        entries = tuple(self._waiting)
        await self._service().inquire(WriteAudit(entries, time.time() - self._kept_s))
        written = {entry.number for entry in entries}
        self._waiting = deque(entry for entry in self._waiting if entry.number not in written)
