"""VAEs on several ranks: rank 0 sends each the strips of what a VAE is given, and joins the strips that they make.

A video is done piece by piece: rank 0 orders each step, so that other work goes on in between, and a video that nobody
waits for any more is forgotten. Both sides run the same generator, so a follower is given a piece exactly when rank 0
is. What fails on one rank ends the replica, as the others wait for it.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from itertools import chain, count
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from serve_app.errors import RankLostError
from serve_app.models.families.family import VaeFamily
from serve_app.models.ranks.group import RankGroup
from serve_app.models.ranks.orders import TensorShape, VaeEnds, VaeOrder, VaeStep
from serve_app.models.ranks.strips import Strips, strip_rows
from serve_app.models.vae import PieceWork, pieces
from serve_app.recipe.recipe import Recipe

if TYPE_CHECKING:
    from serve_app.models.weights.weights import Weights


class VaeLeader:
    """Rank 0's side. One thread at a time, that of forwards."""

    def __init__(self, group: RankGroup) -> None:
        self._group = group
        self._numbers = count()
        # By any thread: a generator ends where its last reference does.
        self._ended: deque[int] = deque()

    def pieces(
        self, recipe: Recipe, family: VaeFamily, network: nn.Module, work: PieceWork, given: Iterable[Tensor]
    ) -> Iterator[Tensor]:
        """Yield what a VAE makes, as `vae.pieces`; on this rank alone where an image has too few rows."""
        given = iter(given)
        first = next(given)
        given = chain([first], given)
        rows = strip_rows(first.shape[-2] // (family.factor if work.startswith("encode") else 1), self._group.size)
        if rows is None:
            yield from pieces(family, network, work, given)
            return
        number, strips = next(self._numbers), Strips(self._group.everyone, rows)
        self.forget()
        self._group.order("forwards", VaeOrder(number, recipe, work, tuple(rows)))
        made = pieces(family, network, work, self._sent(strips, given))
        try:
            while True:
                self.forget()
                self._group.order("forwards", VaeStep(number))
                own = self._step(strips, made)
                if own is None:
                    return
                yield self._joined(strips, own)
        finally:
            self._ended.append(number)

    def forget(self) -> None:
        """Let the others forget what has ended, before they are ordered anything else."""
        if numbers := [self._ended.popleft() for _ in range(len(self._ended))]:
            self._group.order("forwards", VaeEnds(tuple(numbers)))

    def _sent(self, strips: Strips, given: Iterable[Tensor]) -> Iterator[Tensor]:
        """Yield this rank's strips of what a VAE is given, once the others have theirs."""
        for whole in given:
            own, *others = strips.split(whole)
            for rank, strip in enumerate(others, 1):
                self._group.say("forwards", TensorShape(tuple(strip.shape), strip.dtype), rank)
                self._group.send(strip, rank)
            yield own
        self._group.order("forwards", None)

    def _step(self, strips: Strips, made: Iterator[Tensor]) -> Tensor | None:
        try:
            with strips.working():
                return next(made, None)
        except RankLostError:
            raise
        except Exception as error:
            reason = f"{type(error).__name__}: {error}".partition("\n")[0]
            raise RankLostError(
                f"rank 0 failed in a VAE's work of {strips.size} ranks, which wait for it: {reason}"
            ) from None

    def _joined(self, strips: Strips, own: Tensor) -> Tensor:
        """Return all strips as one, of which this rank has its own."""
        heights = strips.heights(own.shape[-2])
        shapes = [(*own.shape[:-2], height, own.shape[-1]) for height in heights]
        others = [self._group.receive(shape, own.dtype, rank) for rank, shape in enumerate(shapes) if rank]
        return torch.cat([own, *others], -2)


@dataclass(frozen=True, slots=True)
class _Begun:
    """A VAE's work on this rank's strips. held: what keeps its weights."""

    strips: Strips
    made: Iterator[Tensor]
    held: ExitStack


class VaeFollower:
    """The side of every other rank. weights: its own."""

    def __init__(self, group: RankGroup, weights: Weights) -> None:
        self._group = group
        self._weights = weights
        self._begun: dict[int, _Begun] = {}

    def carry_out(self, order: Any) -> None:
        """Carry out one of rank 0's orders. Errors: those of the work."""
        match order:
            case VaeOrder(number, recipe, work, rows):
                self._begun[number] = self._begin(recipe, work, rows)
            case VaeStep(number):
                begun = self._begun[number]
                with begun.strips.working():
                    piece = next(begun.made, None)
                if piece is not None:
                    self._group.send(piece, 0)
            case VaeEnds(numbers):
                for number in numbers:
                    self._begun.pop(number).held.close()

    def _begin(self, recipe: Recipe, work: PieceWork, rows: Sequence[int]) -> _Begun:
        held = ExitStack()
        vae = self._weights.vae(recipe, held.enter_context(self._weights.open(recipe)))
        strips = Strips(self._group.everyone, rows)
        return _Begun(strips, pieces(vae.family, vae.network, work, self._received()), held)

    def _received(self) -> Iterator[Tensor]:
        while (shape := self._group.hear("forwards")) is not None:
            yield self._group.receive(shape.shape, shape.dtype, 0)
