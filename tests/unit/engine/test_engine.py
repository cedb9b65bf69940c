"""The loop: what shares a forward, what fails with what, when one-off work runs, how a run is cancelled and closed."""

from __future__ import annotations

import asyncio
import weakref
from concurrent.futures import CancelledError, wait
from math import log2
from threading import Event, Thread
from time import sleep

import pytest
import torch

from serve_app.engine import engine as engine_module
from serve_app.engine.engine import Engine
from serve_app.engine.timeline import HostTimeline
from serve_app.engine.trajectory import Trajectory
from serve_app.errors import DeviceMemoryError, NodeError, UnavailableError
from tests.unit.engine.mixes import MAX_CELLS, TinyBackbone, alone, conditioning, relative_error, request

CELLS = 4 * 4
"""Of the latents that `request` asks for."""


@pytest.fixture
def engine():
    engine = Engine(16 * CELLS, HostTimeline())
    yield engine
    engine.close()


async def arrived(engine, count):
    """Return once so much waits for an engine that is held."""
    while engine.inbox.qsize() < count:
        await asyncio.sleep(0.001)


def held(engine):
    """Hold the engine in a call until the event returned is set."""
    holding, go = Event(), Event()
    engine.call(lambda: (holding.set(), go.wait(30)))
    assert holding.wait(30)
    return go


def together(engine, trajectories):
    """Submit trajectories so that all join before the first forward; return their futures."""
    go = held(engine)
    futures = [engine.submit(trajectory) for trajectory in trajectories]
    go.set()
    wait(futures, timeout=30)
    return futures


def test_jobs_of_different_samplers_steps_cfg_and_prompts_share_every_forward(engine):
    backbone = TinyBackbone()
    requests = [
        request(sampler="euler", steps=6, seed=1),
        request(sampler="euler_ancestral", schedule="karras", steps=5, seed=2, cfg=7.5),
        request(sampler="dpmpp_2m", schedule="exponential", steps=6, seed=3, positive=conditioning(5, 4)),
        request(sampler="heun", schedule="simple", steps=3, seed=4, cfg=1.0),
        request(sampler="lcm", schedule="sgm_uniform", steps=2, seed=5, shape=(2, 4, 4, 4)),
    ]
    futures = together(engine, [Trajectory(backbone, r) for r in requests])
    assert len(backbone.calls) == 6
    assert engine.counters.forwards == 6
    assert engine.counters.evaluations == 6 + 5 + 6 + 5 + 2
    assert engine.counters.rows == 2 * 6 + 2 * 5 + 2 * 6 + 1 * 5 + 4 * 2
    for r, future in zip(requests, futures, strict=True):
        assert relative_error(future.result().latents, alone(TinyBackbone(), r)) <= 1e-5


def test_backbones_of_equal_keys_answer_for_one_another_and_others_do_not(engine):
    first, same, other = TinyBackbone("a"), TinyBackbone("a"), TinyBackbone("b")
    together(engine, [Trajectory(b, request(steps=3)) for b in (first, same, other)])
    assert [rows for rows, *_ in first.calls] == [4, 4, 4]
    assert same.calls == []
    assert [rows for rows, *_ in other.calls] == [2, 2, 2]


class Lengths(TinyBackbone):
    """A network whose attention takes no mask: rows share a forward only if their texts are equally long."""

    def group_key(self, piece):
        return piece.inputs.context.shape[1]


def test_the_network_says_which_rows_share_a_forward(engine):
    backbone = Lengths()
    mixed = request(steps=2, positive=conditioning(1, 5), negative=conditioning(2, 3))
    longer = [request(steps=2, seed=s, cfg=1.0, positive=conditioning(s, 5)) for s in (4, 5)]
    futures = together(engine, [Trajectory(backbone, r) for r in (mixed, *longer)])
    # Those of five tokens go together, and the one of three by itself.
    assert [rows for rows, *_ in backbone.calls] == [3, 1] * 2
    for r, future in zip((mixed, *longer), futures, strict=True):
        assert relative_error(future.result().latents, alone(TinyBackbone(), r)) <= 1e-5


class Ragged(TinyBackbone):
    """A network that takes rows of any size at once."""

    def group_key(self, piece):
        return None

    def answer(self, rows):
        self.calls.append((len(rows),))
        return [TinyBackbone().answer([piece])[0] for piece in rows]


