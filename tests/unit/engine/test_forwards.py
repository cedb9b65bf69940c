"""Forwards on a device that runs out of memory: how often it does, what that changes, and whose jobs fail."""

from __future__ import annotations

from math import ceil, log2

import pytest
import torch

from serve_app.engine.engine import Engine
from serve_app.engine.forwards import Counters, Forwards
from serve_app.engine.timeline import HostTimeline
from serve_app.engine.trajectory import Trajectory
from serve_app.errors import DeviceMemoryError
from serve_app.models.families.unet.unet import UnetInputs
from serve_app.models.forward import ROW_BUCKETS, Replays
from serve_app.models.weights.memory_plan import CELL_BYTES
from serve_app.sampling.forward import Piece
from tests.unit.engine.allocator import Allocator, IdleWeights, OnAllocator
from tests.unit.engine.mixes import MAX_CELLS, TinyBackbone, request
from tests.unit.engine.test_engine import together

CELLS = 4 * 4
"""Of the latents that `request` asks for."""
ROWS = 16
"""Of the eight jobs that `results` runs, each with a positive and a negative."""
STEPS = 8


@pytest.fixture(autouse=True)
def no_time(monkeypatch):
    """Let no time pass, by which forwards would be smaller than fits."""
    monkeypatch.setattr("serve_app.engine.timeline.perf_counter", lambda: 0.0)


def results(backbone, memory=None, idle=None, shape=(1, 4, 4, 4), row_bytes=0):
    """Return what eight jobs end with that run together, latents or error, and the engine's failures.

    row_bytes: planned for a forward of one row.
    """
    engine = Engine(MAX_CELLS, HostTimeline(), memory=memory, weights=idle)
    requests = [request(seed=i, steps=STEPS) for i in range(7)] + [request(seed=7, steps=STEPS, shape=shape)]
    futures = together(engine, [Trajectory(backbone, r, activation_bytes=row_bytes) for r in requests])
    engine.close()
    return [future.exception() or future.result().latents for future in futures], engine.counters.failures


@pytest.fixture(scope="module")
def unharmed():
    """What the eight jobs end with where nothing fails."""
    done, failures = results(OnAllocator(Allocator(10**12), 1))
    assert not failures
    return done


@pytest.mark.parametrize("room", range(1, ROWS + 1))
def test_a_device_that_reports_no_free_memory_fails_at_most_once_for_each_halving_of_a_batch(unharmed, room):
    allocator = Allocator(room * CELLS)
    done, failures = results(OnAllocator(allocator, 1))
    assert len(allocator.failures) == failures == ceil(log2(ROWS / room))
    for latents, expected in zip(done, unharmed, strict=True):
        assert torch.equal(latents, expected)


