"""Which rows an evaluation needs, and how their answers are combined."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pytest
import torch

from serve_app.errors import NodeError
from serve_app.recipe.recipe import Recipe
from serve_app.sampling.forward import Canvas, to_batch
from serve_app.sampling.guidance.guidance import Guidance
from serve_app.sampling.guidance.rules import CfgRule, PerpNegRule, rule_of
from serve_app.sampling.lazy_sum import value
from serve_app.sampling.samplers.evaluation import Evaluation
from serve_app.sampling.schedules.levels import TableLevels
from serve_app.values import Cfg, DualCfg, Guider, PerpNeg

X = torch.randn(2, 4, 3, 3)


@dataclass(eq=False)
class Rows:
    """What the backbone below is told: the text of each row, whatever the area."""

    context: torch.Tensor

    def within(self, area):
        return self


class Silent:
    """A backbone that is asked for its inputs and levels alone."""

    device = torch.device("cpu")
    levels = TableLevels()

    def inputs(self, cond, options, role, canvas):
        return Rows(to_batch(cond, canvas.rows))


def guidance_of(positive, negative, cfg, rows=2, side=3):
    canvas = Canvas(torch.zeros(rows, 4, side, side), torch.zeros(rows, 4, side, side))
    backbone: Any = Silent()
    return Guidance(backbone, {"positive": positive, "negative": negative}, CfgRule(Cfg(cfg)), canvas)


def cond(value, rows=1, **options):
    return (torch.full((rows, 3, 5), float(value)), options)


def guided(guidance, answers, want_uncond=False):
    """Answer each piece with a constant; return the constants of what comes out."""
    evaluation = Evaluation(X, 2.0, 0, want_uncond)
    guidance.pieces(evaluation)
    assert guidance.take(evaluation, [torch.full_like(X, a) for a in answers]) == ()
    combined = guidance.combine(evaluation)
    return [pytest.approx(float(value(c).mean())) for c in combined]


def test_cfg_goes_from_uncond_through_cond_and_beyond():
    assert guided(guidance_of([cond(1)], [cond(2)], 7.0, 2), [3.0, 1.0]) == [1 + 7 * 2, 1.0]
    assert guided(guidance_of([cond(1)], [cond(2)], 0.0, 2), [3.0, 1.0]) == [1.0, 1.0]


def test_a_cfg_of_one_does_not_evaluate_uncond():
    guidance = guidance_of([cond(1)], [cond(2)], 1.0, 2)
    assert len(guidance.pieces(Evaluation(X, 2.0, 0))) == 1
    assert guided(guidance, [3.0]) == [3.0, 0.0]


def test_a_cfg_of_one_evaluates_uncond_for_a_sampler_that_wants_it():
    assert guided(guidance_of([cond(1)], [cond(2)], 1.0, 2), [3.0, 1.0], want_uncond=True) == [3.0, 1.0]


def test_each_piece_shows_the_network_x_at_its_level_with_its_own_context():
    pieces = guidance_of([cond(1)], [cond(2)], 7.0, 2).pieces(Evaluation(X, 2.0, 0))
    assert all(p.x is X and p.sigma == 2.0 and p.rows == 2 for p in pieces)
    assert [float(p.inputs.context.mean()) for p in pieces] == [1.0, 2.0]
    assert all(p.inputs.context.shape == (2, 3, 5) for p in pieces)


def test_entries_of_a_branch_are_averaged_by_strength():
    guidance = guidance_of([cond(1, strength=3.0), cond(2)], [cond(0)], 2.0, 2)
    assert guided(guidance, [4.0, 8.0, 1.0]) == [1 + 2 * (5 - 1), 1.0]


def test_a_single_entrys_strength_makes_no_difference_unless_it_is_zero():
    assert guided(guidance_of([cond(1, strength=0.3)], [], 1.0, 2), [4.0]) == [4.0, 0.0]
    assert guided(guidance_of([cond(1, strength=0.0)], [], 1.0, 2), [4.0]) == [0.0, 0.0]


def test_a_branch_without_entries_is_zero():
    assert guided(guidance_of([cond(1)], [], 2.0, 2), [4.0]) == [8.0, 0.0]


def test_a_cond_of_several_rows_gives_each_latent_its_own():
    context = torch.arange(3.0)[:, None, None].expand(3, 2, 5)
    [inputs] = [p.inputs for p in guidance_of([(context, {})], [], 1.0, 2).pieces(Evaluation(X, 1.0, 0))]
    assert inputs.context[:, 0, 0].tolist() == [0.0, 1.0]
    [inputs] = [p.inputs for p in guidance_of([(context, {})], [], 1.0, 5).pieces(Evaluation(X, 1.0, 0))]
    assert inputs.context[:, 0, 0].tolist() == [0.0, 1.0, 2.0, 0.0, 1.0]


def test_answers_are_placed_where_their_areas_are_also_where_equal_ones_take_turns():
    turns = [
        cond(1, area=(3, 1, 0, 0), end_percent=0.5),
        cond(1, area=(3, 1, 0, 1), start_percent=0.5),
        cond(1, area=(3, 1, 0, 1), strength=3.0),
    ]
    guidance = guidance_of(turns, [cond(2)], 1.0)

    def at(sigma):
        evaluation = Evaluation(X, sigma, 0)
        pieces = guidance.pieces(evaluation)
        guidance.take(evaluation, [torch.full_like(piece.x, 4.0 * n) for n, piece in enumerate(pieces, 1)])
        return value(guidance.combine(evaluation)[0])[1, 2].tolist()

    # Each row of cells: the first column's answer, then the second's; none counts in the third.
    assert at(10.0) == [[4.0, 8.0, 0.0]] * 3
    assert at(0.1) == [[0.0, 7.0, 0.0]] * 3


@pytest.mark.parametrize(("x", "y"), [(X.shape[3], 0), (0, X.shape[2])])
def test_an_area_that_begins_beyond_the_latents_is_refused(x, y):
    with pytest.raises(NodeError, match=rf"begins at \({x}, {y}\) in cells of 8 pixels, beyond the latents"):
        guidance_of([cond(1, area=(1, 1, y, x))], [cond(2)], 2.0)


def test_a_branch_whose_entries_do_not_count_at_a_level_is_zero_and_asks_nothing():
    guidance = guidance_of([cond(1, start_percent=0.5, end_percent=1.0)], [cond(2, end_percent=0.5)], 3.0)
    assert [float(p.inputs.context.mean()) for p in guidance.pieces(Evaluation(X, 9.0, 0))] == [2.0]
    assert [float(p.inputs.context.mean()) for p in guidance.pieces(Evaluation(X, 0.5, 0))] == [1.0]
    assert guided(guidance, [4.0]) == [(1 - 3) * 4.0, 4.0]


def test_default_entries_fill_what_the_others_leave():
    whole = guidance_of([cond(1), cond(2, default=True)], [], 1.0)
    assert guided(whole, [4.0]) == [4.0, 0.0]
    some = guidance_of([cond(1, strength=0.25), cond(2, default=True)], [], 1.0)
    assert guided(some, [4.0, 8.0]) == [0.25 * 4 + 0.75 * 8, 0.0]


@pytest.mark.parametrize(
    ("rule", "asked", "asked_for_uncond"),
    [
        (Cfg(1.0), ["positive"], ["positive", "negative"]),
        (DualCfg(1.0, 1.0), ["positive"], ["positive", "middle", "negative"]),
        (DualCfg(2.0, 1.0), ["positive", "middle"], ["positive", "middle", "negative"]),
        (DualCfg(1.0, 1.0, nested=True), ["positive", "middle", "negative"], ["positive", "middle", "negative"]),
        (PerpNeg(2.0, 0.0), ["positive", "empty"], ["positive", "negative", "empty"]),
        (PerpNeg(1.0, 0.0), ["positive"], ["positive", "negative", "empty"]),
    ],
)
def test_a_rule_asks_for_no_branch_it_does_not_need(rule, asked, asked_for_uncond):
    asks = rule_of(Guider(Recipe("backbone", "checkpoints", "a"), {}, rule), TableLevels()).asks
    assert list(asks(Evaluation(X, 2.0, 0))) == asked
    assert list(asks(Evaluation(X, 2.0, 0, want_uncond=True))) == asked_for_uncond


def test_guidance_away_from_a_negative_along_the_positive_is_none():
    positive = torch.randn(1, 4, 3, 3)
    evaluation = Evaluation(torch.zeros(1, 4, 3, 3), 2.0, 0)
    means = {"positive": positive, "negative": positive * -2, "empty": torch.zeros_like(positive)}
    denoised, uncond = PerpNegRule(PerpNeg(3.0, 1.5)).combine(means, evaluation)
    torch.testing.assert_close(denoised, positive * 3)
    assert torch.equal(value(uncond), positive * -2)
