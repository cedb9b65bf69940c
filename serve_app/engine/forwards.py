"""Answers evaluations in as few forwards as the device has memory for.

The memory of forwards is planned, then measured, and they are as large as fits next to the weights. Where the device
runs out of memory nevertheless, forwards become smaller, down to one piece and then to one row of it: a positive and
its negative, and the rows of a batch, are then split. The limit is remembered. What does not fit even so has idle
weights evicted; if that is not enough, it fails.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from serve_app.engine.budget import Budget
from serve_app.engine.device_lost import is_out_of_memory
from serve_app.engine.memory import EvictableWeights, Memory, room_bytes
from serve_app.engine.side_stream_pool import SideStreamPool
from serve_app.errors import DeviceMemoryError
from serve_app.log import get
from serve_app.models.weights.memory_plan import MB
from serve_app.sampling.forward import Piece, answered

log = get("engine")


@dataclass(slots=True)
class Counters:
    """What an engine has done since it began: evaluations answered, forwards run and rows in them, forwards failed.

    stopped: forwards that ended since all their jobs were cancelled. seconds: spent in forwards that are done.
    """

    evaluations: int = 0
    forwards: int = 0
    rows: int = 0
    failures: int = 0
    stopped: int = 0
    seconds: float = 0.0


class Forwards:
    """Runs forwards on one device.

    max_cells: the most latent cells of all rows in one. memory: the device's, if known. weights: those on it,
    of which idle ones make way. pool: the side stream's.
    """

    def __init__(
        self,
        max_cells: int,
        counters: Counters,
        memory: Memory | None = None,
        weights: EvictableWeights | None = None,
        pool: SideStreamPool | None = None,
    ) -> None:
        self._budget = Budget(max_cells)
        self._counters = counters
        self._memory = memory
        self._weights = weights
        self._pool = pool or SideStreamPool()

    def plan(self, piece: Piece, activation_bytes: int) -> None:
        """Set the memory of a forward like a piece's until one is measured.

        activation_bytes: of one of its rows, or of all where they go together; 0: unknown.
        """
        if activation_bytes:
            rows = 1 if piece.backbone.takes_rows_together else piece.rows
            self._budget.plan(_key(piece), -(-activation_bytes * rows // piece.cells))

    def limit(self, piece: Piece) -> int:
        """Return how many cells of pieces like one a forward may hold, so that it also fits once it is padded."""
        most, of_row, padded = self._most(piece), piece.cells // piece.rows, piece.backbone.network.padded_rows
        rows = most // of_row
        if padded(rows) <= rows:
            return most
        while rows and padded(rows) > most // of_row:
            rows -= 1
        return rows * of_row

    def answer(
        self, evaluations: Sequence[Sequence[Piece]], check_cancelled: Callable[[], None] = lambda: None
    ) -> list[list[Tensor] | DeviceMemoryError]:
        """Return the network's output for each piece of each evaluation, or why one does not fit the device by itself.

        check_cancelled: called before each forward; may raise.
        """
        pieces = [piece for asked in evaluations for piece in asked]
        owners = [i for i, asked in enumerate(evaluations) for _ in asked]
        outputs: dict[int, Tensor] = {}
        rows: dict[int, range] = {}
        failed: dict[int, DeviceMemoryError] = {}
        left = list(range(len(pieces)))
        while left:
            check_cancelled()
            first = pieces[left[0]]
            limit = self.limit(first)
            smallest = _group(pieces, left, 0)
            # A batch larger than configured is not split for that reason alone.
            has_room = first.cells <= limit or self._most(first) == self._budget.max_cells
            if not has_room and len(apart := first.backbone.apart(first)) > 1:
                rows[left[0]] = range(len(pieces), len(pieces) + len(apart))
                owners += [owners[left[0]]] * len(apart)
                pieces += apart
                left[:1] = rows[left[0]]
                continue
            group = _group(pieces, left, limit)
            asked = [pieces[i] for i in group]
            if group == smallest:
                self._make_way(asked)
            outcome = self._run(asked)
            if not isinstance(outcome, str):
                outputs |= zip(group, outcome, strict=True)
            elif group == smallest and len(first.backbone.apart(first)) == 1 and not self._release():
                error = self._does_not_fit(asked, outcome)
                failed |= {owners[i]: error for i in group}
            left = [i for i in left if i not in outputs and owners[i] not in failed]
        outputs |= {i: torch.cat([outputs[row] for row in of]) for i, of in rows.items() if owners[i] not in failed}
        of_each: list[list[Tensor] | DeviceMemoryError] = []
        first_of = 0
        for i, own in enumerate(evaluations):
            numbers = range(first_of, first_of + len(own))
            of_each.append(failed[i] if i in failed else [outputs[at] for at in numbers])
            first_of += len(own)
        return of_each

    def _run(self, asked: Sequence[Piece]) -> list[Tensor] | str:
        """Return the network's outputs for pieces of one key, or torch's message if the device runs out of memory."""
        key, cells, held = _key(asked[0]), _padded_cells(asked), 0
        if self._memory is not None:
            self._memory.watch()
            held = self._memory.allocated_bytes()
        try:
            outputs = answered(asked)
        except RuntimeError as error:
            if not is_out_of_memory(error):
                raise
            reason = DeviceMemoryError.figures(error)
        else:
            taken = None if self._memory is None else self._memory.peak_bytes() - held
            self._budget.answered(key, cells, taken)
            self._counters.forwards += 1
            self._counters.rows += sum(piece.rows for piece in asked)
            return outputs
        # Here the error is gone, and with it the tensors of the failed forward.
        self._counters.failures += 1
        self._pool.note_empty()
        if self._memory is not None and self._memory.empty_with_replays():
            # The recorded forwards are gone, so as many rows may fit. The second time there are none to drop.
            return self._run(asked)
        self._budget.failed(key, cells)
        log.warning("a forward did not fit the device: cells=%d limit=%d", cells, self._budget.limit(key))
        return reason

    def _most(self, piece: Piece) -> int:
        """Return how many cells may be in a forward of pieces like one, padding among them."""
        return self._budget.limit(_key(piece), self._room_bytes())

    def _room_bytes(self) -> int | None:
        if self._memory is None:
            return None
        # Memory of recorded forwards belongs to forwards: they run in it, or it is freed before anything fails.
        return room_bytes(self._memory, self._weights) + self._memory.replay_bytes() - self._pool.nbytes

    def _make_way(self, asked: Sequence[Piece]) -> None:
        """Free what a forward of these pieces is known to need: the side stream's pool, then idle weights."""
        key, cells, room = _key(asked[0]), _padded_cells(asked), self._room_bytes()
        if room is not None and room < self._budget.expects(key, cells) and self._pool.empty():
            room = self._room_bytes()
        needed = self._budget.needs(key, cells)
        if room is not None and needed is not None and room < needed:
            self._release(needed - room)

    def _release(self, nbytes: int | None = None) -> int:
        return 0 if self._weights is None else self._weights.release(nbytes)

    def _does_not_fit(self, asked: Sequence[Piece], reason: str) -> DeviceMemoryError:
        """Return the error for pieces that do not fit alone. reason: torch's message, which has the sizes."""
        piece = asked[0]
        size = "×".join(str(side) for side in reversed(piece.x.shape[2:]))
        planned = ""
        if (memory := self._memory) is not None:
            held, most = memory.allocated_bytes() // MB, memory.planned_bytes // MB
            planned = f" (beside weights and all else in use, {held:,} of the {most:,} MB that this replica may take)"
        return DeviceMemoryError(
            f"a batch of {sum(piece.rows for piece in asked)} latents of {size} cells does not fit the device's memory "
            f"by itself{planned}; a smaller image or batch may. {reason}"
        )


def _key(piece: Piece) -> Hashable:
    """Return the key under which the size of forwards is learned: the weights, and what their network groups by."""
    return piece.backbone.network.key, piece.group_key


def _padded_cells(asked: Sequence[Piece]) -> int:
    """Return how many cells a forward of pieces runs with once it is padded."""
    rows, cells = sum(piece.rows for piece in asked), sum(piece.cells for piece in asked)
    return cells * asked[0].backbone.network.padded_rows(rows) // rows


def _group(pieces: Sequence[Piece], left: Sequence[int], limit: int) -> list[int]:
    """Return the indices of `left` that share the first one's forward: of its network and group, within a limit.

    Pieces that are tied to one of these share it whatever the limit.
    """
    first = pieces[left[0]]
    group, cells, full = [left[0]], first.cells, False
    ties = {first.tie} - {None}
    for i in left[1:]:
        of_another = pieces[i].backbone.network.key != first.backbone.network.key
        if of_another or pieces[i].group_key != first.group_key:
            continue
        full = full or cells + pieces[i].cells > limit
        if full and pieces[i].tie not in ties:
            continue
        cells += pieces[i].cells
        group.append(i)
        ties |= {pieces[i].tie} - {None}
    return group
