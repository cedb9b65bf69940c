"""What is kept for work beside forwards: how much that is, and when forwards get it."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from serve_app.engine.forwards import Counters, Forwards
from serve_app.engine.side_stream_pool import SideStreamPool
from serve_app.models.families.unet.unet import UnetInputs
from serve_app.models.weights.memory_plan import CELL_BYTES
from serve_app.sampling.forward import Piece
from tests.unit.engine.allocator import Allocator, IdleWeights, OnAllocator

CELLS = 16
ROW = CELLS * CELL_BYTES
MAX_ROWS = 16


def worked(pool: SideStreamPool, allocator: Allocator, *texts: int) -> None:
    for nbytes in texts:
        with pool.measured():
            allocator.work_beside(nbytes)


def piece(allocator: Allocator, a_cell: int = CELL_BYTES) -> Piece:
    backbone: Any = OnAllocator(allocator, a_cell)
    return Piece(backbone, torch.zeros(1, 4, 4, 4), 1.0, UnetInputs(torch.zeros(1, 3, 6)))


def test_the_pool_holds_the_most_that_was_taken_at_once_until_it_is_freed() -> None:
    pool = SideStreamPool(allocator := Allocator(100, held=10))
    worked(pool, allocator, 20, 40, 30)
    assert pool.nbytes == 40
    allocator.cached = 25
    assert pool.nbytes == 25
    assert (pool.empty(), pool.nbytes, allocator.emptied) == (True, 0, 1)
    assert (pool.empty(), allocator.emptied) == (False, 1)


def test_memory_taken_while_weights_are_loaded_counts_as_theirs() -> None:
    allocator = Allocator(100)
    weights = IdleWeights(allocator, [], reserved_bytes=50)
    pool = SideStreamPool(allocator, weights)
    worked(pool, allocator, 20)
    assert pool.nbytes == 0
    weights.reserved_bytes = 0
    worked(pool, allocator, 20)
    assert pool.nbytes == 20


def test_a_device_that_reports_no_free_memory_has_no_measured_pool() -> None:
    pool = SideStreamPool()
    with pool.measured():
        pass
    assert (pool.nbytes, pool.empty()) == (0, False)


@pytest.mark.parametrize(("kept", "rows"), [(0, 8), (3, 5), (7, 1), (8, 0)])
def test_forwards_have_what_it_leaves(kept: int, rows: int) -> None:
    pool = SideStreamPool(allocator := Allocator(8 * ROW))
    forwards = Forwards(MAX_ROWS * CELLS, Counters(), allocator, pool=pool)
    worked(pool, allocator, *[kept * ROW] * bool(kept))
    assert forwards.limit(piece(allocator)) == rows * CELLS


def test_the_pool_is_freed_for_an_allocation_before_idle_weights_are() -> None:
    allocator = Allocator(8 * ROW)
    idle = IdleWeights(allocator, [6 * ROW])
    pool = SideStreamPool(allocator, idle)
    forwards = Forwards(MAX_ROWS * CELLS, Counters(), allocator, idle, pool)
    for emptied in (1, 2):
        worked(pool, allocator, 2 * ROW)
        forwards.answer([[piece(allocator)]])
        assert (allocator.emptied, allocator.flushed, idle.asked) == (emptied, 0, [])
    idle.sizes, allocator.held = [8 * ROW], 8 * ROW
    forwards.answer([[piece(allocator)]])
    assert (allocator.emptied, idle.asked) == (2, [ROW])


def test_once_memory_has_run_out_nothing_is_kept_any_more() -> None:
    allocator = Allocator(8 * ROW)
    idle = IdleWeights(allocator, [])
    pool = SideStreamPool(allocator, idle)
    worked(pool, allocator, 2 * ROW)
    forwards = Forwards(MAX_ROWS * CELLS, Counters(), allocator, idle, pool)
    forwards.answer([[piece(allocator, 9 * CELL_BYTES)]])
    allocator.cached = 5 * ROW
    assert pool.nbytes == 0
