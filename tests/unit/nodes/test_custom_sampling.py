"""Edges of the nodes for sigmas and conditioning that workflows meet."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from serve_app.errors import NodeError
from serve_app.nodes.registry import BUILTIN

SIGMAS = torch.tensor([8.0, 4.0, 2.0, 1.0, 0.0])


def test_flipped_sigmas_begin_a_little_above_zero_and_the_given_ones_stay():
    (flipped,) = BUILTIN["FlipSigmas"]().get_sigmas(SIGMAS)
    assert flipped.tolist() == pytest.approx([1e-4, 1, 2, 4, 8])
    assert SIGMAS.tolist() == [8, 4, 2, 1, 0]


@pytest.mark.parametrize(
    ("denoise", "high", "low"), [(0.5, [8, 4, 2], [2, 1, 0]), (1.0, [8], [8, 4, 2, 1, 0]), (0.0, [], [0])]
)
def test_sigmas_are_split_at_the_share_that_is_denoised(denoise, high, low):
    parts = BUILTIN["SplitSigmasDenoise"]().get_sigmas(SIGMAS, denoise)
    assert [part.tolist() for part in parts] == [high, low]


def test_no_sigmas_have_no_first_one():
    with pytest.raises(NodeError, match="sigmas is empty"):
        BUILTIN["SetFirstSigma"]().set_first_sigma(torch.empty(0), 2.0)


@pytest.mark.parametrize("ends", [(0.0, 0.1), (10.0, 0.0)])
def test_a_logarithmic_schedule_refuses_ends_of_zero(ends):
    with pytest.raises(NodeError, match="must be above 0"):
        BUILTIN["ExponentialScheduler"]().get_sigmas(4, *ends)


def test_a_coefficient_without_a_schedule_is_refused_with_those_there_are():
    with pytest.raises(NodeError, match=r"coeff 0\.82 has no schedule; there are 0\.8, 0\.85"):
        BUILTIN["GITSScheduler"]().get_sigmas(0.82, 5, 1.0)


def test_conditioning_nodes_leave_what_they_are_given_alone():
    given: Any = [(torch.ones(1, 3, 5), {"pooled_output": torch.ones(1, 4), "strength": 2.0})]
    (area,) = BUILTIN["ConditioningSetArea"]().append(given, 64, 128, 8, 16, 0.5)
    (zero,) = BUILTIN["ConditioningZeroOut"]().zero_out(given)
    (mixed,) = BUILTIN["ConditioningAverage"]().addWeighted(given, zero, 0.25)
    assert area[0][1]["area"] == (16, 8, 2, 1)
    assert not zero[0][0].any()
    assert not zero[0][1]["pooled_output"].any()
    assert float(mixed[0][0].mean()) == float(mixed[0][1]["pooled_output"].mean()) == 0.25
    assert given[0][1].keys() == {"pooled_output", "strength"}
    assert float(given[0][0].mean()) == float(given[0][1]["pooled_output"].mean()) == 1


def test_a_shorter_text_is_followed_by_zeros_and_a_longer_one_cut_before_it_is_averaged():
    short, long = [(torch.ones(1, 2, 5), {})], [(torch.full((1, 3, 5), 3.0), {})]
    average = BUILTIN["ConditioningAverage"]().addWeighted
    assert average(long, short, 0.5)[0][0][0][0, :, 0].tolist() == [2.0, 2.0, 1.5]
    assert average(short, long, 0.5)[0][0][0][0, :, 0].tolist() == [2.0, 2.0]
