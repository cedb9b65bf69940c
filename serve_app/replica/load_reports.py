"""Texts about a node that waits for its models to be loaded: which one, and how much of it is read."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from contextlib import contextmanager

EVERY_S = 2.0
"""The interval of reports; loads that are shorter have none."""


@contextmanager
def reported(under_way: Callable[[], object | None], remark: Callable[[str], None]) -> Iterator[None]:
    """Inside the context report how far the load under way is. under_way: its `str` is the text; None without one."""
    reports = asyncio.create_task(_report(under_way, remark))
    try:
        yield
    finally:
        reports.cancel()


async def _report(under_way: Callable[[], object | None], remark: Callable[[str], None]) -> None:
    said = False
    try:
        while True:
            await asyncio.sleep(EVERY_S)
            if (load := under_way()) is not None:
                remark(str(load))
                said = True
    finally:
        if said:
            remark("its models are loaded")