def test_rows_of_unequal_sizes_share_a_forward_of_a_network_that_takes_them(engine):
    backbone = Ragged()
    requests = [request(steps=2, seed=1), request(steps=2, seed=2, shape=(1, 4, 8, 6))]
    futures = together(engine, [Trajectory(backbone, r) for r in requests])
    assert backbone.calls == [(4,)] * 2
    for r, future in zip(requests, futures, strict=True):
        assert relative_error(future.result().latents, alone(TinyBackbone(), r)) <= 1e-5


def test_a_batch_larger_than_a_forward_is_not_split_and_has_one_of_its_own():
    engine, backbone = Engine(4 * CELLS, HostTimeline()), TinyBackbone()
    r = request(shape=(5, 4, 4, 4), steps=2, positive=conditioning(3, 5))
    [future] = together(engine, [Trajectory(backbone, r)])
    engine.close()
    assert [rows for rows, *_ in backbone.calls] == [5, 5] * 2
    assert engine.counters.forwards == 4
    assert relative_error(future.result().latents, alone(TinyBackbone(), r)) <= 1e-5


def test_a_cancelled_run_leaves_before_its_next_evaluation_and_the_others_go_on(engine):
    backbone, futures = TinyBackbone(), []
    backbone.before = lambda count: futures[0].cancel() if count == 3 else None
    go = held(engine)
    for r in (request(steps=9), request(steps=9, seed=8)):
        futures.append(engine.submit(Trajectory(backbone, r)))
    go.set()
    wait(futures, timeout=30)
    left, stayed = futures
    assert left.cancelled()
    assert [rows for rows, *_ in backbone.calls] == [4] * 3 + [2] * 6
    assert relative_error(stayed.result().latents, alone(TinyBackbone(), request(steps=9, seed=8))) <= 1e-5


def test_cancelling_the_future_makes_the_trajectory_leave_too(engine):
    backbone = TinyBackbone()
    futures = []
    backbone.before = lambda count: futures[0].cancel() if count == 2 else None
    go = held(engine)
    futures.append(engine.submit(Trajectory(backbone, request(steps=9))))
    go.set()
    with pytest.raises(CancelledError):
        futures[0].result(30)
    engine.call(lambda: None).result(30)
    assert len(backbone.calls) == 2


def test_a_run_cancelled_before_it_starts_makes_no_evaluation(engine):
    backbone = TinyBackbone()
    go = held(engine)
    future = engine.submit(Trajectory(backbone, request()))
    assert future.cancel()
    go.set()
    engine.call(lambda: None).result(30)
    assert backbone.calls == []


class Fragile(TinyBackbone):
    """Fails any forward that holds a context with a value above 100."""

    def forward(self, x, sigma, context, context_mask=None):
        if context.max() > 100:
            self.calls.append(tuple(x.shape))
            raise ValueError("poisoned")
        return super().forward(x, sigma, context, context_mask)


def test_a_failing_forward_fails_only_the_trajectories_that_fail_alone(engine):
    backbone = Fragile()
    poison = [(torch.full((1, 3, 6), 1000.0), {})]
    requests = [request(seed=i, steps=3) for i in range(4)]
    requests.insert(2, request(positive=poison))
    futures = together(engine, [Trajectory(backbone, r) for r in requests])
    failed = futures.pop(2)
    assert str(failed.exception()) == "poisoned"
    del requests[2]
    for r, future in zip(requests, futures, strict=True):
        assert relative_error(future.result().latents, alone(TinyBackbone(), r)) <= 1e-5
    # Ten rows fail; of their halves four rows pass and six fail, of which the two poisoned ones fail alone.
    assert [rows for rows, *_ in backbone.calls] == [10, 4, 6, 2, 4, 8, 8]
    assert engine.counters.failures == 3


SIZES = "CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has a total capacity of 8 GiB of which 1 GiB is free."


class Small(TinyBackbone):
    """A network on a device that has room for so many cells."""

    def __init__(self, room):
        super().__init__()
        self.room = room
        self.failed = []

    def forward(self, x, sigma, context, context_mask=None):
        if (cells := x[:, 0].numel()) > self.room:
            self.failed.append(cells)
            raise torch.OutOfMemoryError(f"{SIZES} If reserved but unallocated memory is large try setting")
        return super().forward(x, sigma, context, context_mask)


