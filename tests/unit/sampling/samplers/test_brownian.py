"""A Brownian path: one for a seed, whatever is read of it, with the variance of its intervals."""

from __future__ import annotations

from itertools import pairwise

import torch

from serve_app.sampling.noise import brownian_noise
from serve_app.sampling.samplers import brownian
from serve_app.sampling.samplers.brownian import BrownianPath

SHAPE = (1, 4, 50, 50)
POINTS = [0.03, 0.1, 0.5, 1.234567, 4.0, 9.9, 14.6]


def path(seed=7):
    return BrownianPath(SHAPE, 0.03, 14.6, seed)


def test_a_point_has_the_same_value_whatever_was_read_before():
    whole = path()
    for t in reversed(POINTS):
        assert torch.equal(whole.at(t), path().at(t))


def test_a_step_draws_nothing_again_of_the_one_before(monkeypatch):
    drawn, one = [], BrownianPath((1,), 0.03, 14.6, 7)
    monkeypatch.setattr(one, "_generator", lambda seed: drawn.append(seed) or torch.Generator().manual_seed(seed))
    for start, end in pairwise(POINTS):
        one.between(start, end)
        assert len(one.kept) <= 2 * 25
    assert len(drawn) == len(set(drawn))


def test_what_is_more_than_may_be_kept_is_drawn_again_as_it_was(monkeypatch):
    wanted = [path().between(*pair) for pair in pairwise(POINTS)]
    monkeypatch.setattr(brownian, "KEPT_BYTES", 40 * 50 * 50 * 4)
    one = path()
    assert all(torch.equal(one.between(*pair), noise) for pair, noise in zip(pairwise(POINTS), wanted, strict=True))
    assert one.kept == {}


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
