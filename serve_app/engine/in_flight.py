"""What a device has been asked for and may not have done yet, and what is told once it has.

A forward of runs or a call is in flight from the moment the engine has asked for it. Until then it keeps what it uses.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Hashable, Iterator
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Any

import torch

from serve_app.engine.device_lost import check
from serve_app.engine.stopping import Asked
from serve_app.engine.timeline import Mark
from serve_app.engine.trajectory import Trajectory
from serve_app.log import get
from serve_app.sampling.request import Sampled

log = get("engine")


@dataclass(slots=True, eq=False)
class Run:
    """A trajectory in the engine, as the batcher sees it. over: it has ended, or its future has its error."""

    trajectory: Trajectory
    future: Asked[Sampled]
    since: int = 0
    over: bool = False
    _brief: set[Hashable] = field(default_factory=set)

    @property
    def is_brief(self) -> bool:
        """Whether all that its trajectory waits for has been in a forward that was brief."""
        return self._brief.issuperset(self._asked())

    def was_brief(self) -> None:
        """Note that what its trajectory waits for was."""
        self._brief.update(self._asked())

    def _asked(self) -> Iterator[Hashable]:
        return ((id(piece.inputs), piece.group_key) for piece in self.trajectory.pieces)

    @property
    def key(self) -> Hashable:
        return self.trajectory.key

    @property
    def cost(self) -> int:
        return self.trajectory.cells


@dataclass(slots=True)
class News:
    """What runs have come to: told is to be called, and futures are to get their results. answers: those of calls."""

    told: list[Callable[[], object]] = field(default_factory=list)
    results: list[tuple[Future[Sampled], Sampled]] = field(default_factory=list)
    answers: list[tuple[Future[Any], Any]] = field(default_factory=list)

    def take(self, run: Run) -> None:
        """Take what a run has come to since it was last asked."""
        self.told += run.trajectory.take_told()
        if (result := run.trajectory.result) is not None:
            run.over = True
            self.results.append((run.future, result))

    def futures(self) -> list[Future[Any]]:
        """Return those that are to get something."""
        return [future for future, _ in (*self.results, *self.answers)]

    def tell(self) -> None:
        """Tell it, once the device has done what it is of."""
        for tell in self.told:
            try:
                tell()
            except BaseException as error:
                log.warning("what a run has come to could not be told: error=%s", repr(error))
        for answered, answer in self.answers:
            answered.set_result(answer)
        for future, result in self.results:
            # Whoever waits for one that was cancelled then hears of it.
            if future.set_running_or_notify_cancel():
                # A copy made outside inference mode is an ordinary tensor, which may be changed in place.
                with torch.inference_mode(False):
                    future.set_result(Sampled(result.latents.clone(), result.denoised.clone()))


@dataclass(slots=True)
class Flight:
    """What the device has been asked for and may not have done. began, ended: the marks around it.

    learn: to be told the seconds it took. after: how many forwards had been asked for. keeps: what it uses, which must
    not go before.
    """

    began: Mark
    ended: Mark
    learn: Callable[[float], None]
    news: News = field(default_factory=News)
    is_forward: bool = False
    after: int = 0
    keeps: tuple[object, ...] = ()


class Flights:
    """What a device has been asked for on one timeline, in order."""

    def __init__(self) -> None:
        self._flights: deque[Flight] = deque()
        self.forwards = 0
        """How many of them are forwards."""

    def __len__(self) -> int:
        return len(self._flights)

    @property
    def oldest(self) -> Flight:
        return self._flights[0]

    def add(self, flight: Flight) -> None:
        """Take in what the device was asked for last."""
        self._flights.append(flight)
        self.forwards += flight.is_forward

    def land(self) -> None:
        """Wait for the oldest, and tell of it. Errors: DeviceLostError."""
        flight = self._flights[0]
        try:
            flight.ended.wait()
            flight.learn(flight.ended.since(flight.began))
        except BaseException as error:
            check(error)
            raise
        self._flights.popleft()
        self.forwards -= flight.is_forward
        flight.news.tell()

    def land_all(self) -> None:
        """Wait for all of them. Errors: DeviceLostError."""
        while self._flights:
            self.land()

    def abandon(self) -> list[Future[Any]]:
        """Forget all of them; return the futures that were to hear of them."""
        left = [future for flight in self._flights for future in flight.news.futures()]
        self._flights.clear()
        return left