@pytest.mark.parametrize("room", range(1, ROWS + 1))
def test_a_device_that_reports_free_memory_never_fails_while_a_cell_costs_at_most_the_estimate(unharmed, room):
    backbone = OnAllocator(allocator := Allocator(room * CELLS * CELL_BYTES), CELL_BYTES // 2)
    done, failures = results(backbone, allocator)
    assert failures == 0
    for latents, expected in zip(done, unharmed, strict=True):
        assert torch.equal(latents, expected)
    # The first forward is held to what is taken for granted, and later ones to what that one took.
    cells = [cells for (cells,) in backbone.calls]
    assert cells[0] == min(room, ROWS) * CELLS // (2 * CELLS) * 2 * CELLS or room == 1
    assert max(cells) == min(2 * room, ROWS) * CELLS


@pytest.mark.parametrize("room", range(1, ROWS + 1))
def test_where_a_cell_takes_more_it_is_learned_with_no_more_failures_than_halvings(unharmed, room):
    backbone = OnAllocator(allocator := Allocator(room * CELLS * 4 * CELL_BYTES), 4 * CELL_BYTES)
    done, failures = results(backbone, allocator)
    assert failures <= ceil(log2(min(ROWS, 4 * room) / room))
    for latents, expected in zip(done, unharmed, strict=True):
        assert torch.equal(latents, expected)


@pytest.mark.parametrize("room", range(1, ROWS + 1))
def test_where_a_cell_takes_more_as_was_planned_nothing_fails(unharmed, room):
    backbone = OnAllocator(allocator := Allocator(room * CELLS * 4 * CELL_BYTES), 4 * CELL_BYTES)
    done, failures = results(backbone, allocator, row_bytes=CELLS * 4 * CELL_BYTES)
    assert failures == 0
    for latents, expected in zip(done, unharmed, strict=True):
        assert torch.equal(latents, expected)
    assert backbone.calls[0][0] >= max(1, min(room, ROWS) // 2 * 2) * CELLS


def batch(backbone, memory=None, idle=None, rows=ROWS // 2, max_cells=MAX_CELLS):
    """Return what one job ends with that samples a batch, and the engine's failures."""
    engine = Engine(max_cells, HostTimeline(), memory=memory, weights=idle)
    [future] = together(engine, [Trajectory(backbone, request(seed=3, steps=STEPS, shape=(rows, 4, 4, 4)))])
    engine.close()
    return future.exception() or future.result().latents, engine.counters.failures


@pytest.mark.parametrize("room", range(1, ROWS + 1))
def test_the_rows_of_a_batch_go_apart_with_no_more_failures_than_halvings_in_a_whole_run(room):
    expected, _ = batch(OnAllocator(Allocator(10**12), 1))
    allocator = Allocator(room * CELLS)
    done, failures = batch(OnAllocator(allocator, 1), idle=(idle := IdleWeights(allocator, [])))
    assert torch.equal(done, expected)
    assert len(allocator.failures) == failures == ceil(log2(ROWS / room))
    assert idle.asked == []


@pytest.mark.parametrize("room", range(1, ROWS // 2 + 1))
@pytest.mark.parametrize("max_rows", [1, 3, 4, 8])
def test_a_batch_of_more_than_is_configured_goes_apart_only_where_it_does_not_fit(room, max_rows):
    expected, _ = batch(OnAllocator(Allocator(10**12), 1))
    backbone = OnAllocator(Allocator(room * CELLS), 1)
    done, failures = batch(backbone, max_cells=max_rows * CELLS)
    assert torch.equal(done, expected)
    assert failures <= ceil(log2(ROWS / 2 / room))
    if room == ROWS // 2:
        assert {cells for (cells,) in backbone.calls} == {room * CELLS}


@pytest.mark.parametrize("room", range(1, ROWS + 1))
def test_a_forward_has_as_many_rows_as_fit_the_reported_free_memory(room):
    expected, _ = batch(OnAllocator(Allocator(10**12), 1))
    backbone = OnAllocator(allocator := Allocator(room * CELLS * CELL_BYTES), CELL_BYTES)
    done, failures = batch(backbone, allocator)
    assert torch.equal(done, expected)
    assert failures == 0
    assert {cells for (cells,) in backbone.calls} <= {rows * CELLS for rows in range(1, room + 1)}
    assert backbone.calls[0] == (CELLS * (ROWS if room == ROWS else min(room, ROWS // 2)),)


def test_a_row_of_a_batch_has_idle_weights_make_way_and_fails_with_its_own_figures():
    allocator = Allocator(CELLS)
    idle = IdleWeights(allocator, [1])
    expected, _ = batch(OnAllocator(Allocator(10**12), 1), rows=2)
    done, failures = batch(OnAllocator(allocator, 1), idle=idle, rows=2)
    assert torch.equal(done, expected)
    assert (failures, idle.asked) == (log2(4) + 1, [None])
    error, _ = batch(OnAllocator(Allocator(CELLS - 1), 1), rows=2)
    assert isinstance(error, DeviceMemoryError)
    assert "a batch of 1 latents of 4×4 cells" in str(error)


def test_a_batch_that_does_not_fit_evicts_the_oldest_idle_weights_once_and_no_others(unharmed):
    allocator = Allocator(5 * CELLS)
    idle = IdleWeights(allocator, [2 * CELLS, 2 * CELLS, CELLS])
    done, failures = results(OnAllocator(allocator, 1), idle=idle)
    # Down from 16 rows to one, and once more until all has gone that nobody uses.
    assert failures == log2(ROWS) + 1
    assert idle.asked == [None]
    for latents, expected in zip(done, unharmed, strict=True):
        assert torch.equal(latents, expected)


def test_idle_weights_that_come_back_go_without_another_failure(unharmed):
    allocator = Allocator(2 * CELLS * CELL_BYTES)
    idle = IdleWeights(allocator, [])
    backbone = OnAllocator(allocator, CELL_BYTES)
    returned = []

    def fill(count):
        if count == 3:
            idle.sizes += [CELLS * CELL_BYTES, CELLS * CELL_BYTES // 2, 7]
            returned.append(sum(idle.sizes))
            allocator.held += returned[0]

    class Filled(OnAllocator):
        def answer(self, rows):
            answers = backbone.answer(rows)
            fill(len(backbone.calls))
            return answers

    done, failures = results(Filled(allocator, 0), allocator, idle)
    assert failures == 0
    # Where one row had no room any more, as much went as it needed: the oldest, and the others stayed.
    assert idle.asked == [CELLS * CELL_BYTES // 2 + 7]
    assert idle.sizes == [CELLS * CELL_BYTES // 2, 7]
    for latents, expected in zip(done, unharmed, strict=True):
        assert torch.equal(latents, expected)


def test_what_does_not_fit_at_all_fails_alone_with_what_it_needed_and_what_there_was(unharmed):
    allocator = Allocator(3 * 2**20)
    allocator.held = 2**20
    backbone = OnAllocator(allocator, 2**20 // CELLS)
    done, failures = results(backbone, allocator, IdleWeights(allocator, []), shape=(1, 4, 4, 12))
    error = done.pop()
    assert isinstance(error, DeviceMemoryError)
    assert str(error) == (
        "a batch of 1 latents of 12×4 cells does not fit the device's memory by itself (beside weights and all else in "
        f"use, 1 of the 3 MB that this replica may take); a smaller image or batch may. CUDA out of memory. Tried to "
        f"allocate {3 * 2**20} bytes, of which {2 * 2**20} are free."
    )
    for latents, expected in zip(done, unharmed[:-1], strict=True):
        assert torch.equal(latents, expected)
    # Its negative is not tried once its positive has failed.
    assert allocator.failures.count(3 * 2**20) == 1
    assert failures == len(allocator.failures)


def test_batches_grow_and_shrink_with_the_free_memory_and_never_fail():
    """Weights come and go while jobs run: each forward is what fits beside them."""
    allocator = Allocator(ROWS * CELLS * CELL_BYTES)
    backbone = OnAllocator(allocator, CELL_BYTES)
    taken = [0, 3, 11, 14, 8, 0, 15, 2]

    class Beside(OnAllocator):
        def answer(self, rows):
            answers = backbone.answer(rows)
            allocator.held = taken[len(backbone.calls) % len(taken)] * CELLS * CELL_BYTES
            return answers

    done, failures = results(Beside(allocator, 0), allocator)
    assert failures == 0
    assert not any(isinstance(latents, BaseException) for latents in done)
    sizes = {cells // CELLS for (cells,) in backbone.calls}
    assert {1, 2, 4, 12, 16} <= sizes


def test_pieces_that_look_at_each_others_rows_fail_together_and_only_once():
    allocator = Allocator(CELLS)
    backbone, tie = OnAllocator(allocator, 1), object()
    x, inputs = torch.zeros(1, 4, 4, 4), UnetInputs(torch.zeros(1, 3, 6))
    tied = [Piece(backbone, x, 1.0, inputs, tie=tie) for _ in range(2)]
    alone = Piece(backbone, x, 1.0, inputs)
    counters = Counters()
    error, answered = Forwards(MAX_CELLS, counters).answer([tied, [alone]])
    assert isinstance(error, DeviceMemoryError)
    assert "a batch of 2 latents of 4×4 cells" in str(error)
    assert [tuple(rows.shape) for rows in answered] == [(1, 4, 4, 4)]
    assert counters.failures == 2


def test_room_that_weights_were_given_is_left_to_them(unharmed):
    allocator = Allocator(ROWS * CELLS * CELL_BYTES)
    beside = IdleWeights(allocator, [], reserved_bytes=allocator.planned_bytes * 3 // 4)
    backbone = OnAllocator(allocator, CELL_BYTES)
    done, failures = results(backbone, allocator, beside)
    assert failures == 0
    assert max(cells for (cells,) in backbone.calls) == ROWS // 4 * CELLS
    for latents, expected in zip(done, unharmed, strict=True):
        assert torch.equal(latents, expected)


def test_what_is_kept_for_replays_goes_first_and_as_many_rows_are_tried_again(unharmed):
    needed = ROWS * CELLS * CELL_BYTES
    allocator = Allocator(needed + 100, held=200, kept=200)
    done, failures = results(OnAllocator(allocator, CELL_BYTES), allocator)
    assert (failures, allocator.replays_dropped, allocator.held) == (1, 1, 0)
    assert max(allocator.taken) == needed
    for latents, expected in zip(done, unharmed, strict=True):
        assert torch.equal(latents, expected)


def test_what_is_kept_for_replays_leaves_forwards_as_much_room_as_without(unharmed):
    kept = 8 * CELLS * CELL_BYTES
    allocator = Allocator(ROWS * CELLS * CELL_BYTES + kept, held=kept, kept=kept)
    _, failures = results(OnAllocator(allocator, CELL_BYTES), allocator)
    assert (failures, allocator.kept) == (0, kept)
    assert max(allocator.taken) == ROWS * CELLS * CELL_BYTES


class FilledUp(OnAllocator):
    """A network whose forwards are filled up, and take memory for that."""

    def padded_rows(self, rows):
        return Replays(buckets=ROW_BUCKETS).padded_rows(rows)

    def answer(self, rows):
        filled = self.padded_rows(len(rows)) * CELLS
        with self.allocator.using(self.a_cell * filled):
            self.calls.append((len(rows), filled // CELLS))
            return [TinyBackbone(self.key).answer([piece])[0] for piece in rows]


@pytest.mark.parametrize(("room", "most"), [(16, 10), (12, 10), (11, 8), (8, 8), (7, 6), (5, 4), (3, 2), (1, 1)])
def test_padded_forwards_fit_and_their_durations_are_learned_by_padded_size(room, most):
    """Five jobs of two rows each, where ten rows are run as twelve."""
    backbone = FilledUp(allocator := Allocator(room * CELLS * CELL_BYTES), CELL_BYTES)
    engine = Engine(MAX_CELLS, HostTimeline(), memory=allocator)
    futures = together(engine, [Trajectory(backbone, request(seed=i, steps=STEPS)) for i in range(5)])
    engine.close()
    assert not any(future.exception() for future in futures)
    assert (engine.counters.failures, allocator.failures) == (0, [])
    assert max(backbone.calls)[0] == max(backbone.calls[3:])[0] == most
    assert max(filled for _, filled in backbone.calls) <= room


class OfFrames(TinyBackbone):
    """A backbone whose rows are frames of one video."""

    takes_rows_together = True


@pytest.mark.parametrize("backbone", [TinyBackbone(), OfFrames()], ids=["rows apart", "rows together"])
def test_what_is_planned_is_of_one_row_or_of_all_that_go_together(backbone: TinyBackbone) -> None:
    rows = 4
    piece = Piece(backbone, torch.zeros(rows, 4, 4, 4), 1.0, UnetInputs(torch.zeros(rows, 1, 4)))
    together = backbone.takes_rows_together
    # Twice what is assumed of a cell, so that it is the plan that counts.
    card = Allocator(rows * CELLS * 2 * CELL_BYTES)
    forwards = Forwards(MAX_CELLS, Counters(), card, IdleWeights(card, []))
    forwards.plan(piece, (rows if together else 1) * CELLS * 2 * CELL_BYTES)
    assert forwards.limit(piece) == piece.cells
