"""Work between forwards: what is done together, how much of it at once, and what fails alone or goes on later."""

from __future__ import annotations

import asyncio
from concurrent.futures import wait

import pytest
from hypothesis import given
from hypothesis import strategies as st

from serve_app.engine.engine import Engine
from serve_app.engine.side_work import Call, Calls
from serve_app.engine.stopping import StoppableFuture
from serve_app.engine.timeline import HostTimeline
from serve_app.engine.trajectory import Trajectory
from serve_app.errors import UnavailableError
from tests.unit.engine.mixes import MAX_CELLS, TinyBackbone, request
from tests.unit.engine.test_engine import Clock, held


@pytest.fixture
def clock(monkeypatch):
    clock = Clock()
    monkeypatch.setattr("serve_app.engine.timeline.perf_counter", clock)
    return clock


class Doubling:
    """Doubles numbers, noting which it was asked together. A negative number cannot be doubled."""

    def __init__(self, before=lambda numbers: None):
        self.asked = []
        self._before = before

    def __call__(self, numbers):
        self._before(numbers)
        self.asked.append(numbers)
        if min(numbers) < 0:
            raise ValueError(f"{numbers}")
        return [2 * number for number in numbers]


def test_what_waits_with_equal_keys_is_answered_at_once_and_each_gets_its_own(engine):
    double = Doubling()
    go = held(engine)
    futures = [engine.gather(n, double, key, most=16) for n, key in enumerate("aabab")]
    go.set()
    assert [future.result(30) for future in futures] == [0, 2, 4, 6, 8]
    assert double.asked == [[0, 1, 3], [2, 4]]


def test_no_more_is_done_at_once_than_is_allowed_but_the_first_always(engine):
    double = Doubling()
    go = held(engine)
    futures = [engine.gather(n, double, "a", cost=cost, most=4) for n, cost in enumerate([9, 2, 3, 2])]
    go.set()
    wait(futures, timeout=30)
    assert double.asked == [[0], [1, 3], [2]]


def test_what_fails_among_others_fails_alone(engine):
    double = Doubling()
    go = held(engine)
    futures = [engine.gather(n, double, "a", most=16) for n in (1, -2, 3)]
    go.set()
    assert (futures[0].result(30), futures[2].result(30)) == (2, 6)
    with pytest.raises(ValueError, match=r"\[-2\]"):
        futures[1].result(30)


def test_a_call_cancelled_in_time_never_runs(engine):
    double = Doubling()
    go = held(engine)
    futures = [engine.gather(n, double, "a", most=16) for n in range(3)]
    assert futures[1].cancel()
    go.set()
    wait(futures, timeout=30)
    assert double.asked == [[0, 2]]


def test_while_runs_wait_no_more_is_gathered_than_a_forward_takes(engine, clock):
    order = []

    def done(what, seconds):
        order.append(what)
        clock.forward(seconds)

    double = Doubling(lambda numbers: done(len(numbers), 0.25 * len(numbers)))
    backbone = TinyBackbone(before=lambda count: done("forward", 1.0))
    go = held(engine)
    futures = [engine.submit(Trajectory(backbone, request(steps=4)))]
    futures += [engine.gather(n, double, "a", most=16) for n in range(14)]
    go.set()
    wait(futures, timeout=30)
    # The first tells what one takes, and the first forward what there is time for.
    assert order == [1, "forward", 4, "forward", 4, "forward", 4, "forward", 1]


def test_work_that_pauses_lets_others_in_and_goes_on_behind_them(engine):
    order = []

    def steps(name):
        for i in range(3):
            order.append(f"{name}{i}")
            yield
        return name

    go = held(engine)
    first, second = engine.work(steps("a")), engine.work(steps("b"))
    go.set()
    assert (first.result(30), second.result(30)) == ("a", "b")
    assert order == ["a0", "b0", "a1", "b1", "a2", "b2"]


def test_work_that_fails_at_a_later_step_says_so(engine):
    def steps():
        yield
        raise ValueError("broken")

    with pytest.raises(ValueError, match="broken"):
        engine.work(steps()).result(30)


def test_work_that_has_begun_fails_when_the_engine_closes():
    engine = Engine(MAX_CELLS, HostTimeline())

    def endless():
        while True:
            yield

    working = engine.work(endless())
    engine.call(lambda: None).result(30)
    engine.close()
    assert isinstance(working.exception(30), UnavailableError)


@given(st.lists(st.tuples(st.sampled_from("abc"), st.integers(1, 9)), max_size=12), st.integers(1, 20))
def test_everything_is_answered_once_and_within_as_many_turns_as_calls_wait(asked, most):
    calls, answered = Calls(), []
    futures = [StoppableFuture() for _ in asked]
    for n, ((key, rows), future) in enumerate(zip(asked, futures, strict=True)):
        calls.add(Call(lambda numbers: answered.append(numbers) or numbers, future, n, key, rows, most))
    for _ in asked:
        if taken := calls.take(None):
            assert len({call.key for call in taken}) == 1
            assert len(taken) == 1 or sum(call.cost for call in taken) <= most
            for running, answer in calls.run(taken):
                running.set_result(answer)
    assert not calls
    assert [future.result(0) for future in futures] == list(range(len(asked)))
    assert sorted(n for together in answered for n in together) == list(range(len(asked)))


@pytest.mark.parametrize("error", [SystemExit(3), KeyboardInterrupt(), GeneratorExit(), asyncio.CancelledError()])
def test_whatever_a_call_raises_is_its_own_and_the_engine_goes_on(engine, error):
    def work(questions=None):
        raise error

    def steps():
        yield
        work()

    gathered = engine.gather(1, work, "a", most=16)
    ends = [engine.call(work), engine.work(steps()), gathered]
    wait(ends, timeout=30)
    assert [type(end.exception()) for end in ends] == [type(error)] * len(ends)
    assert engine.call(lambda: 7).result(30) == 7


def test_a_call_that_raises_stop_iteration_fails_with_an_error_that_futures_accept(engine):
    with pytest.raises(RuntimeError, match="StopIteration"):
        engine.call(lambda: next(iter(()))).result(30)


def test_work_of_no_rows_fails_at_most_itself(engine):
    assert engine.gather(1, Doubling(), "a", cost=0, most=16).result(30) == 2
    assert engine.gather(2, Doubling(), "a", cost=0, most=16).result(30) == 4
    assert engine.gather(3, Doubling(), "a", most=16).result(30) == 6
    assert engine.alive
