"""Calls on the side stream, in virtual time: what they cost the steps of runs, and that they end.

The device has two streams. While forwards have work, the side stream has a small share of it; else all of it.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from math import inf
from typing import Any

import pytest
import torch
from torch import Tensor

from serve_app.engine.engine import IN_FLIGHT, OVERTAKES, Engine
from serve_app.engine.preview import Pictures
from serve_app.engine.side_stream_pool import SideStreamPool
from serve_app.engine.timeline import Mark, Timeline
from serve_app.engine.trajectory import Trajectory
from tests.unit.engine.mixes import MAX_CELLS, TinyBackbone, request
from tests.unit.engine.test_engine import together

FORWARD_S, DECODE_S, ASKING_S = 0.0366, 0.0366, 0.0005
"""Eight jobs' forward on a large card, a decode as long, and what the host takes to ask for either."""


@dataclass(eq=False)
class Work:
    """Work of a stream. left_s: of it; enqueued_s: when the host did that; after: what has to be done before."""

    left_s: float
    enqueued_s: float
    after: Work | None = None
    began_s: float = inf
    ended_s: float = inf


class Device:
    """A device in virtual time. share: how much of it the side stream has while forwards have work."""

    def __init__(self, share: float = 0.05) -> None:
        self.share = share
        self.host_s = self.now_s = self.idle_s = 0.0
        self.forwards, self.side_stream = Stream(self), Stream(self, side_stream=True)
        self.forwards.side_stream = self.side_stream
        self.current = self.forwards

    def ask(self, device_s: float, host_s: float = ASKING_S) -> Work:
        """Have the host ask the current stream for work."""
        self.host_s += host_s
        return self.current.ask(device_s)

    @property
    def began(self) -> bool:
        """Whether it has begun with forwards."""
        return bool(self.forwards.asked_for) and self.forwards.asked_for[0].began_s < inf

    def advance(self, enough: Callable[[], bool], until_s: float = inf) -> None:
        """Let the device work until something is so, or a time has come."""
        while not enough() and self.now_s < until_s:
            ready = [(s, w) for s in (self.forwards, self.side_stream) if (w := s.head(self.now_s)) is not None]
            rates = {True: self.share, False: 1 - self.share} if len(ready) == 2 else {True: 1.0, False: 1.0}
            come = [
                w.enqueued_s for s in (self.forwards, self.side_stream) for w in s.waiting if w.enqueued_s > self.now_s
            ]
            ends = [self.now_s + w.left_s / rates[s.is_side] for s, w in ready if rates[s.is_side]]
            next_s = min([*come, *ends, until_s])
            assert next_s < inf, "the device is to wait for what it has not been asked for"
            if self.began and not ready:
                self.idle_s += next_s - self.now_s
            for stream, work in ready:
                work.began_s = min(work.began_s, self.now_s)
                work.left_s -= (next_s - self.now_s) * rates[stream.is_side]
                if work.left_s < 1e-12:
                    work.ended_s = next_s
                    stream.waiting.popleft()
            self.now_s = next_s


class Stream:
    """One of its streams, as the engine asks it."""

    at_once = False

    def __init__(self, device: Device, *, side_stream: bool = False) -> None:
        self.device, self.is_side = device, side_stream
        self.side_stream: Timeline | None = None
        self.asked_for: list[Work] = []
        self.waiting: deque[Work] = deque()
        self._after: Work | None = None

    def ask(self, device_s: float) -> Work:
        work = Work(device_s, self.device.host_s, self._after)
        self.asked_for.append(work)
        self.waiting.append(work)
        return work

    def head(self, now_s: float) -> Work | None:
        """Return what it does now."""
        work = self.waiting[0] if self.waiting else None
        if work is None or work.enqueued_s > now_s or (work.after is not None and work.after.ended_s == inf):
            return None
        return work

    @contextmanager
    def enqueueing(self) -> Iterator[None]:
        device = self.device
        earlier, device.current = device.current, self
        if self.is_side and device.forwards.asked_for:
            self._after = device.forwards.asked_for[-1]
        try:
            yield
        finally:
            device.current = earlier

    def keep(self, tensor: Tensor) -> None:
        pass

    def mark(self) -> Mark:
        return Behind(self, self.asked_for[-1] if self.asked_for else None, self.device.host_s, self._after)


@dataclass(frozen=True)
class Behind:
    """A mark behind some work. after: what its stream waits for next."""

    stream: Stream
    work: Work | None
    enqueued_s: float
    after: Work | None

    def done(self) -> bool:
        device = self.stream.device
        device.advance(lambda: False, device.host_s)
        return self._done()

    def wait(self) -> None:
        device = self.stream.device
        device.advance(self._done)
        device.host_s = max(device.host_s, self.at_s())

    def since(self, earlier: Mark) -> float:
        assert isinstance(earlier, Behind)
        return self.at_s() - earlier.at_s()

    def _done(self) -> bool:
        return all(work is None or work.ended_s < inf for work in (self.work, self.after))

    def at_s(self) -> float:
        return max([self.enqueued_s, *(w.ended_s for w in (self.work, self.after) if w is not None)])


class Slow(TinyBackbone):
    """A backbone whose forwards take the device's time. before: called with the number of each."""

    def __init__(self, device: Device) -> None:
        super().__init__()
        self.virtual = device
        self.asked: list[tuple[int, Work]] = []

    def forward(self, x: Tensor, *others: Any) -> Any:
        answer = super().forward(x, *others)
        self.asked.append((len(x), self.virtual.ask(FORWARD_S)))
        return answer


