"""How far ahead of a device the engine asks, and what it learns and tells: in virtual time, to the microsecond.

The device does what it is asked for in order, beside the host. Both have a clock; nothing else passes time.
"""

from __future__ import annotations

from dataclasses import dataclass
from threading import Event

import pytest

from serve_app.engine.engine import IN_FLIGHT, Engine
from serve_app.engine.timeline import HostTimeline
from serve_app.engine.trajectory import Trajectory
from serve_app.errors import UnavailableError
from tests.unit.engine.mixes import MAX_CELLS, TinyBackbone, request
from tests.unit.engine.test_engine import held, together

ROW_S = 0.0022
"""What the device takes for a row, beside `FORWARD_S` a forward: about a graph of SD 1 on a large card."""
FORWARD_S = 0.0014
ASKING_S = {"graph": 0.0023, "eager": 0.0168}
"""What the host takes to ask for a forward."""


class Device(HostTimeline):
    """A device in virtual time, and its timeline. host_s, free_s: the host's clock; when the device has done all.

    broken: which question to a mark raises, as of a device that is lost.
    """

    def __init__(self) -> None:
        self.host_s = self.free_s = 0.0
        self.broken = ""
        self.done: list[tuple[float, float]] = []
        """When each of what it was asked for began and ended."""

    def ask(self, host_s: float, device_s: float) -> tuple[float, float]:
        """Have the host ask for work; return when that begins and ends."""
        self.host_s += host_s
        began_s = max(self.host_s, self.free_s)
        self.free_s = began_s + device_s
        self.done.append((began_s, self.free_s))
        return self.done[-1]

    def mark(self) -> Mark:  # type: ignore[override]
        if self.broken == "mark":
            raise RuntimeError("CUDA error: an illegal memory access was encountered")
        return Mark(self, self.host_s, max(self.host_s, self.free_s))


@dataclass(frozen=True)
class Mark:
    device: Device
    enqueued_s: float
    at_s: float

    def done(self) -> bool:
        self._ask("done")
        return self.device.host_s >= self.at_s

    def _ask(self, what: str) -> None:
        if self.device.broken == what:
            raise RuntimeError("CUDA error: an illegal memory access was encountered\nCUDA kernel errors might be")

    def wait(self) -> None:
        self._ask("wait")
        self.device.host_s = max(self.device.host_s, self.at_s)

    def since(self, earlier: Mark) -> float:  # type: ignore[override]
        assert self.done()
        return self.at_s - earlier.at_s


class Slow(TinyBackbone):
    """A backbone whose forwards take the device's time. asked: of each, rows, when it was asked for, and its end."""

    def __init__(self, device: Device, asking_s: float = ASKING_S["graph"]) -> None:
        super().__init__()
        self.virtual, self.asking_s = device, asking_s
        self.asked: list[tuple[int, float, float]] = []

    def forward(self, x, *others):
        answer = super().forward(x, *others)
        at_s = self.virtual.host_s
        _, end_s = self.virtual.ask(self.asking_s, takes_s(len(x)))
        self.asked.append((len(x), at_s, end_s))
        return answer


def takes_s(rows: int) -> float:
    return FORWARD_S + ROW_S * rows


@pytest.fixture
def device():
    return Device()


@pytest.fixture
def engine(device):
    engine = Engine(MAX_CELLS, device)
    yield engine
    engine.close()


@pytest.mark.parametrize("asking", ASKING_S)
def test_eight_jobs_keep_the_device_busy_with_at_most_two_queued_forwards(engine, device, asking):
    backbone = Slow(device, ASKING_S[asking])
    together(engine, [Trajectory(backbone, request(seed=seed, steps=20)) for seed in range(8)])
    began_s, ended_s = device.done[0][0], device.done[-1][1]
    assert sum(end - start for start, end in device.done) >= 0.95 * (ended_s - began_s)
    for index, (_, at_s, _) in enumerate(backbone.asked):
        assert sum(end_s > at_s for *_, end_s in backbone.asked[:index]) < IN_FLIGHT


@pytest.mark.parametrize("asking", ASKING_S)
def test_what_forwards_take_is_the_devices_time(engine, device, asking):
    backbone = Slow(device, ASKING_S[asking])
    together(engine, [Trajectory(backbone, request(seed=seed, steps=20)) for seed in range(8)])
    assert engine.counters.forwards == 20
    assert engine.counters.seconds == pytest.approx(20 * takes_s(16), rel=0.1)


def test_a_job_that_comes_joins_within_two_forwards(engine, device):
    backbone, come, late = Slow(device), [], []

    def before(count):
        if count == 6:
            come.append(device.host_s)
            late.append(engine.submit(Trajectory(backbone, request(seed=9, steps=3))))

    backbone.before = before
    together(engine, [Trajectory(backbone, request(seed=seed, steps=20)) for seed in range(8)])
    assert late[0].result(30) is not None
    first = next(index for index, (rows, *_) in enumerate(backbone.asked) if rows > 16)
    begins_s = backbone.asked[first][2] - takes_s(18)
    assert begins_s - come[0] <= 2 * takes_s(16)


