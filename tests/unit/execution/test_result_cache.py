from __future__ import annotations

import asyncio

import pytest
import torch

from serve_app.execution.call import NodeResult
from serve_app.execution.result_cache import ENTRY_BYTES, ResultCache
from serve_app.execution.size import size_of


def result(kilobytes: int = 0) -> NodeResult:
    return NodeResult(([torch.zeros(kilobytes * 256)],))


class Gone(list[str]):
    def __call__(self, signatures: tuple[str, ...]) -> None:
        self.extend(signatures)


def test_the_least_recently_used_goes_first_once_the_budget_is_passed() -> None:
    gone = Gone()
    held = ResultCache(30 * 1024, gone)
    for name in "abc":
        held.put(name, result(8))
    assert held.get("a") is not None
    held.put("d", result(8))
    assert gone == ["b"]
    assert [name in held for name in "abcd"] == [True, False, True, True]
    assert held.bytes == 3 * (size_of(result(8).outputs) + ENTRY_BYTES)


def test_a_result_over_the_budget_is_cached_alone() -> None:
    gone = Gone()
    held = ResultCache(1024, gone)
    held.put("a", result(1))
    held.put("b", result(100))
    assert gone == ["a"]
    assert "b" in held


def test_results_without_tensors_count_too() -> None:
    held = ResultCache(10 * (ENTRY_BYTES + size_of(result().outputs)), Gone())
    for i in range(100):
        held.put(str(i), result())
    assert sum(str(i) in held for i in range(100)) == 10


def test_putting_a_result_again_does_not_count_it_twice() -> None:
    held = ResultCache(10**6, Gone())
    held.put("a", result(8))
    held.put("a", result(4))
    assert held.bytes == size_of(result(4).outputs) + ENTRY_BYTES


async def test_two_that_need_one_signature_compute_it_once() -> None:
    held, computed = ResultCache(10**6, Gone()), []

    async def compute() -> NodeResult:
        computed.append(1)
        await asyncio.sleep(0)
        return result()

    made = await asyncio.gather(*(held.make("a", compute) for _ in range(5)))
    assert len(computed) == 1
    assert all(one is made[0] for one in made)


async def test_a_waiter_gets_the_result_even_if_it_was_evicted_at_once() -> None:
    held = ResultCache(1, Gone())

    async def compute() -> NodeResult:
        await asyncio.sleep(0)
        return result()

    async def never() -> NodeResult:
        raise AssertionError("computed twice")

    async def compute_and_push_out() -> NodeResult:
        made = await held.make("a", compute)
        held.put("b", result())
        return made

    first = asyncio.create_task(compute_and_push_out())
    second = asyncio.create_task(held.make("a", never))
    assert await second is await first
    assert "a" not in held


@pytest.mark.parametrize("how", ["fails", "is cancelled"])
async def test_if_the_one_computing_stops_one_of_those_waiting_computes(how: str) -> None:
    held, computed, go = ResultCache(10**6, Gone()), [], asyncio.Event()

    async def first() -> NodeResult:
        await go.wait()
        raise LookupError("first")

    async def second() -> NodeResult:
        computed.append(1)
        await asyncio.sleep(0)
        return result()

    tasks = [asyncio.create_task(held.make("a", first))]
    await asyncio.sleep(0)
    tasks += [asyncio.create_task(held.make("a", second)) for _ in range(3)]
    await asyncio.sleep(0)
    if how == "fails":
        go.set()
    else:
        tasks[0].cancel()
    results = await asyncio.gather(*tasks, return_exceptions=True)
    assert isinstance(results[0], LookupError if how == "fails" else asyncio.CancelledError)
    assert len(computed) == 1
    assert all(isinstance(one, NodeResult) for one in results[1:])


async def test_cancelling_one_that_waits_leaves_the_one_computing_alone() -> None:
    held, go = ResultCache(10**6, Gone()), asyncio.Event()

    async def compute() -> NodeResult:
        await go.wait()
        return result()

    computing, waiting = (asyncio.create_task(held.make("a", compute)) for _ in range(2))
    await asyncio.sleep(0)
    waiting.cancel()
    await asyncio.sleep(0)
    go.set()
    assert isinstance(await computing, NodeResult)


def test_only_a_limited_number_of_results_stays_beyond_those_of_running_tasks() -> None:
    gone = Gone()
    held = ResultCache(10**9, gone, entries=2)
    for name in "abcde":
        held.put(name, result())
    assert gone == [], "none goes while it may still be used"
    held.begin({"a", "b", "new"})
    assert gone == ["c", "d", "e"]
    held.begin({"new"})
    assert gone == ["c", "d", "e"]


def test_no_limit_of_entries_lets_nothing_go() -> None:
    gone = Gone()
    held = ResultCache(10**9, gone)
    held.put("a", result())
    held.begin({"b"})
    assert gone == []