def ran(device: Device, calls: Callable[[Engine, int], None], steps: int = 20, jobs: int = 8) -> Slow:
    """Run jobs; calls: told of the engine before each forward."""
    engine, backbone = Engine(MAX_CELLS, device.forwards), Slow(device)
    backbone.before = lambda count: calls(engine, count)
    for future in together(engine, [Trajectory(backbone, request(seed=seed, steps=steps)) for seed in range(jobs)]):
        future.result(30)
    engine.close()
    return backbone


def took_s(backbone: Slow) -> float:
    """Return how long the device took for all forwards."""
    return backbone.asked[-1][1].ended_s - backbone.asked[0][1].began_s


def test_decodes_on_the_side_stream_delay_steps_of_eight_jobs_by_no_more_than_a_tenth() -> None:
    device, answered = Device(), []

    def calls(engine: Engine, count: int) -> None:
        if count in (3, 8, 13):
            future = engine.call(lambda: device.ask(DECODE_S), side_stream=True)
            future.add_done_callback(lambda future: answered.append((device.host_s, future.result())))

    alone = took_s(ran(Device(), lambda engine, count: None))
    backbone = ran(device, calls)
    assert took_s(backbone) <= 1.1 * alone
    assert device.idle_s <= 0.05 * took_s(backbone)
    assert len(answered) == 3
    for at_s, work in answered:
        assert at_s >= work.ended_s
    # Forwards went on beside the first of them, until those that it may wait for were done.
    [(_, first), *_] = answered
    assert sum(first.began_s < w.began_s < first.ended_s for _, w in backbone.asked) >= OVERTAKES - IN_FLIGHT


def test_side_stream_work_changes_neither_the_measured_forward_times_nor_the_queue_depth() -> None:
    device, engines = Device(), []

    def calls(engine: Engine, count: int) -> None:
        engines.append(engine)
        if count == 5:
            engine.call(lambda: device.ask(DECODE_S), side_stream=True)

    backbone = ran(device, calls)
    assert engines[0].counters.seconds == pytest.approx(20 * FORWARD_S, rel=0.1)
    for index, (_, work) in enumerate(backbone.asked):
        ends_s = [w.ended_s for _, w in backbone.asked[:index]]
        assert sum(ended_s > work.enqueued_s - ASKING_S for ended_s in ends_s) < IN_FLIGHT


def test_a_job_that_comes_while_a_decode_is_under_way_joins_within_two_forwards() -> None:
    device, come = Device(), []

    def calls(engine: Engine, count: int) -> None:
        if count == 5:
            engine.call(lambda: device.ask(DECODE_S), side_stream=True)
        if count == 6:
            come.append(device.host_s)
            engine.submit(Trajectory(backbone_of[0], request(seed=9, steps=3)))

    backbone_of: list[Slow] = []
    engine, backbone = Engine(MAX_CELLS, device.forwards), Slow(device)
    backbone_of.append(backbone)
    backbone.before = lambda count: calls(engine, count)
    for future in together(engine, [Trajectory(backbone, request(seed=seed, steps=20)) for seed in range(8)]):
        future.result(30)
    engine.close()
    first = next(work for rows, work in backbone.asked if rows > 16)
    assert first.began_s - come[0] <= 2 * FORWARD_S * 1.1


def test_a_call_that_forwards_leave_nothing_of_the_device_is_waited_for_in_the_end() -> None:
    device, answered = Device(share=0.0), []

    def calls(engine: Engine, count: int) -> None:
        if count == 3:
            future = engine.call(lambda: (count, device.ask(DECODE_S)), side_stream=True)
            future.add_done_callback(lambda future: answered.append(future.result()[1]))

    backbone = ran(device, calls, steps=40)
    [work] = answered
    before = sum(w.enqueued_s < work.ended_s for _, w in backbone.asked)
    assert OVERTAKES <= before <= OVERTAKES + 4


def test_at_most_two_calls_are_queued_ahead_and_in_order() -> None:
    device = Device()
    ahead: list[int] = []

    def ask() -> None:
        device.advance(lambda: False, device.host_s)
        ahead.append(len(device.side_stream.waiting))
        device.ask(DECODE_S / 4)

    def calls(engine: Engine, count: int) -> None:
        if count == 3:
            for _ in range(6):
                engine.call(ask, side_stream=True)

    ran(device, calls, steps=40)
    assert len(ahead) == 6
    assert max(ahead) == IN_FLIGHT - 1


def test_what_runs_begin_with_stays_among_forwards_and_texts_and_images_do_not() -> None:
    device = Device()
    streams: dict[str, Stream] = {}

    def note(what: str) -> None:
        streams[what] = device.current

    def calls(engine: Engine, count: int) -> None:
        if count == 3:
            engine.call(lambda: note("a beginning"))
            engine.call(lambda: note("an image"), side_stream=True)
            engine.gather("a fox", lambda texts: [note("a text") for _ in texts], "texts", most=4)

    ran(device, calls)
    assert streams == {"a beginning": device.forwards, "an image": device.side_stream, "a text": device.side_stream}


def test_one_preview_is_in_flight_at_a_time_and_the_newest_is_sent() -> None:
    device = Device()
    pictures, made = Pictures(device.forwards, SideStreamPool()), []

    def picture_of(shown: Tensor) -> Tensor:
        made.append(float(shown))
        device.ask(0.01)
        return shown

    for step in range(4):
        pictures.make(torch.tensor(float(step)), picture_of)
        assert pictures.take() is None
    device.host_s += 0.02
    shown = pictures.take()
    assert shown is not None
    assert (float(shown), made) == (0.0, [0.0])
    assert pictures.take() is None
    pictures.make(torch.tensor(4.0), picture_of)
    assert made == [0.0, 4.0]