@pytest.mark.parametrize("room", [1, 3, 5, 8])
def test_what_a_device_has_no_room_for_is_learned_once_and_answered_in_smaller_forwards(room):
    engine, backbone = Engine(MAX_CELLS, HostTimeline()), Small(room * CELLS)
    requests = [request(seed=i, steps=8) for i in range(8)]
    futures = together(engine, [Trajectory(backbone, r) for r in requests])
    engine.close()
    for r, future in zip(requests, futures, strict=True):
        assert relative_error(future.result().latents, alone(TinyBackbone(), r)) <= 1e-5
    assert len(backbone.failed) == engine.counters.failures <= log2(16)
    # Once the first evaluations are answered, forwards are as large as was found to fit, but for what is left over.
    assert len(backbone.calls) <= 1.25 * 8 * 8 * 2 / 2 ** int(log2(room))
    assert backbone.failed == sorted(backbone.failed, reverse=True)


def test_what_a_device_has_no_room_for_alone_fails_its_own_job_with_what_it_needed_and_what_there_was():
    engine, backbone = Engine(MAX_CELLS, HostTimeline()), Small(2 * CELLS)
    large, small = request(shape=(1, 4, 4, 12), steps=3), request(seed=4, steps=3)
    failed, done = together(engine, [Trajectory(backbone, r) for r in (large, small)])
    engine.close()
    with pytest.raises(
        DeviceMemoryError, match="a batch of 1 latents of 12×4 cells does not fit the device's memory"
    ) as e:
        failed.result()
    assert str(e.value).endswith(SIZES)
    assert relative_error(done.result().latents, alone(TinyBackbone(), small)) <= 1e-5


def test_an_unknown_sampler_fails_its_own_job_with_the_nearest_name(engine):
    failed, done = together(engine, [Trajectory(TinyBackbone(), request(sampler=s)) for s in ("eular", "euler")])
    assert isinstance(failed.exception(), NodeError)
    assert str(failed.exception()) == "sampler 'eular' is unknown; did you mean 'euler'?"
    assert done.exception() is None


def test_an_error_in_a_progress_report_fails_only_that_trajectory(engine):
    def report(done, total):
        raise OSError("nobody listens")

    failing = Trajectory(TinyBackbone(), request(), on_step=report)
    failed, done = together(engine, [failing, Trajectory(TinyBackbone(), request())])
    assert isinstance(failed.exception(), OSError)
    assert done.exception() is None


class Clock:
    """The engine's clock, which stands still but when it is set forward."""

    def __init__(self):
        self.now_s = 0.0

    def __call__(self):
        return self.now_s

    def forward(self, seconds):
        self.now_s += seconds


@pytest.fixture
def clock(monkeypatch):
    clock = Clock()
    monkeypatch.setattr("serve_app.engine.timeline.perf_counter", clock)
    return clock


def order_of_calls(engine, clock, call_s, calls, steps):
    """Return in which order a run's forwards of one second and calls of call_s seconds were done."""
    order = []

    def done(what, seconds):
        order.append(what)
        clock.forward(seconds)

    go = held(engine)
    run = engine.submit(Trajectory(TinyBackbone(before=lambda count: done("forward", 1.0)), request(steps=steps)))
    waiting = [engine.call(lambda: done("call", call_s)) for _ in range(calls)]
    go.set()
    wait([run, *waiting], timeout=30)
    return order


def test_calls_run_between_two_forwards_until_they_have_taken_as_long_as_the_last(engine, clock):
    order = order_of_calls(engine, clock, call_s=0.5, calls=9, steps=4)
    # Before the first forward there is no time to compare with, and after the last nobody waits.
    assert order == ["call", "forward", *["call", "call", "forward"] * 3, "call", "call"]


def test_a_call_that_takes_longer_than_a_forward_is_followed_by_one(engine, clock):
    assert order_of_calls(engine, clock, call_s=3.0, calls=4, steps=3) == ["call", "forward"] * 3 + ["call"]


def test_a_call_gives_back_its_value_or_its_error(engine):
    with pytest.raises(ZeroDivisionError):
        engine.call(lambda: 1 / 0).result(30)
    assert engine.call(lambda: 3).result(30) == 3


def test_tensors_made_by_a_call_are_ordinary_ones_that_carry_no_gradient(engine):
    parameter = torch.nn.Parameter(torch.ones(2))
    made = engine.call(lambda: parameter * 2).result(30)
    assert not made.requires_grad
    made += 1
    assert made.tolist() == [3, 3]


def test_an_idle_engine_keeps_no_backbone(engine):
    backbone = TinyBackbone()
    ended = Event()
    weakref.finalize(backbone, ended.set)
    engine.submit(Trajectory(backbone, request())).result(30)
    del backbone
    assert ended.wait(30)


