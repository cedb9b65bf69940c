"""Noise that an honest card draws ahead: by which threads, at what cost, and that it is not used too early."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import pairwise
from threading import current_thread
from typing import Any

import pytest
import torch

from serve_app.engine.engine import Engine
from serve_app.engine.trajectory import Trajectory
from serve_app.errors import UnavailableError
from serve_app.sampling import noise
from serve_app.sampling.request import Sampled, SamplingRequest
from serve_app.sampling.samplers.evaluation import Foreseen
from serve_app.sampling.samplers.samplers import SAMPLERS
from tests.unit.engine import card_costs
from tests.unit.engine.card import CARD, Card, Counts
from tests.unit.engine.card_draws import CardDraws, CardGenerator, draw_on
from tests.unit.engine.card_order import DRAWS, UnorderedError
from tests.unit.engine.card_runs import CardEngine, on_card, taken_together
from tests.unit.engine.mixes import request
from tests.unit.engine.test_device_lost import ILLEGAL
from tests.unit.engine.test_engine import together

OURS = "dpmpp_2m_sde_gpu"


@pytest.fixture
def card(monkeypatch: pytest.MonkeyPatch) -> Card:
    card = Card()
    draw_on(card, monkeypatch)
    return card


@pytest.fixture
def engine(card: Card) -> Iterator[CardEngine]:
    engine = CardEngine(card)
    yield engine
    engine.close()


def requested(sampler: str, seed: int = 0) -> SamplingRequest:
    return request(sampler=sampler, steps=6, seed=seed, schedule="karras")


def run(card: Card, engine: Engine, count: int = 2, sampler: str = OURS) -> list[Sampled]:
    return taken_together(engine, on_card(card), [requested(sampler, seed) for seed in range(count)])


def raising(error: Exception) -> Callable[..., Any]:
    def fail(*_: object) -> None:
        raise error

    return fail


def test_of_all_samplers_of_a_brownian_path_it_is_known_what_they_draw() -> None:
    x = torch.ones(1)
    sources = {name: spec.noise(x, x, 0) for name, spec in SAMPLERS.items() if spec.noise is not None}
    assert {name for name, source in sources.items() if isinstance(source, Foreseen)} == set(card_costs.DRAWS)


@pytest.mark.parametrize("sampler", sorted(card_costs.DRAWS))
def test_all_is_drawn_by_threads_of_noise_which_wait_for_nothing(card, engine, monkeypatch, sampler):
    threads, drawn = [], noise.BrownianNoise.draw

    def draw(source, *levels):
        threads.append(current_thread().name.partition("_")[0])
        return drawn(source, *levels)

    monkeypatch.setattr(noise.BrownianNoise, "draw", draw)
    found, before = [], Counts()
    for count in (1, 8):
        run(card, engine, count, sampler)
        asked, before = card.drawing.since(before), card.drawing.copy()
        found.append((asked.kernels, asked.copies, asked.stalls))
    assert set(threads) == {"noise"}
    assert found[0] == card_costs.DRAWS[sampler]
    assert found[1] == tuple(8 * of_one for of_one in found[0])
    assert card.order.early == []


def test_a_step_of_a_brownian_path_on_the_card_takes_a_kernel_a_draw_and_four(card):
    sigmas = [14.6, 9.0, 5.0, 3.0, 2.0, 1.2, 0.7, 0.3, 0.1, 0.03]
    found = []
    with card.used():
        path = noise.BrownianNoise(
            torch.zeros(1, 4, 8, 8).to(CARD),
            torch.tensor([*sigmas, 0.0]),
            5,
            lambda seed: CardGenerator().manual_seed(seed),
        )
        for sigma, following in pairwise(sigmas):
            before = card.counts.copy()
            path(sigma, following)
            counts = card.counts.since(before)
            found.append((counts.kernels, counts.copies, counts.stalls))
    assert found == card_costs.BROWNIAN


def test_a_draw_that_is_not_waited_for_is_noticed(card, engine, monkeypatch):
    monkeypatch.setattr(CardDraws, "lead", lambda draws, place: None)
    with pytest.raises(UnorderedError, match=f"does not wait for .*{DRAWS}"):
        run(card, engine)


def test_a_draw_whose_memory_goes_too_early_is_noticed(card, engine, monkeypatch):
    monkeypatch.setattr(CardDraws, "keep", lambda draws, drawn: None)
    run(card, engine)
    assert set(card.order.early) == {f"{DRAWS} may use again what forwards uses"}


def test_noise_that_does_not_fit_in_memory_ahead_is_drawn_at_its_step(card, engine, monkeypatch):
    failed, made = [], CardDraws.made

    def make(draws, draw):
        if current_thread().name.startswith("noise"):
            failed.append(draw)
            raise torch.OutOfMemoryError("CUDA out of memory.")
        return made(draws, draw)

    wanted = run(card, engine)
    monkeypatch.setattr(CardDraws, "made", make)
    assert all(torch.equal(a.latents, b.latents) for a, b in zip(run(card, engine), wanted, strict=True))
    assert len(failed) == 2 * 5
    assert card.order.early == []


@pytest.mark.parametrize("error", [ValueError("no such seed"), torch.OutOfMemoryError("CUDA out of memory.")])
def test_an_error_of_a_noise_draw_fails_its_run_alone(card, engine, monkeypatch, error):
    with monkeypatch.context() as patch:
        patch.setattr(CardDraws, "made", raising(error))
        failed, done = together(engine, [Trajectory(on_card(card), r) for r in (requested(OURS), requested("euler"))])
        assert failed.exception() is not None
        assert done.exception() is None
    run(card, engine)


def test_a_device_that_is_lost_as_noise_is_drawn_closes_the_engine(card, engine, monkeypatch):
    monkeypatch.setattr(CardDraws, "made", raising(torch.AcceleratorError(ILLEGAL)))
    with pytest.raises(UnavailableError):
        run(card, engine)
    assert not engine.alive
