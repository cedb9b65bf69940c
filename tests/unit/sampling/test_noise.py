"""A job's noise comes from its seed and from nothing else."""

from __future__ import annotations

import torch

from serve_app.sampling.noise import gaussian_noise, noise

SHAPE = (3, 4, 8, 8)
SIGMAS = torch.tensor([5.0, 2.0, 1.0, 0.0])


def test_noise_is_what_torch_draws_for_the_seed():
    assert torch.equal(noise(SHAPE, 42), torch.randn(SHAPE, generator=torch.Generator().manual_seed(42)))


def test_noise_does_not_depend_on_or_change_torchs_own_random_state():
    torch.manual_seed(1)
    first, state = noise(SHAPE, 42), torch.get_rng_state()
    torch.manual_seed(2)
    assert torch.equal(noise(SHAPE, 42), first)
    torch.manual_seed(1)
    assert torch.equal(torch.get_rng_state(), state)


def test_a_batch_index_picks_the_noise_that_latent_has_in_a_whole_batch():
    whole = noise(SHAPE, 7)
    assert torch.equal(noise(SHAPE, 7, [2, 0, 2]), whole[[2, 0, 2]])


def test_the_largest_seed_and_the_one_after_it_draw_noise():
    assert torch.equal(noise(SHAPE, 2**64), noise(SHAPE, 0))
    assert not torch.equal(noise(SHAPE, 2**64 - 1), noise(SHAPE, 0))


def test_a_noise_source_goes_on_with_the_sequence_of_the_seed_after_the_runs():
    source = gaussian_noise(torch.zeros(SHAPE), SIGMAS, 7)
    drawn = [source(2.0, 1.0), source(1.0, 0.5)]
    assert torch.equal(drawn[0], noise(SHAPE, 8))
    assert not torch.equal(drawn[0], drawn[1])


def test_a_noise_source_of_the_largest_seed_draws_that_of_seed_0():
    assert torch.equal(gaussian_noise(torch.zeros(SHAPE), SIGMAS, 2**64 - 1)(2.0, 1.0), noise(SHAPE, 0))


def test_two_jobs_sources_do_not_disturb_each_other():
    a, b, alone = (gaussian_noise(torch.zeros(SHAPE), SIGMAS, 7) for _ in range(3))
    mixed = [a(1, 1), b(1, 1), a(1, 1)]
    assert torch.equal(mixed[0], alone(1, 1))
    assert torch.equal(mixed[2], alone(1, 1))
