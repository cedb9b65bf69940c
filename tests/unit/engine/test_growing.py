"""How many rows the engine's forwards have as it learns what they take, in virtual time; counted, not timed."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import Future
from threading import Event
from typing import Any

import pytest
import torch

from serve_app.engine.curve import MEASURED
from serve_app.engine.engine import IN_FLIGHT, Engine
from serve_app.engine.trajectory import Trajectory
from serve_app.sampling.latents.latents import LatentFormat
from serve_app.sampling.schedules.levels import FlowLevels
from tests.unit.engine.mixes import MAX_CELLS, TinyBackbone, request
from tests.unit.engine.test_engine import held, together
from tests.unit.engine.test_pacing import Device


@pytest.fixture
def measured() -> None:
    """Durations are virtual here, and decide who shares a forward."""


@pytest.fixture
def device() -> Device:
    return Device()


@pytest.fixture
def engine(device: Device) -> Iterator[Engine]:
    engine = Engine(MAX_CELLS, device)  # type: ignore[arg-type]
    yield engine
    engine.close()


class Timed(TinyBackbone):
    """A backbone whose forwards take a device's virtual time by their rows. rows: of each forward, of all of a log."""

    def __init__(self, device: Device, takes_s: Callable[[int], float], log: list[Any], **given: Any) -> None:
        super().__init__(**given)
        self.virtual, self.takes_s, self.log = device, takes_s, log

    def forward(self, x: torch.Tensor, *others: Any) -> torch.Tensor:
        answer = super().forward(x, *others)
        self.virtual.ask(0.0001, self.takes_s(len(x)))
        self.log.append((self.key, len(x)))
        return answer


def video(device: Device, log: list[Any]) -> Timed:
    """Return a backbone of videos whose rows each take as long as alone."""
    latents = LatentFormat(3, frames=4)
    return Timed(device, lambda rows: 0.5 * rows, log, name="video", levels=FlowLevels(3.0, 1.0), latents=latents)


def a_video(seed: int, steps: int) -> Any:
    return request(seed=seed, steps=steps, shape=(1, 3, 5, 8, 8))


def rows_of(log: list[Any]) -> list[int]:
    return [rows for _, rows in log]


def ended(futures: list[Future[Any]]) -> None:
    for future in futures:
        future.result(60)


def test_forwards_hold_as_many_rows_as_fill_the_card_once_that_is_known(engine: Engine, device: Device) -> None:
    """Four rows fill it, and eight jobs have sixteen."""
    log: list[Any] = []
    backbone = Timed(device, lambda rows: max(0.05, 0.0125 * rows), log)
    ended(together(engine, [Trajectory(backbone, request(seed=seed, steps=20)) for seed in range(8)]))
    rows = rows_of(log)
    assert max(rows) == 8
    assert rows.count(8) <= MEASURED + IN_FLIGHT + 1
    settled = rows[2 * (MEASURED + IN_FLIGHT) :]
    assert settled.count(4) >= 0.8 * len(settled)


def test_images_whose_throughput_grows_share_all_rows_within_a_few_forwards(engine: Engine, device: Device) -> None:
    log: list[Any] = []
    backbone = Timed(device, lambda rows: 0.02 + 0.0001 * rows, log)
    ended(together(engine, [Trajectory(backbone, request(seed=seed, steps=20)) for seed in range(8)]))
    assert rows_of(log).index(16) <= 4 * (1 + IN_FLIGHT)
    assert len(log) <= 20 + 4 * (1 + IN_FLIGHT)


def test_eight_videos_take_turns_and_are_no_more_than_twice_one_in_a_forward(engine: Engine, device: Device) -> None:
    log: list[Any] = []
    backbone = video(device, log)
    ended(together(engine, [Trajectory(backbone, a_video(seed, 6)) for seed in range(8)]))
    rows = rows_of(log)
    assert max(rows) == 2 * min(rows)
    assert rows.count(max(rows)) <= MEASURED + IN_FLIGHT + 1


def test_a_short_image_beside_a_long_video_waits_for_two_forwards_before_each_of_its_steps(
    engine: Engine, device: Device
) -> None:
    """A step of the video is 25 times one of the image, so the image goes on, step by step, once it has come."""
    log: list[Any] = []
    image, videos = Timed(device, lambda rows: 0.002 * rows, log, name="image"), video(device, log)
    coming: list[Future[Any]] = []

    def come(count: int) -> None:
        if count == 4:
            coming.append(engine.submit(Trajectory(image, request(seed=9, steps=4, shape=(1, 4, 2, 2)))))

    videos.before = come
    ended(together(engine, [Trajectory(videos, request(seed=1, steps=40, shape=(1, 3, 5, 16, 16)))]))
    ended(coming)
    keys = [key for key, _ in log]
    came = 3
    at = [number for number, key in enumerate(keys) if key == "image"]
    assert len(at) == 4
    waited = [later - earlier - 1 for earlier, later in zip([came, *at], at, strict=False)]
    assert max(waited) <= 2, keys


class Counted(Trajectory):
    """A run that counts its answers."""

    answered = 0

    def feed(self, answers: Any) -> None:
        self.answered += 1
        super().feed(answers)


@pytest.mark.parametrize("others", [0, 3])
def test_a_cancelled_video_has_two_more_forwards_at_most(engine: Engine, device: Device, others: int) -> None:
    backbone, cancelled, answered_then = video(device, []), Event(), []

    def on_step(done: int, steps: int) -> Callable[[], None]:
        def told() -> None:
            if done == 3:
                answered_then.append(run.answered)
                futures[0].cancel()
                cancelled.set()

        return told

    run = Counted(backbone, a_video(0, 20), on_step)
    go = held(engine)
    futures = [engine.submit(run), *(engine.submit(Trajectory(backbone, a_video(s, 20))) for s in range(1, 1 + others))]
    go.set()
    assert cancelled.wait(60)
    # One that comes after it has its turns, were it still there.
    ended([*futures[1:], engine.submit(Trajectory(backbone, a_video(9, 4)))])
    assert run.answered - answered_then[0] <= IN_FLIGHT
