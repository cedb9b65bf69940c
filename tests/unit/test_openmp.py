"""Which threads keep a team of OpenMP's, by the threads that the kernel sees."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch

from serve_app import openmp
from serve_app.openmp import Executor, end_team
from serve_app.threads import Threads

TASKS = Path("/proc/self/task")
pytestmark = pytest.mark.skipif(
    not TASKS.exists() or openmp.pause(openmp.SOFT) is None, reason="needs Linux, and a torch that came with libgomp"
)


@pytest.fixture(autouse=True)
def two_threads() -> Iterator[None]:
    usual = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(usual)


def threads() -> set[str]:
    return {task.name for task in TASKS.iterdir()}


def compute() -> set[str]:
    """Compute with a team; return the threads that are new. Of other tests' some may just be ending."""
    before = threads()
    torch.ones(1 << 20).add_(1)
    return threads() - before


def until_gone(team: set[str]) -> None:
    """Return once threads have ended: the kernel takes a moment to forget one. Errors: AssertionError."""
    ends_s = time.monotonic() + 60
    while team & threads():
        assert time.monotonic() < ends_s
        time.sleep(0.001)


def test_a_thread_that_has_ended_its_team_gets_another() -> None:
    def run() -> None:
        end_team()  # it has none
        for _ in range(3):
            team = compute()
            assert len(team) == 1
            assert not compute(), "it is the same team"
            end_team()
            until_gone(team)

    with ThreadPoolExecutor(1) as thread:
        thread.submit(run).result()


async def test_threads_of_an_executor_keep_no_team_and_their_results_and_errors_come_back() -> None:
    executor = Executor(1)
    loop = asyncio.get_running_loop()
    assert await loop.run_in_executor(executor, divmod, 7, 2) == (3, 1)
    team = await loop.run_in_executor(executor, compute)
    assert len(team) == 1
    until_gone(team)
    with pytest.raises(ZeroDivisionError):
        await loop.run_in_executor(executor, divmod, 1, 0)
    executor.shutdown()


async def test_threads_that_call_functions_for_nodes_keep_no_team() -> None:
    calling = Threads("test", 1, end_team)
    team = await calling.call(compute)
    assert len(team) == 1
    until_gone(team)
    calling.close()