def test_a_job_that_is_cancelled_leaves_within_two_forwards(engine, device):
    backbone, leaving = Slow(device), []

    def on_step(done, steps):
        def told():
            if done == 5:
                leaving.append((device.host_s, futures[0].cancel()))

        return told

    futures = []
    go = held(engine)
    futures.append(engine.submit(Trajectory(backbone, request(steps=20), on_step)))
    futures += [engine.submit(Trajectory(backbone, request(seed=seed, steps=20))) for seed in range(1, 8)]
    go.set()
    for future in futures[1:]:
        future.result(30)
    [(at_s, cancelled)] = leaving
    assert cancelled
    last_s = max(end_s for rows, _, end_s in backbone.asked if rows == 16)
    assert last_s - at_s <= 2 * takes_s(16)


def test_a_step_is_reported_when_the_device_has_done_it(engine, device):
    backbone, told = Slow(device), []

    def on_step(done, steps):
        return lambda: told.append(device.host_s)

    futures = [Trajectory(backbone, request(seed=seed, steps=10), on_step if not seed else None) for seed in range(8)]
    [first, *_] = together(engine, futures)
    assert first.done()
    assert len(told) == 10
    for at_s, (_, _, end_s) in zip(told, backbone.asked, strict=True):
        assert 0 <= at_s - end_s <= ASKING_S["graph"]


def test_as_much_is_done_between_two_forwards_as_the_device_does_in_one(engine, device):
    """Texts of 6 ms beside forwards of 36.6 ms, though the host asks for either at once."""
    backbone, asked = Slow(device, 0.0005), []

    def texts(questions):
        asked.append((len(backbone.asked), len(questions)))
        device.ask(0.0005, 0.006 * len(questions))
        return questions

    waiting = []

    def before(count):
        if count == 1:
            waiting.append(engine.gather(0, texts, "texts", most=16))
        if count == 6:
            waiting.extend(engine.gather(n, texts, "texts", most=16) for n in range(20))

    backbone.before = before
    together(engine, [Trajectory(backbone, request(seed=seed, steps=20)) for seed in range(8)])
    for future in waiting:
        future.result(30)
    gaps = [sum(count for at, count in asked if at == gap) for gap in sorted({at for at, _ in asked})]
    # Six take 36 ms, and the oldest that waits is asked regardless.
    assert gaps == [1, 7, 7, 6]


def test_calls_that_only_ask_the_device_are_let_in_together(engine, device):
    """Eight jobs that come at once begin by calls that end before the device has done what they ask for."""
    backbone, begun = Slow(device), []

    def begin():
        begun.append(len(backbone.asked))
        device.ask(0.001, 0.001)

    def before(count):
        if count == 5:
            for _ in range(8):
                engine.call(begin)

    backbone.before = before
    together(engine, [Trajectory(backbone, request(seed=seed, steps=20)) for seed in range(8)])
    assert begun == [5] * 8


def test_answers_of_calls_are_given_once_the_device_has_them_and_forwards_go_on_meanwhile(engine, device):
    backbone, given = Slow(device), []

    def decode():
        device.ask(0.0005, 0.03)
        return device.free_s

    def before(count):
        if count == 3:
            engine.call(decode).add_done_callback(lambda future: given.append((device.host_s, future.result())))

    backbone.before = before
    together(engine, [Trajectory(backbone, request(seed=seed, steps=10)) for seed in range(8)])[0].result(30)
    [(at_s, has_it_s)] = given
    assert at_s >= has_it_s
    # The host has asked for the next forward by then.
    assert any(enqueued_s < has_it_s < end_s for _, enqueued_s, end_s in backbone.asked)


def test_results_are_given_once_the_device_has_them(engine, device):
    backbone, given = Slow(device), Event()
    future = engine.submit(Trajectory(backbone, request(steps=3)))
    at_s = []
    future.add_done_callback(lambda _: (at_s.append(device.host_s), given.set()))
    assert given.wait(30)
    assert at_s == [backbone.asked[-1][2]]


@pytest.mark.parametrize("question", ["done", "wait", "mark"])
def test_an_asynchronous_device_error_closes_the_engine(engine, device, caplog, question):
    backbone = Slow(device)

    def before(count):
        device.broken = question if count == 3 else ""

    backbone.before = before
    futures = together(engine, [Trajectory(backbone, request(seed=seed, steps=3)) for seed in range(2)])
    for future in futures:
        with pytest.raises(UnavailableError):
            future.result(30)
    assert not engine.alive
    [said] = [record.message for record in caplog.records if record.levelname == "ERROR"]
    assert said.endswith("CUDA error: an illegal memory access was encountered")
