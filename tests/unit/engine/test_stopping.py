"""Work that nobody waits for ends, in a CPU's operations and within attention, and what is computed stays as it is."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future, wait
from dataclasses import replace
from threading import Event
from time import monotonic, sleep
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention
from torch.overrides import _get_current_function_mode_stack

from serve_app.engine import engine as engine_module
from serve_app.engine import stopping
from serve_app.engine.engine import Engine
from serve_app.engine.stopping import Stoppable, StoppableFuture, StoppedError
from serve_app.engine.trajectory import Trajectory
from serve_app.values import SamplerChoice
from tests.unit.engine.mixes import TinyBackbone, alone, relative_error, request
from tests.unit.engine.test_engine import held


def endless(*_: Any) -> None:
    """Compute as long as it is let, in small operations, after every `Exception` too, but no longer than a minute."""
    x, end_s = torch.ones(2), monotonic() + 60
    while monotonic() < end_s:
        try:
            x = x * 1
        except Exception:
            continue


class Looked(StoppableFuture[None]):
    """Counts the checks of whether it is wanted, and is unwanted after a number of them."""

    def __init__(self, most: int = 1000) -> None:
        super().__init__()
        self.looks, self._most = 0, most

    @property
    def unwanted(self) -> bool:  # type: ignore[override]
        self.looks += 1
        return self.looks > self._most


@pytest.mark.parametrize("mask", [None, (1, 1, 1, 2600), (1, 1, 3300, 2600)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_an_attention_in_parts_is_what_it_is_as_one_to_the_bit(
    monkeypatch: pytest.MonkeyPatch, mask: tuple[int, ...] | None, dtype: torch.dtype
) -> None:
    monkeypatch.setattr(stopping, "ATTENTION_AT_ONCE", 1)
    asked = Looked()
    generator = torch.Generator().manual_seed(1)
    query, key, value = (torch.randn(1, 2, n, 40, generator=generator).to(dtype) for n in (3300, 2600, 2600))
    seen = None if mask is None else torch.randn(mask, generator=generator).to(dtype)
    with Stoppable([asked]):
        parts = scaled_dot_product_attention(query, key, value, attn_mask=seen)
    assert asked.looks > 3, "it was done in parts"
    assert torch.equal(parts, scaled_dot_product_attention(query, key, value, attn_mask=seen))


def test_an_attention_ends_between_two_of_its_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stopping, "ATTENTION_AT_ONCE", 1)
    x = torch.zeros(1, 1, 8 * stopping.QUERIES, 8)
    with pytest.raises(StoppedError), Stoppable([Looked(most=4)]):
        scaled_dot_product_attention(x, x, x)


class Computes(TinyBackbone):
    """Computes something in each forward before it answers. entered: set then."""

    def __init__(self, compute: Callable[[int], object]) -> None:
        super().__init__()
        self.entered = Event()

        def before(count: int) -> None:
            self.entered.set()
            compute(count)

        self.before = before


def cancelled(engine: Engine, future: Future[Any], entered: Event) -> None:
    """Cancel what the engine is in; return once the engine does other work."""
    assert entered.wait(30)
    future.cancel()
    engine.call(lambda: None).result(30)


def test_a_forward_ends_once_its_only_job_is_cancelled(engine: Engine) -> None:
    backbone = Computes(endless)
    cancelled(engine, engine.submit(Trajectory(backbone, request())), backbone.entered)
    assert (engine.counters.stopped, engine.counters.failures, engine.counters.forwards) == (1, 0, 0)
    assert engine.counters.seconds == 0.0, "what was stopped tells nothing of what forwards take"


def test_a_forward_like_one_that_was_brief_is_not_looked_after_and_any_other_is(
    engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(engine_module, "BRIEF_S", 10.0)
    looked: list[bool] = []
    backbone = Computes(lambda count: looked.append(bool(_get_current_function_mode_stack())))
    engine.submit(Trajectory(backbone, request(steps=3))).result(30)
    engine.submit(Trajectory(backbone, request(steps=2))).result(30)
    assert looked == [True, False, False, True, False], "each run's first, of which nothing is known"
    looked.clear()
    monkeypatch.setattr(engine_module, "BRIEF_S", 0.0)
    engine.submit(Trajectory(backbone, request(steps=3))).result(30)
    assert looked == [True] * 3


def test_a_forward_of_several_jobs_goes_on_until_all_are_cancelled(engine: Engine) -> None:
    backbone, holding = Computes(endless), held(engine)
    first, second = (engine.submit(Trajectory(backbone, request(seed=seed))) for seed in (1, 2))
    holding.set()
    assert backbone.entered.wait(30)
    first.cancel()
    with pytest.raises(TimeoutError):
        engine.call(lambda: None).result(0.2)
    cancelled(engine, second, backbone.entered)


def test_a_job_that_shares_its_forward_with_a_cancelled_one_is_unharmed(engine: Engine) -> None:
    backbone = Computes(lambda count: (futures[0].cancel(), torch.ones(2) * 2) if count == 2 else None)
    holding = held(engine)
    futures = [engine.submit(Trajectory(backbone, request(seed=seed, steps=4))) for seed in (1, 2)]
    holding.set()
    wait(futures, timeout=30)
    assert engine.counters.forwards == 4
    assert engine.counters.stopped == 0
    wanted = alone(TinyBackbone(), request(seed=2, steps=4))
    assert relative_error(futures[1].result().latents, wanted) <= 1e-5


def test_a_call_and_work_done_together_end_once_nobody_waits_for_them(engine: Engine) -> None:
    entered = Event()
    cancelled(engine, engine.call(lambda: (entered.set(), endless())), entered)
    entered.clear()

    def answers(questions: list[int]) -> list[int]:
        entered.set()
        if max(questions) > 0:
            endless()
        return questions

    holding = held(engine)
    together = [engine.gather(number, answers, "key", most=8) for number in (1, 2)]
    holding.set()
    assert entered.wait(30)
    together[0].cancel()
    with pytest.raises(TimeoutError):
        together[1].result(0.2)
    together[1].cancel()
    assert engine.gather(0, answers, "key", most=8).result(30) == 0


def test_work_whose_cost_says_that_it_is_brief_is_not_looked_after_and_any_other_is(engine: Engine) -> None:
    looked: list[bool] = []

    def answers(questions: list[int]) -> list[int]:
        looked.append(bool(_get_current_function_mode_stack()))
        sleep(0.01)
        return questions

    for cost in (10, 10, 10_000, 10, None, None):
        engine.gather(0, answers, "pixels" if cost else "text", cost=cost, most=16).result(30)
    assert looked == [True, False, True, False, True, True]


def sampler(first: Callable[[], object]) -> SamplerChoice:
    """Return a sampler of a node pack that does something before its first evaluation."""

    def start(x: Tensor, sigmas: Tensor, seed: int, levels: Any) -> Any:
        def run() -> Any:
            first()
            return x
            yield

        return run()

    return SamplerChoice("theirs", start=start)


def test_a_run_that_joins_is_in_a_turn_and_ends_once_it_is_cancelled(engine: Engine) -> None:
    entered, turns = Event(), []

    def first() -> None:
        turns.append((engine.turn, engine.unwanted_turn))
        entered.set()
        endless()

    asked = replace(request(), sampler=sampler(first))
    cancelled(engine, engine.submit(Trajectory(TinyBackbone(), asked)), entered)
    [(turn, unwanted)] = turns
    assert turn > 0, "the watchdog sees it"
    assert unwanted == 0


def test_the_engine_says_which_turn_of_its_nobody_waits_for(engine: Engine) -> None:
    entered, go = Event(), Event()
    future = engine.submit(Trajectory(Computes(lambda count: (entered.set(), go.wait(30))), request()))
    assert entered.wait(30)
    assert engine.turn > 0 == engine.unwanted_turn
    future.cancel()
    assert engine.unwanted_turn == engine.turn > 0
    go.set()
    engine.call(lambda: None).result(30)
    engine.close()
    assert engine.turn == engine.unwanted_turn == 0
