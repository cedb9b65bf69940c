"""Work that a scheduler does again and again beside all other: what every such piece does when something is away."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

from serve_app import log
from serve_app.errors import StaleEpochError, UnavailableError

_log = log.get("scheduler")


async def repeat(work: Callable[[], Awaitable[bool | None]], every_s: float, undone: str) -> None:
    """Do the work until cancelled, until it returns True, or until another scheduler has the database.

    undone: what is left for the next time while a store or a database is away, which is logged once a reason.
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
