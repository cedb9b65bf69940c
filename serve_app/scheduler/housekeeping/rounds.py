"""Repeats background work, and skips a round while a store or the database is unavailable."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

from serve_app import log
from serve_app.errors import StaleEpochError, UnavailableError

_log = log.get("scheduler")


async def repeat(work: Callable[[], Awaitable[bool | None]], every_s: float, undone: str) -> None:
    """Repeat work until cancelled, until it returns True, or until another scheduler has the lease.

    undone: the consequence of a skipped round, which is logged once for each reason.
    """
    told = ""
    while True:
        try:
            if await work():
                return
            told = ""
        except StaleEpochError:
            return
        except (UnavailableError, OSError) as error:
            if str(error) != told:
                told = str(error)
                _log.warning("%s: %s", undone, error)
        await asyncio.sleep(every_s)
