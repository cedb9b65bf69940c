"""An asynchronous test that waits without a bound fails by itself."""

from __future__ import annotations

import asyncio
import inspect

import pytest

from tests.conftest import ending


async def test_a_test_that_waits_for_what_never_comes_fails_where_it_waits() -> None:
    ended = []

    async def waits(name: str) -> None:
        try:
            await asyncio.Event().wait()
        finally:
            ended.append(name)

    with pytest.raises(TimeoutError):
        await ending(waits, 0.01)("a")
    assert ended == ["a"]


async def test_every_asynchronous_test_is_bounded(request: pytest.FixtureRequest) -> None:
    wrapped = inspect.getattr_static(request.function, "__wrapped__")
    assert wrapped.__code__.co_qualname == "ending.<locals>.timed"
