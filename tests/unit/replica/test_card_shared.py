"""Two replicas on one card that only claims to be one, each in a process of its own, with shares that add up to it."""

from __future__ import annotations

import asyncio
import multiprocessing
from collections.abc import MutableSequence
from concurrent.futures import ProcessPoolExecutor
from multiprocessing.synchronize import Barrier
from pathlib import Path

from tests.unit.engine.card_driver import CONTEXT_BYTES, GB
from tests.unit.replica.test_card_replicas import GPU, a_card, drawn

TOTAL_BYTES = 4 * GB
SHARED: list[tuple[MutableSequence[int], Barrier]] = []
"""In each process: what each takes of the card, and where they wait for one another."""


def share(ledger: MutableSequence[int], both: Barrier) -> None:
    SHARED.append((ledger, both))


def half_of_a_card(root: Path, number: int) -> tuple[list[bytes], int, int, int]:
    """Return a replica's pictures, how often it had no memory, what it took and what the other took by then."""
    [(ledger, both)] = SHARED
    pool = GPU.model_copy(update={"num_gpus": 0.5})
    with a_card(total_bytes=TOTAL_BYTES, ledger=ledger, number=number) as (_, driver):
        pictures, [counts] = asyncio.run(drawn(root / str(number), (pool,), *({"seed": seed} for seed in range(2))))
        both.wait(60)
        return pictures, counts.failures, driver.own_bytes, driver.others_bytes


def test_two_processes_draw_on_halves_of_one_card(tmp_path: Path, models: Path) -> None:
    for number in range(2):
        (tmp_path / str(number)).mkdir()
        (tmp_path / str(number) / "models").symlink_to(models)
    # What they import, seconds of a processor, is imported once.
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([__name__])
    shared = context.Array("q", 2, lock=False), context.Barrier(2)
    with ProcessPoolExecutor(2, context, share, shared) as processes:
        one, other = processes.map(half_of_a_card, [tmp_path] * 2, range(2))
    assert one[0] == other[0]
    assert one[1] == other[1] == 0
    # Each sees what the other takes.
    assert (one[3], other[3]) == (other[2], one[2])
    assert 2 * CONTEXT_BYTES < one[2] + other[2] <= TOTAL_BYTES
