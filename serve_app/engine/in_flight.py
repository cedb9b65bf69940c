"""Work in flight: enqueued on a device that may not have done it yet, and what is delivered once it has.

A forward of runs or a call is in flight from the moment the engine has enqueued it. Once the device has done it, what
it used is closed, callbacks are called and futures get their results.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Hashable, Iterator, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch

from serve_app.engine.device_lost import check
from serve_app.engine.stopping import StoppableFuture
from serve_app.engine.timeline import Mark
from serve_app.engine.trajectory import Trajectory
from serve_app.log import get
from serve_app.sampling.request import Sampled

log = get("engine")


class Closeable(Protocol):
    """What work on the device uses, such as a `Hold`: the engine closes it once no such work is left."""

    def close(self) -> None: ...


@dataclass(slots=True, eq=False)
class Run:
    """A trajectory in the engine, as the batcher sees it. over: it has ended, or its future has its error.

    trace: the span that its forwards belong to, None for none.
    """

    trajectory: Trajectory
    future: StoppableFuture[Sampled]
    uses: Closeable | None = None
    since: int = 0
    over: bool = False
    trace: str | None = None
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
class Completion:
    """What completed work delivers: callbacks of steps, results of runs and answers of calls, to their futures."""

    callbacks: list[Callable[[], object]] = field(default_factory=list)
    results: list[tuple[Future[Sampled], Sampled]] = field(default_factory=list)
    answers: list[tuple[Future[Any], Any]] = field(default_factory=list)

    def add(self, run: Run) -> None:
        """Add the steps and the result of a run since the last call."""
        self.callbacks += run.trajectory.take_callbacks()
        if (result := run.trajectory.result) is not None:
            run.over = True
            self.results.append((run.future, result))

    def futures(self) -> list[Future[Any]]:
        """Return the futures that wait for it."""
        return [future for future, _ in (*self.results, *self.answers)]

    def deliver(self) -> None:
        """Call callbacks and set results, once the device has done the work."""
        for callback in self.callbacks:
            try:
                callback()
            except BaseException as error:
                log.warning("a step of a run could not be reported: error=%s", repr(error))
        for answered, answer in self.answers:
            answered.set_result(answer)
        for future, result in self.results:
            # Whoever waits for one that was cancelled then hears of it.
            if future.set_running_or_notify_cancel():
                # A copy made outside inference mode is an ordinary tensor, which may be changed in place.
                with torch.inference_mode(False):
                    future.set_result(Sampled(result.latents.clone(), result.denoised.clone()))


@dataclass(slots=True)
class InFlight:
    """Work that was enqueued. began, ended: the marks around it.

    learn: called with the seconds it took. after: how many forwards had been enqueued before. closes: closed once it is
    done, as nothing else uses it.
    """

    began: Mark
    ended: Mark
    learn: Callable[[float], None]
    completion: Completion = field(default_factory=Completion)
    is_forward: bool = False
    after: int = 0
    closes: Sequence[Closeable | None] = ()


class InFlightQueue:
    """The work in work on one stream, in order."""

    def __init__(self) -> None:
        self._in_flight: deque[InFlight] = deque()
        self.forwards = 0
        """How many of these are forwards."""

    def __len__(self) -> int:
        return len(self._in_flight)

    @property
    def oldest(self) -> InFlight:
        return self._in_flight[0]

    def add(self, work: InFlight) -> None:
        """Add the work that was enqueued last."""
        self._in_flight.append(work)
        self.forwards += work.is_forward

    def complete(self) -> None:
        """Wait for the oldest work and deliver what it made. Errors: DeviceLostError."""
        work = self._in_flight[0]
        try:
            work.ended.wait()
            work.learn(work.ended.since(work.began))
        except BaseException as error:
            check(error)
            raise
        self._in_flight.popleft()
        self.forwards -= work.is_forward
        close(*work.closes)
        work.completion.deliver()

    def complete_all(self) -> None:
        """Wait for all work and deliver what it made. Errors: DeviceLostError."""
        while self._in_flight:
            self.complete()

    def abandon(self) -> list[Future[Any]]:
        """Forget all work; return the futures that wait for it."""
        left = [future for work in self._in_flight for future in work.completion.futures()]
        close(*(used for work in self._in_flight for used in work.closes))
        self._in_flight.clear()
        return left


def close(*used: Closeable | None) -> None:
    """Close what work has used."""
    for one in used:
        if one is not None:
            one.close()
