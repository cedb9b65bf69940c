"""A job's noise comes from its seed and from nothing else."""

from __future__ import annotations

from concurrent.futures import Future, wait
from itertools import pairwise
from threading import Event, current_thread
from typing import Any

import numpy as np
import pytest
import torch

from serve_app.errors import NodeError
from serve_app.sampling import draws
from serve_app.sampling import noise as module
from serve_app.sampling.draws import THREADS, HostDraws
from serve_app.sampling.noise import BrownianNoise, brownian_noise, drawn, gaussian_noise, noise
from serve_app.sampling.samplers.evaluation import foreseen_draws
from serve_app.sampling.samplers.samplers import SAMPLERS
from serve_app.values import Noise
from tests.philox import CardNoise, philox

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


def test_noise_from_too_far_on_in_a_seeds_sequence_is_refused_before_it_is_drawn():
    with pytest.raises(NodeError, match=r"batch_index of latents has 9,999,999.*1,280,000,000 numbers"):
        noise((1, 2, 8, 8), 7, [9_999_999])


def test_a_batch_index_picks_the_noise_that_latent_has_in_a_whole_batch():
    whole = noise(SHAPE, 7)
    assert torch.equal(noise(SHAPE, 7, [2, 0, 2]), whole[[2, 0, 2]])


@pytest.mark.parametrize("shape", [SHAPE, (1, *SHAPE[1:]), (2, *SHAPE[1:]), (*SHAPE[:3], 9)], ids=str)
def test_a_packs_noise_is_of_one_latent_or_of_all_and_of_no_other_shape(shape):
    given = Noise(0, draw=lambda latents, batch_index: torch.ones(shape, dtype=torch.float64))
    if shape in (SHAPE, (1, *SHAPE[1:])):
        found = drawn(given, torch.zeros(SHAPE))
        assert isinstance(found, torch.Tensor)
        assert torch.equal(found, torch.ones(SHAPE))
        return
    with pytest.raises(NodeError, match=f"made noise {'×'.join(map(str, shape))} for latents 3×4×8×8"):
        drawn(given, torch.zeros(SHAPE))


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


def test_what_a_card_draws_for_a_seed_is_known_without_one():
    # The known answers of Random123, and what torch draws on a card for seed 0, as widely published.
    for counter, key, words in (
        (0, 0, (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8)),
        (0xFFFFFFFF, 2**64 - 1, (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD)),
    ):
        assert philox(np.full((4, 1), counter, np.uint64), key)[:, 0].tolist() == list(words)
    published = [-0.92466259, -0.42534415, -2.6438457, 0.14518388, -0.12086647, -0.57972564]
    torch.testing.assert_close(CardNoise(0).randn((6,)), torch.tensor(published))
    card = CardNoise(7)
    drawn = torch.stack([card.randn((100, 100)) for _ in range(4)])
    assert abs(float(drawn.mean())) < 0.02
    assert float(drawn.std()) == pytest.approx(1, abs=0.02)
    assert not torch.equal(drawn[0], drawn[1])


class OfCard(torch.Tensor):
    """Latents that claim to be on a card, as far as a noise source asks."""

    device = torch.device("cuda", 0)


def test_on_a_card_samplers_draw_from_the_runs_own_seed_there_as_comfyui_does(monkeypatch):
    asked = []

    def seeded(device, seed):
        asked.append((device.type, seed))
        return torch.Generator().manual_seed(seed)

    monkeypatch.setattr(module, "seeded", seeded)
    x = torch.zeros(SHAPE).as_subclass(OfCard)
    gaussian_noise(x, SIGMAS, 7)
    assert asked == [("cuda", 7)]
    monkeypatch.setattr(module, "draws_of", lambda device: HostDraws())
    monkeypatch.setattr(module, "to_device", lambda tensor, device: tensor)
    brownian_noise(x, SIGMAS, 7)(2.0, 1.0)
    assert len(asked) == 1
    brownian_noise(x, SIGMAS, 7, on_device=True)(2.0, 1.0)
    assert {kind for kind, _ in asked} == {"cuda"}
    assert len(asked) > 1


LEVELS = torch.tensor([5.0, 4.0, 3.0, 2.0, 1.0, 0.5, 0.2])
PAIRS = list(pairwise(LEVELS.tolist()))


@pytest.fixture
def of_card(monkeypatch):
    """Latents of a card, whose noise the CPU draws and keeps."""
    monkeypatch.setattr(module, "draws_of", lambda device: HostDraws())
    monkeypatch.setattr(module, "to_device", lambda tensor, device: tensor)
    return torch.zeros(SHAPE).as_subclass(OfCard)


@pytest.fixture
def threads(monkeypatch):
    """The names of those that draw."""
    names, drawn = [], BrownianNoise.draw

    def draw(source, *pair):
        names.append(current_thread().name.partition("_")[0])
        return drawn(source, *pair)

    monkeypatch.setattr(BrownianNoise, "draw", draw)
    return names


def test_noise_that_is_drawn_ahead_is_what_is_drawn_as_it_is_asked_for(of_card, threads):
    plain, ahead = (BrownianNoise(of_card, LEVELS, 7) for _ in range(2))
    wanted = [plain(*pair) for pair in [(4.5, 0.7), *PAIRS, (2.0, 1.0)]]
    assert "noise" not in threads
    # One that comes otherwise than foreseen, and then those that were.
    ahead.expect(PAIRS)
    for pair, noise_between in zip([(4.5, 0.7), *PAIRS, (2.0, 1.0)], wanted, strict=True):
        assert torch.equal(ahead(*pair), noise_between)
    assert threads.count("noise") == len(PAIRS)


def test_a_cpu_draws_its_own_noise_where_it_is_asked_for(threads):
    source = brownian_noise(torch.zeros(SHAPE), LEVELS, 7)
    source.expect(PAIRS)
    source(*PAIRS[0])
    assert threads == [current_thread().name]


def test_of_a_run_that_has_ended_nothing_more_is_drawn(of_card, threads):
    ahead, go = BrownianNoise(of_card, LEVELS, 7), Event()
    # Those that draw are held up meanwhile.
    held: list[Future[Any]] = [draws.thread().submit(go.wait, 30) for _ in range(THREADS)]
    ahead.expect(PAIRS)
    del ahead
    go.set()
    # Both are done with what they were asked before.
    wait([*held, *(draws.thread().submit(int) for _ in range(THREADS))], 30)
    assert threads == []


@pytest.mark.parametrize("name", [name for name, spec in SAMPLERS.items() if spec.noise is brownian_noise])
def test_what_a_sampler_of_a_brownian_path_will_ask_for_is_foreseen(name):
    spec, sigmas = SAMPLERS[name], torch.tensor([5.0, 3.0, 2.0, 1.0, 0.0])
    foreseen = list(foreseen_draws(spec.function, sigmas, {}))
    asked, x = [], torch.ones(SHAPE)
    sampler = spec.function(x, sigmas, lambda *pair: (asked.append(pair), torch.zeros(SHAPE))[1])
    answer = None
    while True:
        try:
            evaluation = sampler.send(answer)
        except StopIteration:
            break
        answer = evaluation.x / 2
    assert foreseen == asked
    assert asked
