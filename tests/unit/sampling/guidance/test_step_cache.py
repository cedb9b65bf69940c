"""Which steps are computed, and what is reused in place of the others."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from serve_app.recipe.layers import EasyCache
from serve_app.sampling.forward import Canvas, Piece, to_batch
from serve_app.sampling.guidance.guidance import Guidance
from serve_app.sampling.guidance.rules import CfgRule
from serve_app.sampling.lazy_sum import value
from serve_app.sampling.samplers.evaluation import Evaluation
from serve_app.sampling.schedules.levels import FlowLevels
from serve_app.values import Cfg

LEVELS = FlowLevels(1.0, 1.0)
X = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(0))


@dataclass(frozen=True, eq=False)
class Told:
    context: Tensor

    def within(self, area: Any) -> Told:
        return self


class Adding:
    """A backbone that adds a number, which the text says, to its input; it is fed x divided by two."""

    device = torch.device("cpu")
    levels = LEVELS

    def inputs(self, cond: Tensor, options: Any, role: str, canvas: Canvas) -> Told:
        return Told(to_batch(cond, canvas.rows))

    def fed(self, piece: Piece) -> Tensor:
        return piece.x / 2

    def denoised(self, piece: Piece, output: Tensor) -> Tensor:
        return output * 4

    def output(self, piece: Piece, denoised: Tensor) -> Tensor:
        return denoised / 4

    def answer(self, piece: Piece) -> Tensor:
        added: Any = piece.inputs
        return self.denoised(piece, self.fed(piece) + added.context.mean())


def run(
    cache: EasyCache, moves: list[float], sigmas: list[float], scale: float = 1.0, size: float = 1.0
) -> tuple[list[int], list[Tensor]]:
    """Return how many pieces each step asks, and what it comes to. moves: of x, from X, in turn; size: of all."""
    backbone: Any = Adding()
    conds: Any = {
        "positive": [(torch.full((1, 2, 3), size), {})],
        "negative": [(torch.full((1, 2, 3), 3 * size), {})],
    }
    canvas = Canvas(X * 0, X * 0)
    guidance = Guidance(backbone, conds, CfgRule(Cfg(scale)), canvas, caches=(cache,))
    asked, made = [], []
    for step, (move, sigma) in enumerate(zip(moves, sigmas, strict=True)):
        evaluation = Evaluation((X + move) * size, sigma, step)
        pieces = guidance.pieces(evaluation)
        guidance.take(evaluation, [backbone.answer(piece) for piece in pieces])
        asked.append(len(pieces))
        made.append(value(guidance.combine(evaluation)[0]))
    return asked, made


SIGMAS = [0.9, 0.8, 0.7, 0.6, 0.5, 0.4]
MOVES = [0.0, 0.1, 0.2, 0.3, 0.4, 0.5]


def test_a_step_is_reused_once_changes_are_known_and_small() -> None:
    for whole in (False, True):
        asked, made = run(EasyCache(10.0, 0.0, 1.0, whole), MOVES, SIGMAS, 2.0)
        # The change of an output is known from the second step on.
        assert asked == [2, 2, 0, 0, 0, 0]
        plain = run(EasyCache(0.0, 0.0, 1.0, whole), MOVES, SIGMAS, 2.0)
        assert plain[0] == [2] * 6
        torch.testing.assert_close(made[1], plain[1][1])
        if not whole:
            # What is added does not change, so reusing it is exact.
            torch.testing.assert_close(made[-1], plain[1][-1])


def test_what_guidance_came_to_is_reused_as_a_whole() -> None:
    _, made = run(EasyCache(10.0, 0.0, 1.0, True), MOVES, SIGMAS)
    torch.testing.assert_close(made[-1] - made[1], torch.full_like(X, MOVES[-1] - MOVES[1]))


def test_estimated_changes_add_up_until_a_step_is_computed() -> None:
    asked, _ = run(EasyCache(0.3, 0.0, 1.0), [0.1 * step for step in range(12)], [0.95 - 0.05 * s for s in range(12)])
    reused = "".join("r" if count == 0 else "c" for count in asked)
    assert reused.startswith("cc")
    assert "rc" in reused[2:]


def test_changes_count_by_the_size_of_what_changes() -> None:
    moves, sigmas = [0.1 * step for step in range(12)], [0.95 - 0.05 * step for step in range(12)]
    asked = [run(EasyCache(0.3, 0.0, 1.0), moves, sigmas, size=size)[0] for size in (1.0, 0.125, 8.0)]
    assert asked[0] == asked[1] == asked[2]


def test_only_between_its_levels() -> None:
    asked, _ = run(EasyCache(10.0, 0.25, 0.55), MOVES, SIGMAS)
    # From 0.7 on changes are noted, of which the second is at 0.6; from 0.45 on all is computed.
    assert asked == [1, 1, 1, 1, 0, 1]
