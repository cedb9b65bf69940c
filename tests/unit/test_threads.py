from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator

import pytest

from serve_app.threads import Threads


@pytest.fixture
def threads() -> Iterator[Threads]:
    made = Threads("test", 2)
    yield made
    made.close()


async def test_a_call_is_made_in_a_thread_and_its_result_or_error_comes_back(threads: Threads) -> None:
    assert await threads.call(threading.get_ident) != threading.get_ident()
    assert await threads.call(divmod, 7, 2) == (3, 1)
    with pytest.raises(ZeroDivisionError):
        await threads.call(divmod, 1, 0)


async def test_a_thread_that_is_free_is_used_again(threads: Threads) -> None:
    used = set()
    for _ in range(20):
        used.add(await threads.call(threading.get_ident))
        while not threads.idle:  # the answer comes a moment before its thread is free
            await asyncio.sleep(0)
    assert len(used) == 1


async def test_as_many_calls_as_there_may_be_threads_are_made_at_once(threads: Threads) -> None:
    together = threading.Barrier(2, timeout=10)
    assert sorted(await asyncio.gather(*(threads.call(together.wait) for _ in range(4)))) == [0, 0, 1, 1]


async def test_one_thread_makes_its_calls_in_their_order() -> None:
    one, made = Threads("test"), list[int]()
    await asyncio.gather(*(one.call(made.append, number) for number in range(50)))
    one.close()
    assert made == list(range(50))


async def test_a_call_that_has_not_begun_is_not_made_for_a_caller_that_is_cancelled() -> None:
    one, begun, free, made = Threads("test"), threading.Event(), threading.Event(), list[str]()

    def hold() -> None:
        begun.set()
        free.wait(10)
        made.append("held")

    holding = asyncio.create_task(one.call(hold))
    while not begun.is_set():
        await asyncio.sleep(0)
    waiting = asyncio.create_task(one.call(made.append, "waited"))
    await asyncio.sleep(0)
    for task in (holding, waiting):
        task.cancel()
    await asyncio.gather(holding, waiting, return_exceptions=True)
    free.set()
    one.close()
    assert made == ["held"]


async def test_closing_waits_for_running_calls() -> None:
    one, made = Threads("test"), list[int]()
    calls = [asyncio.create_task(one.call(made.append, number)) for number in range(10)]
    await asyncio.sleep(0)
    one.close()
    assert made == list(range(10))
    await asyncio.gather(*calls)


async def test_once_closed_a_call_is_refused_and_nobody_waits_for_it(threads: Threads) -> None:
    assert await threads.call(lambda: 1) == 1
    threads.close()
    with pytest.raises(RuntimeError, match="the threads 'test' have ended"):
        await threads.call(lambda: 1)
