"""Weights and forwards that share a card, on a model of its allocator: any jobs, any sizes.

Residency, budget and forwards are the real ones, as `Weights`, `Loads` and the engine put them together: room for
weights in order of arrival, then forwards of what runs.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from math import ceil, log2
from typing import Any, cast

import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from serve_app.engine.batcher import share
from serve_app.engine.forwards import Counters, Forwards
from serve_app.engine.side_stream_pool import SideStreamPool
from serve_app.errors import DeviceMemoryError
from serve_app.models.families.unet.unet import UnetInputs
from serve_app.models.weights.memory_plan import (
    CELL_BYTES,
    LARGEST_SHARE,
    SHARES,
    CardShare,
    stream_share,
    weights_left,
)
from serve_app.models.weights.recipes import Need
from serve_app.models.weights.residency import Hold, Residency, ResidentWeights
from serve_app.sampling.forward import Piece
from tests.unit.engine.allocator import Allocator, OnAllocator

CELLS = 16
"""Of a row."""
UNIT = CELLS * CELL_BYTES
"""Bytes that a row is taken to need before one was measured; all sizes here are in these."""
MAX_ROWS = 16
PARTS = 4
"""How many networks there are, and how many other parts."""


class Network(OnAllocator):
    """A network whose forwards take memory and no time."""

    def answer(self, rows: Sequence[Any]) -> list[Tensor]:
        with self.allocator.using(self.a_cell * sum(piece.x[:, 0].numel() for piece in rows)):
            return [piece.x for piece in rows]


@dataclass(eq=False)
class Job:
    """A run with weights of its own and shared ones. network: which; beside: which other part it needs too."""

    network: int
    beside: int
    rows: int
    steps: int
    pieces: tuple[Piece, ...] = ()
    since: int = 0
    hold: Hold | None = None
    error: BaseException | None = None

    @property
    def key(self) -> Hashable:
        return self.pieces[0].backbone.network.key

    @property
    def cost(self) -> int:
        return sum(piece.cells for piece in self.pieces)

    def close(self) -> None:
        """Let its weights go."""
        if self.hold is not None:
            self.hold.close()
        self.hold = None


@dataclass
class Card:
    """A card that jobs run on. sizes: of each part; rates: bytes a cell of each network.

    texts: what is taken beside forwards after each of the first turns.
    """

    planned: int
    sizes: Sequence[int]
    rates: Sequence[int]
    texts: Sequence[int] = ()
    failed_loads: int = 0

    def __post_init__(self) -> None:
        self.allocator = Allocator(self.planned)
        self.weights_budget = CardShare(0, 0, self.planned).weights_bytes(None, MAX_ROWS * CELLS)
        self.residency = Residency(self.weights_budget, self.planned - self.weights_budget)
        self.networks = [Network(self.allocator, rate, name=f"n{i}") for i, rate in enumerate(self.rates)]
        self.counters = Counters()
        self.pool = SideStreamPool(self.allocator, self)
        self.forwards = Forwards(MAX_ROWS * CELLS, self.counters, self.allocator, self, self.pool)

    @property
    def reserved_bytes(self) -> int:
        return self.residency.reserved_bytes

    def release(self, nbytes: int | None = None) -> int:
        went = self.residency.release(nbytes)
        self.allocator.held -= went
        return went

    def run(self, jobs: Sequence[Job]) -> None:
        """Run jobs to their ends."""
        waiting, running, turns, steps = deque(jobs), list[Job](), 0, sum(job.steps for job in jobs)
        texts = iter(self.texts)
        while waiting or running:
            while waiting and self.residency.fits(self.need(waiting[0])):
                job = waiting.popleft()
                try:
                    self.begin(job)
                    running.append(job)
                except DeviceMemoryError as error:
                    job.error = error
                    job.close()
            if not running:
                # Where nothing is in use, whatever comes next is given room.
                assert not waiting or self.residency.fits(self.need(waiting[0]))
                continue
            turns += 1
            assert turns <= steps
            self.turn(running)
            if (text := next(texts, 0)) and self.allocator.held + text <= self.planned:
                with self.pool.measured():
                    self.allocator.work_beside(text)
            running = [job for job in running if job.hold is not None]

    def need(self, job: Job) -> Need:
        return Need({part: self.sizes[part] for part in (job.network, PARTS + job.beside)})

    def begin(self, job: Job) -> None:
        """Load what a job needs and is absent. Errors: DeviceMemoryError."""
        need, held = self.need(job), self.residency.nbytes
        job.hold = Hold(need, self.residency)
        self.residency.expect(need.nbytes, job.hold)
        self.allocator.held -= held - self.residency.nbytes
        for part, nbytes in need.nbytes.items():
            while self.residency.get(part, job.hold) is None:
                try:
                    self.allocator.take(nbytes)
                except torch.OutOfMemoryError as error:
                    self.failed_loads += 1
                    if not self.release():
                        for other in need.nbytes:
                            self.residency.give_up(other, job.hold)
                        raise DeviceMemoryError(str(error)) from None
                    continue
                self.residency.put(part, ResidentWeights(cast(Any, None), str(part), nbytes), 0.0)
        x = torch.zeros(job.rows, 4, 4, 4)
        piece = Piece(cast(Any, self.networks[job.network]), x, 1.0, UnetInputs(torch.zeros(job.rows, 3, 6)))
        job.pieces, job.since = (piece, piece), self.counters.forwards

    def turn(self, running: Sequence[Job]) -> None:
        """Answer the evaluations that share the next forward."""
        oldest = min(running, key=lambda job: job.since)
        chosen = share(running, self.forwards.limit(oldest.pieces[0]))
        answers = self.forwards.answer([job.pieces for job in chosen])
        for job, answer in zip(chosen, answers, strict=True):
            job.since = self.counters.forwards
            job.steps -= 1
            if isinstance(answer, DeviceMemoryError):
                job.error = answer
                # All idle weights have gone for it, and it has no room beside those in use.
                assert self.release() == 0
                assert self.rates[job.network] * job.rows * CELLS > self.planned - self.residency.nbytes
            if job.error is not None or not job.steps:
                job.close()


JOBS = st.lists(
    st.builds(Job, st.integers(0, PARTS - 1), st.integers(0, PARTS - 1), st.integers(1, 4), st.integers(1, 4)),
    min_size=1,
    max_size=12,
)
SIZES = st.lists(st.integers(1, 40 * UNIT), min_size=2 * PARTS, max_size=2 * PARTS)
RATES = st.lists(st.integers(1, 4 * CELL_BYTES), min_size=PARTS, max_size=PARTS)


@given(JOBS, st.integers(8 * UNIT, 100 * UNIT), SIZES, RATES)
def test_every_job_ends_and_only_what_has_no_room_fails_and_nothing_is_loaded_twice_for_one(
    jobs, planned, sizes, rates
):
    card = Card(planned, sizes, rates)
    card.run(jobs)
    for job in jobs:
        weights = sum(card.need(job).nbytes.values())
        piece = rates[job.network] * job.rows * CELLS
        if job.error is None:
            assert job.steps == 0
        else:
            # Beside weights within their budget, forwards have what weights may not take.
            assert weights > card.weights_budget or piece > planned - card.weights_budget
    assert card.residency.loads <= 2 * len(jobs)
    # All that was taken has been given back.
    assert card.allocator.held == card.residency.nbytes <= planned
    assert card.reserved_bytes == 0
    # A network is learned once; beside that only what fails fails, at most once more without idle weights.
    failed = sum(job.error is not None for job in jobs)
    networks = len({job.network for job in jobs})
    assert card.counters.failures <= networks * ceil(log2(MAX_ROWS)) + 2 * failed * ceil(log2(2 * 4))


@given(JOBS, st.lists(st.integers(1, 5 * UNIT), min_size=2 * PARTS, max_size=2 * PARTS), st.integers(1, CELL_BYTES))
def test_where_all_weights_fit_each_is_loaded_once_and_no_memory_runs_out(jobs, sizes, rate):
    card = Card(sum(sizes) + MAX_ROWS * UNIT, sizes, [rate] * PARTS)
    needed = {part for job in jobs for part in card.need(job).nbytes}
    card.weights_budget = card.residency.budget_bytes = sum(sizes)
    card.run(jobs)
    assert all(job.error is None and job.steps == 0 for job in jobs)
    assert card.residency.loads == len(needed)
    assert (card.residency.evictions, card.counters.failures, card.failed_loads) == (0, 0, 0)
    assert max(card.allocator.taken) <= MAX_ROWS * UNIT


MANY = st.lists(
    st.builds(Job, st.integers(0, 1), st.integers(0, PARTS - 1), st.integers(2, 4), st.integers(1, 4)),
    min_size=4,
    max_size=10,
)
"""Jobs of two networks, more than a card has room for at once."""


@given(
    MANY,
    st.integers(16 * UNIT, 32 * UNIT),
    st.lists(st.integers(1, 6 * UNIT), min_size=2 * PARTS, max_size=2 * PARTS),
    st.integers(CELL_BYTES // 2, CELL_BYTES),
)
def test_batches_fit_in_the_memory_that_streamed_weights_leave(jobs, planned, sizes, rate):
    card = Card(planned, sizes, [rate] * PARTS)
    card.run(jobs)
    assert all(job.error is None and job.steps == 0 for job in jobs)
    assert (card.counters.failures, card.failed_loads) == (0, 0)


@given(
    MANY,
    st.integers(16 * UNIT, 32 * UNIT),
    st.lists(st.integers(1, 6 * UNIT), min_size=2 * PARTS, max_size=2 * PARTS),
    st.integers(CELL_BYTES // 2, CELL_BYTES),
    st.lists(st.integers(0, 8 * UNIT), min_size=20, max_size=20),
)
def test_forwards_leave_side_stream_pools_alone_unless_a_row_would_not_fit(jobs, planned, sizes, rate, texts):
    card = Card(planned, sizes, [rate] * PARTS, texts)
    card.run(jobs)
    assert all(job.error is None and job.steps == 0 for job in jobs)
    assert (card.counters.failures, card.allocator.flushed) == (0, 0)


class Streaming(Card):
    """A card on which networks stream that do not fit it beside what their jobs need too, and beside their forwards."""

    def activations(self, job: Job) -> int:
        """Return what a forward of one row takes."""
        return self.rates[job.network] * CELLS

    def need(self, job: Job) -> Need:
        network, beside = self.sizes[job.network], self.sizes[PARTS + job.beside]
        left = weights_left(self.weights_budget, self.planned - self.weights_budget, self.activations(job))
        share = stream_share(network, beside, self.weights_budget, left)
        taken = network if share is None else int(share * self.weights_budget)
        return Need({(job.network, share): taken, PARTS + job.beside: beside}, (), self.activations(job))


OTHERS = st.lists(st.floats(0, 0.875), min_size=PARTS, max_size=PARTS)
LARGE = st.lists(st.integers(1, 400 * UNIT), min_size=PARTS, max_size=PARTS)


@given(JOBS, st.integers(16 * UNIT, 100 * UNIT), LARGE, OTHERS, st.integers(1, CELL_BYTES))
def test_a_network_of_any_size_fits_where_others_leave_an_eighth_free(jobs, planned, sizes, others, rate):
    budget = CardShare(0, 0, planned).weights_bytes(None, MAX_ROWS * CELLS)
    card = Streaming(planned, [*sizes, *(int(share * budget) for share in others)], [rate] * PARTS)
    card.run(jobs)
    assert all(job.error is None and job.steps == 0 for job in jobs)
    assert max(sum(card.need(job).nbytes.values()) for job in jobs) <= budget
    assert (card.failed_loads, card.counters.failures) == (0, 0)


@given(
    JOBS,
    st.integers(16 * UNIT, 100 * UNIT),
    LARGE,
    st.lists(st.floats(0, 1), min_size=PARTS, max_size=PARTS),
    st.lists(st.floats(0, 1), min_size=PARTS, max_size=PARTS),
)
def test_networks_stream_further_where_forwards_need_the_room_and_every_job_ends(jobs, planned, sizes, others, rows):
    budget = CardShare(0, 0, planned).weights_bytes(None, MAX_ROWS * CELLS)
    # A row and what is needed beside a network leave that an eighth.
    left = planned - budget // SHARES
    taken = [int(share * left) for share in rows]
    beside = [int(share * min(budget * 7 // 8, left - max(taken))) for share in others]
    card = Streaming(planned, [*sizes, *beside], [max(1, nbytes // CELLS) for nbytes in taken])
    card.run(jobs)
    assert all(job.error is None and job.steps == 0 for job in jobs)
    assert card.failed_loads == 0


@given(st.integers(1, 1000), st.integers(0, 1000), st.integers(0, 1000), st.integers(0, 1000))
def test_what_streams_takes_less_than_it_has_and_what_fits_does_not_stream(network, beside, budget, taken):
    left = budget - taken
    share = stream_share(network, beside, budget, left)
    if network + beside <= left:
        assert share is None
    elif share is None:
        # Less than an eighth: it would take as much.
        assert SHARES * network <= budget
    else:
        assert SHARES * share in range(1, LARGEST_SHARE + 1)
        assert share * budget < network
        assert SHARES * share == 1 or share * budget + beside <= left
