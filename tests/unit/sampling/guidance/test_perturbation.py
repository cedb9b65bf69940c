"""What guidance asks beside the usual branches, by which layers, and what it makes of it."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from serve_app.errors import NodeError
from serve_app.recipe.guidance import (
    CfgOverride,
    NormalizedAttention,
    PerturbedAttention,
    SelfAttentionGuidance,
    SkipLayerGuidance,
    SkippedBlocks,
    TemporalRescaling,
    WeakNegative,
)
from serve_app.recipe.layers import DeepShrink, FreeU, HyperTile
from serve_app.sampling.forward import Canvas, Piece, to_batch
from serve_app.sampling.guidance.guidance import Guidance
from serve_app.sampling.guidance.guidance_patches import GuidancePatches
from serve_app.sampling.guidance.layers import AttentionMap, LayerPatches, Opposed, WithoutAttention
from serve_app.sampling.guidance.perturbation import blurred
from serve_app.sampling.guidance.rules import CfgRule
from serve_app.sampling.lazy_sum import value
from serve_app.sampling.samplers.evaluation import Evaluation
from serve_app.sampling.schedules.levels import TableLevels
from serve_app.values import Cfg
from tests.unit.sampling.guidance.test_guidance import Rows

LEVELS = TableLevels()
X = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(0))
MIDDLE, LOW = LEVELS.at_progress(0.5), LEVELS.at_progress(0.9)
PAG, SAG = PerturbedAttention(3.0), SelfAttentionGuidance(0.5, 2.0)
SKIPPED = SkippedBlocks((1,), (2,))


class Silent:
    """A backbone that is asked for its inputs alone."""

    device = torch.device("cpu")
    levels = LEVELS

    def inputs(self, cond: Tensor, options: Any, role: str, canvas: Any) -> Rows:
        return Rows(to_batch(cond, canvas.rows))


def guidance(*patches: Any, scale: float = 4.0) -> Guidance:
    backbone: Any = Silent()
    conds: Any = {"positive": [(torch.full((1, 3, 5), 1.0), {})], "negative": [(torch.full((1, 3, 5), 2.0), {})]}
    layers = LayerPatches(patches, LEVELS, torch.Generator)
    rule = CfgRule(Cfg(scale), GuidancePatches(patches, LEVELS))
    return Guidance(backbone, conds, rule, Canvas(X * 0, X * 0), layers)


def texts(pieces: tuple[Piece, ...]) -> list[float]:
    inputs: list[Any] = [piece.inputs for piece in pieces]
    return [float(each.context.mean()) for each in inputs]


def constants(pieces: tuple[Piece, ...], *values: float) -> list[Tensor]:
    assert len(pieces) == len(values)
    return [torch.full_like(piece.x, value) for piece, value in zip(pieces, values, strict=True)]


def test_a_second_look_at_the_positive_is_asked_with_the_branches_and_led_away_from() -> None:
    guided, evaluation = guidance(PAG), Evaluation(X, MIDDLE, 0)
    pieces = guided.pieces(evaluation)
    assert texts(pieces) == [1.0, 2.0, 1.0]
    assert [piece.layers for piece in pieces] == [(), (), (WithoutAttention(),)]
    assert guided.take(evaluation, constants(pieces, 5.0, 1.0, 3.0)) == ()
    denoised, uncond = guided.combine(evaluation)
    assert float(denoised.mean()) == pytest.approx(1 + 4 * 4 + (5 - 3) * 3)
    assert float(uncond.mean()) == 1.0


def test_equal_patches_look_once_and_lead_twice() -> None:
    guided, evaluation = guidance(PAG, PAG, scale=1.0), Evaluation(X, MIDDLE, 0)
    pieces = guided.pieces(evaluation)
    assert texts(pieces) == [1.0, 1.0]
    guided.take(evaluation, constants(pieces, 5.0, 3.0))
    assert float(value(guided.combine(evaluation)[0]).mean()) == pytest.approx(5 + 2 * (5 - 3) * 3)


def test_skipped_layers_are_looked_at_between_their_levels_alone() -> None:
    guided = guidance(SkipLayerGuidance(SKIPPED, 2.0, 0.3, 0.6), scale=1.0)
    assert [piece.layers for piece in guided.pieces(Evaluation(X, MIDDLE, 0))] == [(), (SKIPPED,)]
    assert [piece.layers for piece in guided.pieces(Evaluation(X, LOW, 0))] == [()]


def test_rescaling_keeps_the_positives_spread() -> None:
    guided, evaluation = guidance(SkipLayerGuidance(SKIPPED, 2.0, 0.0, 1.0, 1.0), scale=1.0), Evaluation(X, MIDDLE, 0)
    guided.pieces(evaluation)
    guided.take(evaluation, [X, X * 0.5])
    torch.testing.assert_close(guided.combine(evaluation)[0], X)


def test_a_weak_negative_passes_by_blocks_without_another_piece() -> None:
    guided = guidance(WeakNegative(SKIPPED, 0.3, 0.6))
    assert [piece.layers for piece in guided.pieces(Evaluation(X, MIDDLE, 0))] == [(), (SKIPPED,)]
    assert [piece.layers for piece in guided.pieces(Evaluation(X, LOW, 0))] == [(), ()]


def test_opposed_branches_are_tied_and_both_asked_at_any_scale() -> None:
    patch = NormalizedAttention(4.0, 0.5, 2.0)
    positive, negative = guidance(patch, scale=1.0).pieces(Evaluation(X, MIDDLE, 0))
    assert positive.tie is negative.tie is not None
    [toward], [away] = positive.layers, negative.layers
    assert isinstance(toward, Opposed)
    assert isinstance(away, Opposed)
    assert (toward.positive, away.positive) == (True, False)


def test_a_blurred_negative_is_asked_once_the_branches_are_answered() -> None:
    guided, evaluation = guidance(SAG, scale=1.0), Evaluation(X, MIDDLE, 0)
    first = guided.pieces(evaluation)
    [attention] = first[1].layers
    assert isinstance(attention, AttentionMap)
    assert first[0].layers == ()
    attention.received = torch.tensor([[2.0, 0.0, 0.0, 2.0]])
    negative = torch.randn_like(X)
    then = guided.take(evaluation, [torch.full_like(X, 5.0), negative])
    degraded = blurred(negative, attention, 2.0)
    assert texts(then) == [2.0]
    torch.testing.assert_close(then[0].x, degraded + X - negative)
    assert guided.take(evaluation, [torch.full_like(X, 3.0)]) == ()
    torch.testing.assert_close(guided.combine(evaluation)[0], 5 + (degraded - 3.0) * 0.5)


def test_latents_too_small_to_be_blurred_are_guided_without_it() -> None:
    guided, evaluation = guidance(SAG), Evaluation(X[..., :4, :4], MIDDLE, 0)
    pieces = guided.pieces(evaluation)
    assert guided.take(evaluation, constants(pieces, 5.0, 1.0)) == ()
    assert float(guided.combine(evaluation)[0].mean()) == pytest.approx(1 + 4 * 4)


def test_only_what_is_attended_to_more_than_others_is_blurred() -> None:
    attention = AttentionMap(torch.tensor([[1.5, 0.5, 0.5, 1.5]]))
    changed = (blurred(X, attention, 2.0) != X).all(dim=1)[0]
    assert bool(changed[:4, :4].all() and changed[4:, 4:].all())
    assert not bool(changed[:4, 4:].any() or changed[4:, :4].any())
    assert torch.equal(blurred(X, attention, 0.0), X)


def test_a_network_that_leaves_no_map_is_refused() -> None:
    guided, evaluation = guidance(SAG), Evaluation(X, MIDDLE, 0)
    pieces = guided.pieces(evaluation)
    with pytest.raises(NodeError, match="self-attention guidance needs a UNet"):
        guided.take(evaluation, constants(pieces, 5.0, 1.0))


def test_the_last_override_at_a_level_is_the_scale() -> None:
    patches = GuidancePatches([CfgOverride(1.0, 0.0, 0.6), CfgOverride(9.0, 0.4, 0.8)], LEVELS)
    scales = [patches.scale(5.0, LEVELS.at_progress(share)) for share in (0.2, 0.5, 0.7, 0.9)]
    assert scales == [1.0, 9.0, 9.0, 5.0]
    assert texts(guidance(CfgOverride(1.0, 0.0, 1.0)).pieces(Evaluation(X, MIDDLE, 0))) == [1.0]


def test_a_score_divided_by_one_stays() -> None:
    plain = guidance(TemporalRescaling(1.0, 1.0), scale=1.0)
    evaluation = Evaluation(X, MIDDLE, 0)
    plain.pieces(evaluation)
    plain.take(evaluation, [X * 0.3])
    assert torch.equal(value(plain.combine(evaluation)[0]), X * 0.3)


def test_patches_of_layers_go_with_every_piece_at_their_levels() -> None:
    free, shrunk = FreeU(1, 1, 1, 1), DeepShrink(3, 2.0, 0.0, 0.6, True, "bicubic", "bicubic")
    guided = guidance(free, shrunk, HyperTile(4, 2, 0, False), PAG)
    early, late = (guided.pieces(Evaluation(X, sigma, 0)) for sigma in (MIDDLE, LOW))
    for pieces, of_all in ((early, 3), (late, 2)):
        assert all(piece.layers[:of_all] == pieces[0].layers[:of_all] for piece in pieces)
        assert [len(piece.layers) - of_all for piece in pieces] == [0, 0, 1]
        assert (shrunk in pieces[0].layers) == (pieces is early)