def test_a_call_cancelled_in_time_does_not_run(engine):
    ran = []
    go = held(engine)
    call = engine.call(lambda: ran.append(1))
    assert call.cancel()
    go.set()
    engine.call(lambda: None).result(30)
    assert ran == []


def test_returned_latents_can_be_changed_in_place(engine):
    latents = engine.submit(Trajectory(TinyBackbone(), request())).result(30).latents
    latents += 1
    assert not latents.is_inference()


def test_a_run_of_no_steps_gives_back_its_latents_and_shares_nothing_with_them(engine):
    r = request(denoise=0.0)
    latents = engine.submit(Trajectory(TinyBackbone(), r)).result(30).latents
    assert isinstance(r.latents, torch.Tensor)
    assert torch.equal(latents, r.latents)
    assert latents.data_ptr() != r.latents.data_ptr()


def test_closing_ends_after_the_forward_in_progress_and_fails_what_is_left():
    engine, forward, go = Engine(MAX_CELLS, HostTimeline()), Event(), Event()

    def before(count):
        forward.set()
        go.wait(30)

    running = engine.submit(Trajectory(TinyBackbone(before=before), request(steps=5000)))
    forward.wait(30)
    closing = Thread(target=engine.close)
    closing.start()
    while engine.alive:
        sleep(0.001)
    go.set()
    closing.join(30)
    assert isinstance(running.exception(0), UnavailableError)
    with pytest.raises(UnavailableError):
        engine.submit(Trajectory(TinyBackbone(), request()))
    with pytest.raises(UnavailableError):
        engine.call(lambda: None)


@pytest.mark.parametrize("error", [SystemExit(3), KeyboardInterrupt(), MemoryError()])
@pytest.mark.parametrize("where", ["start", "forward", "feed", "go_on", "group_key"])
def test_whatever_a_run_or_a_forward_raises_is_its_own_and_others_go_on(engine, error, where):
    def fail(*given):
        raise error

    bad = Trajectory(TinyBackbone(), request(seed=1, sampler="dpm_adaptive"))
    good = request(seed=2)
    if where in ("forward", "group_key"):
        setattr(bad.backbone, "answer" if where == "forward" else where, fail)
    else:
        setattr(bad, where, fail)
    futures = together(engine, [bad, Trajectory(TinyBackbone(), good)])
    assert type(futures[0].exception()) is type(error)
    assert relative_error(futures[1].result().latents, alone(TinyBackbone(), good)) <= 1e-5
    assert engine.alive


def test_of_runs_that_choose_their_steps_one_without_numbers_ends_and_what_cannot_be_read_together_is_read_by_each(
    engine, monkeypatch
):
    def fail(_disagreements):
        raise torch.OutOfMemoryError

    requests = [request(seed=seed, sampler="dpm_adaptive") for seed in range(3)]
    requests[1] = request(latents=torch.full((1, 4, 4, 4), torch.inf), sampler="dpm_adaptive")
    first, wild, last = (
        f.result().latents for f in together(engine, [Trajectory(TinyBackbone(), r) for r in requests])
    )
    assert not wild.isfinite().any()
    for found, wanted in ((first, requests[0]), (last, requests[2])):
        assert relative_error(found, alone(TinyBackbone(), wanted)) <= 1e-3
    monkeypatch.setattr(engine_module, "read", fail)
    again = [future.result().latents for future in together(engine, [Trajectory(TinyBackbone(), r) for r in requests])]
    assert torch.equal(again[0], first)
    assert torch.equal(again[2], last)


def test_an_engine_that_has_ended_says_so(engine):
    assert engine.alive
    engine.close()
    assert not engine.alive


def test_the_engine_says_for_how_long_it_has_been_in_one_forward_or_call(engine):
    entered, go = Event(), Event()

    def turn():
        entered.set()
        go.wait(30)
        return engine.turn

    first = engine.call(turn)
    assert entered.wait(30)
    during = engine.turn
    assert during > 0
    go.set()
    assert first.result(30) == during
    assert engine.call(turn).result(30) > during, "another call is another turn"
    entered.clear()
    go.clear()

    class Slow(TinyBackbone):
        def answer(self, *given):
            turn()
            return super().answer(*given)

    run = engine.submit(Trajectory(Slow(), request()))
    assert entered.wait(30)
    assert engine.turn > during
    go.set()
    run.result(30)
    while engine.turn:
        sleep(0.001)
