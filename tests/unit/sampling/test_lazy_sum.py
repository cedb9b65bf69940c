"""Sums of latents that are written down first and computed together."""

from __future__ import annotations

import pytest
import torch

from serve_app.sampling.lazy_sum import LazySum, compute, mixed, value
from serve_app.sampling.samplers.evaluation import next_evaluation
from serve_app.sampling.samplers.samplers import SAMPLERS
from serve_app.sampling.schedules.levels import FlowLevels, TableLevels

MOST_TERMS = 16
"""More summands than any sampler's step has."""


def normal(seed, *shape):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


A, B = normal(1, 2, 4, 3, 5), normal(2, 2, 4, 3, 5)
MASK = torch.rand(1, 1, 3, 5, generator=torch.Generator().manual_seed(3))


def test_a_lazy_sum_is_computed_as_tensors_are():
    a, b = LazySum.of(A), LazySum.of(B)
    written = (a * 2 - b / 3 + (-a) * 0.25) * 0.5 + B * 4 + B - b
    torch.testing.assert_close(value(written), (A * 2 - B / 3 - A * 0.25) * 0.5 + B * 4)
    torch.testing.assert_close(value(B - a), B - A)
    torch.testing.assert_close(value(3.0 * a), A * 3)


def test_what_cancels_is_zero_and_no_number_comes_of_what_is_not_counted():
    a, wild = LazySum.of(A), LazySum.of(torch.full_like(A, torch.inf))
    assert torch.equal(value(a - a), torch.zeros_like(A))
    assert torch.equal(value(a + wild * 0.0), A)
    assert torch.equal(value(LazySum.zero(A)), torch.zeros_like(A))


def test_masks_multiply_also_one_another():
    a, b = LazySum.of(A), LazySum.of(B)
    held = mixed(b, mixed(a, b, MASK), MASK)
    torch.testing.assert_close(value(held), torch.lerp(B, torch.lerp(A, B, MASK), MASK))
    wide = MASK.expand(2, 4, 3, 5)
    torch.testing.assert_close(value(a * MASK + b * wide), A * MASK + B * MASK)


def test_a_mask_of_ones_leaves_the_very_latents_and_one_of_zeros_the_other():
    sharp = (MASK > 0.5).float()
    under, over = LazySum.of(A) * 14.6146 + B, LazySum.of(B) * 3.7
    assert torch.equal(value(mixed(under, over, sharp)), torch.where(sharp > 0, value(over), value(under)))


def test_small_differences_of_large_numbers_are_kept():
    near = A + normal(4, 2, 4, 3, 5) * 1e-4
    change = (LazySum.of(near) - LazySum.of(A)) * 3e4
    exact = (near.double() - A.double()) * 3e4
    torch.testing.assert_close(value(LazySum.of(A) + change - A).double(), exact, rtol=1e-7, atol=0)


def test_once_computed_it_is_one_summand_of_others():
    written = LazySum.of(A) + B
    later = written * 2 + LazySum.of(A)
    assert len(written.terms) == 2
    assert value(written) is value(written)
    assert len(written.terms) == 1
    assert len((written * 2 + LazySum.of(A)).terms) == 2
    assert len(later.terms) == 2
    torch.testing.assert_close(value(later), (A + B) * 2 + A)


def test_latents_alone_are_not_copied():
    assert value(LazySum.of(A)) is A
    assert value(A) is A


def test_what_is_computed_with_others_has_the_bits_it_has_alone():
    def few():
        return [LazySum.of(A) * 0.7 + B * 1.3, (LazySum.of(A) - B) * MASK, LazySum.of(B) / 7]

    many = LazySum.of(A)
    for seed in range(11):
        many = many + normal(seed, 2, 4, 3, 5) * (seed + 0.1)
    other = LazySum.of(normal(5, 1, 4, 3, 5)) * 3 + normal(6, 1, 4, 3, 5)
    small = LazySum.of(torch.ones(2)) * 999.0
    together = few()
    compute([many, *together, other, small, together[0]])
    assert all(torch.equal(a.value, value(b)) for a, b in zip(together, few(), strict=True))
    assert other.value.shape == (1, 4, 3, 5)
    assert small.value.tolist() == [999.0, 999.0]


def test_another_ones_infinity_is_not_ones_own():
    wild, tame = LazySum.of(torch.full_like(A, torch.inf)) + A, LazySum.of(A) + B * 2 + A * 3.0
    compute([wild, tame])
    assert bool(tame.value.isfinite().all())


@pytest.mark.parametrize("levels", [TableLevels(), FlowLevels(3.0, 1.0)], ids=["exploding", "flow"])
@pytest.mark.parametrize("name", sorted(SAMPLERS))
def test_a_sampler_writes_few_summands_however_many_steps_it_takes(name, levels):
    sigmas = torch.cat([torch.linspace(0.95, 0.05, 24) * levels.sigma_max, torch.zeros(1)])
    sampler, most = SAMPLERS[name].start(LazySum.of(A), sigmas, 1, levels), []
    answer = None
    for _ in range(40):
        try:
            evaluation = next_evaluation(sampler, answer)
        except StopIteration:
            break
        most.append(max(len(LazySum.of(latents).terms) for latents in (evaluation.x, *evaluation.kept)))
        compute([evaluation.x, *evaluation.kept])
        denoised, low = LazySum.of(evaluation.latents * 0.3), LazySum.of(evaluation.latents * 0.2)
        answer = (denoised, low) if evaluation.want_uncond else denoised
    assert len(most) >= 3
    assert max(most) <= MOST_TERMS
