"""How often a database that does not answer is asked."""

from __future__ import annotations

import asyncio
from itertools import pairwise

import pytest

from serve_app.scheduler.durability.writer import FIRST_DELAY_S, LONGEST_DELAY_S, persistently
from tests.unit.scheduler.virtual_time import run


def test_each_wait_is_twice_as_long_as_the_last_up_to_a_limit():
    tries = list[float]()

    async def ask() -> str:
        tries.append(asyncio.get_running_loop().time())
        if len(tries) < 9:
            raise OSError("it does not answer")
        return "answer"

    assert run(persistently(ask)) == "answer"
    expected = [min(LONGEST_DELAY_S, FIRST_DELAY_S * 2**number) for number in range(8)]
    assert [b - a for a, b in pairwise(tries)] == pytest.approx(expected)
