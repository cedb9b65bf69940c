"""Who is refused as often as he likes does not fill the database."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest

from serve_app.api.auth.principal import Principal
from serve_app.api.operator.audit import REFUSALS, AuditLog
from serve_app.store.tenants.audit import AuditEntry, WriteAudit

NOBODY, STUDIO = Principal("", "", frozenset()), Principal("studio", "key", frozenset())


class Database:
    """Takes entries as the service does."""

    def __init__(self) -> None:
        self.entries: list[AuditEntry] = []

    async def query(self, query: WriteAudit) -> None:
        self.entries += query.entries


async def test_refusals_of_one_minute_are_written_up_to_a_number_and_then_counted(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    now_s = 6000.0
    monkeypatch.setattr("time.time", lambda: now_s)
    database: Any = Database()
    log = AuditLog(lambda: database, 90.0)
    for _ in range(REFUSALS + 40):
        log.note(NOBODY, "GET /queue", "192.0.2.1", 401, "the key is unknown")
    log.note(STUDIO, "GET /queue", "192.0.2.2", 429)
    for _ in range(100):
        log.note(STUDIO, "POST /prompt", "192.0.2.2", 200)
    now_s += 60
    log.note(NOBODY, "GET /queue", "192.0.2.1", 403)
    await log.close()

    told = Counter((entry.tenant, entry.result) for entry in database.entries)
    assert told == {("", 401): REFUSALS, ("", 0): 1, ("", 403): 1, ("studio", 429): 1, ("studio", 200): 100}
    assert [entry.what for entry in database.entries if not entry.result] == ["40 more refusals in a minute"]


async def test_the_number_of_dropped_entries_is_logged_as_the_process_ends() -> None:
    database: Any = Database()
    log = AuditLog(lambda: database, 90.0)
    for _ in range(REFUSALS + 3):
        log.note(NOBODY, "GET /queue", "192.0.2.1", 401)
    await log.close()
    refused = sum(1 for entry in database.entries if entry.result == 401)
    more = sum(int(entry.what.split()[0]) for entry in database.entries if not entry.result)
    assert refused + more == REFUSALS + 3
