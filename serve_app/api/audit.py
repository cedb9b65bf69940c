"""Writing the audit log: each entry is a line of the log at once, and in the database within a few seconds.

Requests do not wait for it. While the database is away the newest entries are kept, and how many were not is told.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import secrets
import time
from collections import deque
from collections.abc import Callable
from dataclasses import fields

from serve_app import log
from serve_app.api.principal import Principal
from serve_app.errors import ServeAppError
from serve_app.service import Service
from serve_app.store.audit import AuditEntry, WriteAudit

EVERY_S = 1.0
WAITING = 5000
"""Entries that wait for the database at most."""
DAY_S = 86_400.0
TOLD = tuple(each.name for each in fields(AuditEntry) if each.name not in ("ingress", "number"))
"""What of an entry its line has."""
_line = json.JSONEncoder(ensure_ascii=False).encode
_log = log.get("audit")


class AuditLog:
    """One a process. days: how long entries are kept; every_s: how often what waits is written to the database."""

    def __init__(self, service: Callable[[], Service], days: float, every_s: float = EVERY_S) -> None:
        self._service = service
        self._kept_s = days * DAY_S
        self._every_s = every_s
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
        if _log.isEnabledFor(logging.INFO):
            # Who called is always this line: looking for it would take as long as the rest.
            told = _line({key: getattr(entry, key) for key in TOLD})
            _log.handle(_log.makeRecord(_log.name, logging.INFO, __file__, 0, told, (), None))
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
            await asyncio.sleep(self._every_s)
            try:
                await self._put()
            except ServeAppError as error:
                _log.warning("the audit log waits: %s", error)

    async def _put(self) -> None:
        entries = tuple(self._waiting)
        await self._service().inquire(WriteAudit(entries, time.time() - self._kept_s))
        written = {entry.number for entry in entries}
        self._waiting = deque(entry for entry in self._waiting if entry.number not in written)
