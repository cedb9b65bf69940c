"""Writing the audit log: each entry is a line of the log at once, and in the database within a few seconds.

Requests do not wait for it. While the database is away the newest entries are kept. Of refusals each tenant has some a
minute, and so has who is nobody; how many more there were is told. Else refused requests could fill the database.
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
"""Entries that wait for the database at most."""
REFUSALS, MINUTE_S = 60, 60.0
"""Refusals of one tenant that are written in a minute. Of those who are nobody, all together."""
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
        self._refused: Counter[str] = Counter()
        self._minute = 0
        self._waiting: deque[AuditEntry] = deque()
        self._writing: asyncio.Task[None] | None = None

    def note(self, who: Principal, what: str, source: str, result: int, reason: str = "") -> None:
        """Write an entry. result: the status of the answer; 401, 403 and 429 are refusals."""
        if result in (401, 403, 429):
            self._tell_others()
            self._refused[who.tenant] += 1
            if self._refused[who.tenant] > REFUSALS:
                return
        self._put_in(who.tenant, who.name, what, source, result, reason)

    def _tell_others(self) -> None:
        """Write how many refusals of an earlier minute were not, once that is over."""
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
        self._minute = 0
        self._tell_others()
        if self._writing is not None:
            self._writing.cancel()
            await asyncio.gather(self._writing, return_exceptions=True)
        with contextlib.suppress(ServeAppError):
            await self._put()

    async def _write(self) -> None:
        """Write what waits, until nothing does and every refusal has been told of."""
        while self._waiting or any(count > REFUSALS for count in self._refused.values()):
            await asyncio.sleep(self._every_s)
            self._tell_others()
            if not self._waiting:
                continue
            try:
                await self._put()
            except ServeAppError as error:
                _log.warning("the audit log waits: %s", error)

    async def _put(self) -> None:
        entries = tuple(self._waiting)
        await self._service().inquire(WriteAudit(entries, time.time() - self._kept_s))
        written = {entry.number for entry in entries}
        self._waiting = deque(entry for entry in self._waiting if entry.number not in written)
