"""The audit log's writer: each entry is logged at once, and is in the database within a few seconds.

Requests do not wait for it. While the database is away the newest entries are kept in memory. A few refusals per minute
are written for each tenant, and for unauthenticated clients together; of more only the number is written. Otherwise
refused requests could fill the database.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import secrets
import time
from collections import Counter, deque
from collections.abc import Callable
from dataclasses import fields

from serve_app import log
from serve_app.api.auth.principal import Principal
from serve_app.errors import ServeAppError
from serve_app.service.service import Service
from serve_app.store.tenants.audit import AuditEntry, WriteAudit

EVERY_S = 1.0
WAITING = 5000
"""The most entries that wait for the database."""
REFUSALS, MINUTE_S = 60, 60.0
"""How many refusals of one tenant are written per minute; unauthenticated clients count as one."""
DAY_S = 86_400.0
LOGGED_FIELDS = tuple(each.name for each in fields(AuditEntry) if each.name not in ("ingress", "number"))
"""The fields of an entry in its log line."""
_line = json.JSONEncoder(ensure_ascii=False).encode
_log = log.get("audit")


class AuditLog:
    """The audit log of a process. days: how long entries are kept; every_s: how often they are written to the
    database.
    """

    def __init__(self, service: Callable[[], Service], days: float, every_s: float = EVERY_S) -> None:
        self._service = service
        self._kept_s = days * DAY_S
        self._every_s = every_s
        self._ingress = secrets.token_hex(8)
        self._number = 0
        self._refused: Counter[str] = Counter()
        self._minute = 0
        self._waiting: deque[AuditEntry] = deque()
        self._writing: asyncio.Task[None] | None = None

    def note(self, who: Principal, what: str, source: str, result: int, reason: str = "") -> None:
        """Write an entry. result: the status of the answer; 401, 403 and 429 are refusals."""
        if result in (401, 403, 429):
            self._count_skipped_refusals()
            self._refused[who.tenant] += 1
            if self._refused[who.tenant] > REFUSALS:
                return
        self._put_in(who.tenant, who.name, what, source, result, reason)

    def _count_skipped_refusals(self) -> None:
        """At the end of a minute, write how many of its refusals were skipped."""
        if (minute := int(time.time() // MINUTE_S)) == self._minute:
            return
        refused, self._refused, self._minute = self._refused, Counter(), minute
        for tenant, count in refused.items():
            if count > REFUSALS:
                self._put_in(tenant, "", f"{count - REFUSALS} more refusals in a minute", "", 0)

    def _put_in(self, tenant: str, name: str, what: str, source: str, result: int, reason: str = "") -> None:
        self._number += 1
        entry = AuditEntry(
            time.time(), self._ingress, self._number, tenant, name[:200], what[:500], source, result, reason[:500]
        )
        if _log.isEnabledFor(logging.INFO):
            # The caller is always this line: finding it by the stack would double the cost.
            logged = {key: getattr(entry, key) for key in LOGGED_FIELDS}
            extra = {"fields": {"message": what, "audit": logged}}
            _log.handle(_log.makeRecord(_log.name, logging.INFO, __file__, 0, _line(logged), (), None, extra=extra))
        self._waiting.append(entry)
        if len(self._waiting) > WAITING:
            self._waiting.popleft()
        if self._writing is None or self._writing.done():
            self._writing = asyncio.create_task(self._write())

    async def close(self) -> None:
        """Write the waiting entries, if the database is available, and stop."""
        self._minute = 0
        self._count_skipped_refusals()
        if self._writing is not None:
            self._writing.cancel()
            await asyncio.gather(self._writing, return_exceptions=True)
        with contextlib.suppress(ServeAppError):
            await self._put()

    async def _write(self) -> None:
        """Write the waiting entries, until none are left and all skipped refusals are counted."""
        while self._waiting or any(count > REFUSALS for count in self._refused.values()):
            await asyncio.sleep(self._every_s)
            self._count_skipped_refusals()
            if not self._waiting:
                continue
            try:
                await self._put()
            except ServeAppError as error:
                _log.warning("the audit log waits: %s", error)

    async def _put(self) -> None:
        entries = tuple(self._waiting)
        await self._service().query(WriteAudit(entries, time.time() - self._kept_s))
        written = {entry.number for entry in entries}
        self._waiting = deque(entry for entry in self._waiting if entry.number not in written)
