"""What a sampler with an embedded order reads: the number itself, and that it is nobody else's."""

from __future__ import annotations

from math import inf, isfinite, nan

import pytest
import torch

from serve_app.sampling.lazy_sum import LazySum
from serve_app.sampling.samplers.error_estimate import ErrorEstimate, read


def normal(seed, *shape):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def error_estimate(seed, *shape, rtol=0.05, atol=0.0078):
    """Two orders that differ by about a tenth of what they are."""
    low, before = normal(seed, *shape), normal(seed + 1, *shape) * 3
    return ErrorEstimate(low, low + normal(seed + 2, *shape) / 10, before, rtol, atol)


def test_an_error_estimate_is_the_mean_of_differences_over_tolerances():
    asked = error_estimate(1, 2, 4, 3, 5)
    low, high, before = (latents.double() for latents in (asked.low, asked.high, asked.before))
    allowed = torch.maximum(torch.maximum(low.abs(), before.abs()) * 0.05, torch.tensor(0.0078))
    assert asked.number == pytest.approx(float(((low - high) / allowed).square().mean().sqrt()), rel=1e-6)
    small = ErrorEstimate(torch.zeros(1, 3), torch.full((1, 3), 0.02), torch.zeros(1, 3), 0.05, 0.01)
    assert small.number == pytest.approx(2)


def test_sums_that_are_still_to_be_computed_are_computed_for_it():
    asked = error_estimate(1, 2, 4, 3, 5)
    low, high = LazySum.of(asked.low) * 0.5 + asked.low * 0.5, LazySum.of(asked.high) * 1.0
    assert ErrorEstimate(low, high, asked.before, 0.05, 0.0078).number == asked.number


SHAPES = [(2, 4, 3, 5), (1, 4, 3, 5), (3, 4, 3, 5), (1, 16, 8, 8), (1, 3, 2, 7, 5), (2, 4, 64, 64)]


def test_read_with_others_its_bits_are_those_it_has_alone():
    def asked():
        limits = [(0.05, 0.0078), (0.3, 0.0), (0.0, 2.0)]
        return [
            error_estimate(10 * place, *shape, rtol=limits[place % 3][0], atol=limits[place % 3][1])
            for place, shape in enumerate([*SHAPES, *SHAPES[::-1]])
        ]

    together = asked()
    read(together)
    assert [one.number for one in together] == [one.number for one in asked()]


@pytest.mark.parametrize("wild", [nan, inf])
def test_another_ones_numbers_that_are_none_stay_its_own(wild):
    tame, other = error_estimate(1, 1, 4, 3, 5), error_estimate(4, 1, 4, 3, 5)
    other.high[0, 2, 1, 3] = wild
    read([other, tame])
    assert tame.number == error_estimate(1, 1, 4, 3, 5).number
    assert not isfinite(other.number)


def test_of_none_nothing_is_read():
    read([])
