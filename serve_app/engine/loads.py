"""Loads weights in threads of their own: first they get room, in order of arrival, then absent ones are loaded.

So forwards go on while weights are loaded, and work whose weights are resident begins. Requests get room in order of
arrival: if later ones could take resident models first, those might stay in use for ever. A request gets a hold on all
its models at once and never waits with a hold, so there is no deadlock. Weights are prefetched only while nothing else
is to be loaded, into room that nobody needs.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Hashable
from concurrent.futures import Future
from dataclasses import dataclass
from queue import SimpleQueue
from threading import Thread
from time import sleep
from typing import Any, TypeVar

import torch

from serve_app.engine.side_work import fail
from serve_app.engine.timeline import Timeline
from serve_app.models.weights.recipes import Need
from serve_app.models.weights.residency import Hold
from serve_app.models.weights.weights import Weights
from serve_app.openmp import end_team

T = TypeVar("T")

RETRY_S = 0.02
"""How often it is checked again whether weights fit."""


class Loads:
    """Loads a replica's weights.

    failed: called, in a thread of loads, with the error of a load. timeline: of forwards, whose memory pool is used.
    """

    def __init__(self, weights: Weights, failed: Callable[[BaseException], object], timeline: Timeline) -> None:
        self._weights = weights
        self._failed = failed
        names = ("rooms", "loads", "prefetches")
        self._rooms, self._loads, self._prefetches = (_Worker(name, timeline) for name in names)
        self.prefetched = PrefetchCounters()
        # The keys of prefetched weights that no work has used yet.
        self._unused: dict[Hashable, None] = {}

    @property
    def turn(self) -> int:
        """The number of the load that is under way, from 1; 0 in between."""
        return self._loads.turn

    def room(self, need: Callable[[], Need]) -> Future[Hold]:
        """Return a hold of the weights of a piece of work once they fit; absent ones are not loaded by then.

        The caller closes the hold. need: which weights; called once, in another thread. Errors, in the future: its own.
        """

        def wait(future: Future[Hold]) -> Hold | None:
            wanted = need()
            while not future.cancelled():
                if (hold := self._weights.hold(wanted)) is not None:
                    self.prefetched.used += sum(self._take(key) for key in wanted.nbytes if key in self._unused)
                    return hold
                sleep(RETRY_S)
            return None

        return self._rooms.do(wait, discard=Hold.close)

    def load(self, hold: Hold) -> Future[None]:
        """Load the absent weights of a hold. Errors, in the future: ModelFileError and what else loading raises."""
        own = hold.share()
        return self._loads.do(lambda _: self._weights.load(own), self._failed, over=own.close)

    def prefetch(self, need: Need, spared: Callable[[str], bool]) -> Future[bool]:
        """Load weights that no job needs yet, once no other load waits; return whether there was room for them.

        Room is what is free, and idle weights that are not spared, by name as `Weights.resident` has it. Errors, in the
        future: as `load`.
        """

        def work(future: Future[bool]) -> bool | None:
            while not future.cancelled():
                if self._loads.idle:
                    return self._prefetch(need, spared)
                sleep(RETRY_S)
            return None

        return self._prefetches.do(work, self._failed)

    def close(self) -> None:
        """End its threads after what is asked of them."""
        for worker in (self._rooms, self._loads, self._prefetches):
            worker.close()

    def _prefetch(self, need: Need, spared: Callable[[str], bool]) -> bool:
        for key in [key for key in self._unused if not self._weights.is_resident(key)]:
            self._unused.pop(key, None)
            self.prefetched.dropped += 1
        absent = [key for key in need.nbytes if not self._weights.is_resident(key)]
        hold = self._weights.hold_to_prefetch(need, spared) if absent else None
        if hold is None:
            self.prefetched.dropped += bool(absent)
            return not absent
        self.prefetched.begun += len(absent)
        with hold:
            self._weights.load(hold)
        self._unused.update(dict.fromkeys(absent))
        return True

    def _take(self, key: Hashable) -> bool:
        """Note that work uses prefetched weights; return whether they are still resident."""
        self._unused.pop(key, None)
        return self._weights.is_resident(key)


@dataclass(slots=True)
class PrefetchCounters:
    """Prefetches of weights: begun; used since; dropped for want of room or use, or as plans changed."""

    begun: int = 0
    used: int = 0
    dropped: int = 0


def _ignore(_: object = None) -> None:
    pass


@dataclass(frozen=True, slots=True)
class _Job:
    """Work for a thread. failed: called with its error. over: called once it is done, or will not be.

    The future has its result only after that. discard: called with it, if the future is cancelled by then.
    """

    work: Callable[[Future[Any]], Any]
    future: Future[Any]
    failed: Callable[[BaseException], object]
    discard: Callable[[Any], object]
    over: Callable[[], object]

    def do(self) -> None:
        """Do it, unless the future is cancelled by now."""
        if self.future.cancelled():
            self.over()
            return
        try:
            made = self.work(self.future)
        except BaseException as error:
            self.over()
            self.failed(error)
            fail(self.future, error)
            return
        # Whoever gets the result may need the room that `over` gives back.
        self.over()
        if self.future.set_running_or_notify_cancel():
            self.future.set_result(made)
        elif made is not None:
            self.discard(made)


class _Worker:
    """A thread that does jobs in order, without autograd. It ends when the last reference to the worker does."""

    def __init__(self, name: str, timeline: Timeline) -> None:
        self._turns = [0, 0]
        self._waiting: SimpleQueue[_Job | None] = SimpleQueue()
        Thread(target=_run, args=(self._waiting, self._turns, timeline), name=name, daemon=True).start()
        weakref.finalize(self, self._waiting.put, None)

    @property
    def turn(self) -> int:
        return self._turns[1]

    def close(self) -> None:
        self._waiting.put(None)

    @property
    def idle(self) -> bool:
        """Whether it has nothing to do."""
        return not self._turns[1] and self._waiting.empty()

    def do(
        self,
        work: Callable[[Future[T]], T | None],
        failed: Callable[[BaseException], object] = _ignore,
        *,
        discard: Callable[[T], object] = _ignore,
        over: Callable[[], object] = _ignore,
    ) -> Future[T]:
        """Have work done, unless its future is cancelled by then; as `_Job`. It returns None if it is cancelled."""
        future: Future[T] = Future()
        self._waiting.put(_Job(work, future, failed, discard, over))
        return future


def _run(waiting: SimpleQueue[_Job | None], turns: list[int], timeline: Timeline) -> None:
    with torch.no_grad(), timeline.enqueueing():
        while _do_next(waiting.get(), turns):
            end_team()


def _do_next(job: _Job | None, turns: list[int]) -> bool:
    """Do a job; False if there is none."""
    if job is None:
        return False
    turns[0] += 1
    turns[1] = turns[0]
    job.do()
    turns[1] = 0
    return True
