"""A Brownian path: one for a seed, whatever is read of it, with the variance of its intervals."""

from __future__ import annotations

from itertools import pairwise

import torch

from serve_app.sampling.brownian import KEPT, BrownianPath
from serve_app.sampling.noise import brownian_noise

SHAPE = (1, 4, 50, 50)
POINTS = [0.03, 0.1, 0.5, 1.234567, 4.0, 9.9, 14.6]


def path(seed=7):
    return BrownianPath(SHAPE, 0.03, 14.6, seed)


def test_a_point_has_the_same_value_whatever_was_read_before():
    whole = path()
    for t in reversed(POINTS):
        assert torch.equal(whole.at(t), path().at(t))


def test_a_point_is_drawn_again_as_it_was_once_it_is_no_longer_kept():
    one = BrownianPath((1,), 0.03, 14.6, 7)
    first = one.at(1.0)
    for k in range(4 * KEPT):
        one.at(2.0 + k / 20)
    assert torch.equal(one.at(1.0), first)
    assert len(one._kept) == KEPT


def test_increments_have_their_intervals_variance_and_do_not_know_of_one_another():
    one = path()
    units = [((one.at(b) - one.at(a)) / (b - a) ** 0.5).flatten() for a, b in pairwise(POINTS)]
    torch.testing.assert_close(torch.cov(torch.stack(units)), torch.eye(len(units)), rtol=0, atol=0.06)


def test_a_point_beyond_the_path_takes_its_end():
    assert torch.equal(path().at(20.0), path().at(14.6))
    assert torch.equal(path().at(0.0), torch.zeros(SHAPE))


def test_seeds_have_paths_of_their_own():
    assert not torch.equal(path(1).at(1.0), path(2).at(1.0))
    assert torch.equal(path(2**64 - 1).at(1.0), path(2**64 - 1).at(1.0))


def test_noise_over_a_step_is_made_of_the_noise_over_its_parts():
    x, sigmas = torch.zeros(SHAPE), torch.tensor([14.6, 4.0, 1.0, 0.0])
    draw = brownian_noise(x, sigmas, 7)
    whole, upper, lower = draw(4.0, 1.0), draw(4.0, 2.0), draw(2.0, 1.0)
    torch.testing.assert_close(whole * 3**0.5, upper * 2**0.5 + lower, rtol=1e-4, atol=1e-5)
    assert torch.equal(draw(1.0, 4.0), -whole)
