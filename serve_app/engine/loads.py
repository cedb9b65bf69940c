"""Weights made ready beside the engine's thread: first their room, in order of arrival, then what is absent is loaded.

So forwards go on while weights are loaded, and work whose weights are there begins. Requests get room in the order in
which they came; if later ones could take resident models first, those might stay in use for ever. A request that needs
several models gets them at once, and no holder of one asks for another, so those in use do come free. What is only
expected to be asked for is loaded when nothing else is to be, into room that nobody needs.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Hashable
from concurrent.futures import Future
from dataclasses import dataclass
from queue import SimpleQueue
from threading import Thread
from time import sleep
from traceback import clear_frames
from typing import Any, TypeAlias, TypeVar

import torch

from serve_app.engine.side_work import fail
from serve_app.engine.timeline import Timeline
from serve_app.models.weights.recipes import Need
from serve_app.models.weights.residency import Hold
from serve_app.models.weights.weights import Weights
from serve_app.openmp import end_team

T = TypeVar("T")

RETRY_S = 0.02
"""How often it is asked again whether weights fit."""


class Loads:
    """Makes a replica's weights ready.

    failed: told, in another thread, of what a load raises. timeline: of forwards, whose memory weights are of too.
    """

    def __init__(self, weights: Weights, failed: Callable[[BaseException], object], timeline: Timeline) -> None:
        self._weights = weights
        self._failed = failed
        self._rooms, self._loads, self._ahead = (_Line(name, timeline) for name in ("rooms", "loads", "ahead"))
        self.ahead = AheadCounters()
        # By key, what was loaded ahead and nobody has used yet.
        self._unused: dict[Hashable, None] = {}

    @property
    def turn(self) -> int:
        """The number of the load that is under way, from 1; 0 in between."""
        return self._loads.turn

    def room(self, need: Callable[[], Need]) -> Future[Hold]:
        """Return what keeps the weights of a piece of work in use, once they fit; those absent are not loaded by then.

        need: says what they are; asked once, in another thread. Errors, in the future: its own.
        """

        def wait(future: Future[Hold]) -> Hold | None:
            wanted = need()
            while not future.cancelled():
                if (hold := self._weights.hold(wanted)) is not None:
                    self.ahead.used += sum(self._take(key) for key in wanted.nbytes if key in self._unused)
                    return hold
                sleep(RETRY_S)
            return None

        return self._rooms.do(wait, lambda error: None)

    def load(self, hold: Hold) -> Future[None]:
        """Load what of a hold is absent. Errors, in the future: ModelFileError and what else loading raises."""
        return self._loads.do(lambda _: self._weights.load(hold), self._failed)

    def load_ahead(self, need: Need, spared: Callable[[str], bool]) -> Future[bool]:
        """Load what nobody has asked for yet, while nothing that was waits; return whether there was room for it.

        Room is what is free, and idle weights whose names, as `Weights.resident`, are not spared. Errors, in the
        future: as `load`.
        """

        def work(future: Future[bool]) -> bool | None:
            while not future.cancelled():
                if self._loads.idle:
                    return self._loaded_ahead(need, spared)
                sleep(RETRY_S)
            return None

        return self._ahead.do(work, self._failed)

    def _loaded_ahead(self, need: Need, spared: Callable[[str], bool]) -> bool:
        for key in [key for key in self._unused if not self._weights.is_resident(key)]:
            self._unused.pop(key, None)
            self.ahead.dropped += 1
        absent = [key for key in need.nbytes if not self._weights.is_resident(key)]
        hold = self._weights.hold_ahead(need, spared) if absent else None
        if hold is None:
            self.ahead.dropped += bool(absent)
            return not absent
        self.ahead.begun += len(absent)
        self._weights.load(hold)
        self._unused.update(dict.fromkeys(absent))
        return True

    def _take(self, key: Hashable) -> bool:
        """Note that work is to use what was loaded ahead; return whether it is still there."""
        self._unused.pop(key, None)
        return self._weights.is_resident(key)


@dataclass(slots=True)
class AheadCounters:
    """Of weights that were loaded ahead: begun; used since; dropped, for want of room or use, or as plans changed."""

    begun: int = 0
    used: int = 0
    dropped: int = 0


_Item: TypeAlias = "tuple[Callable[[Future[Any]], Any], Callable[[BaseException], object], Future[Any]] | None"


class _Line:
    """A thread that does what it is given in order, without autograd. It ends once nobody has the line."""

    def __init__(self, name: str, timeline: Timeline) -> None:
        self._turns = [0, 0]
        self._waiting: SimpleQueue[_Item] = SimpleQueue()
        Thread(target=_run, args=(self._waiting, self._turns, timeline), name=name, daemon=True).start()
        weakref.finalize(self, self._waiting.put, None)

    @property
    def turn(self) -> int:
        return self._turns[1]

    @property
    def idle(self) -> bool:
        """Whether nothing is to be done."""
        return not self._turns[1] and self._waiting.empty()

    def do(self, work: Callable[[Future[T]], T | None], failed: Callable[[BaseException], object]) -> Future[T]:
        """Do it unless the future is cancelled by then; work that gives None where it is cancelled meanwhile may."""
        future: Future[T] = Future()
        self._waiting.put((work, failed, future))
        return future


def _run(waiting: SimpleQueue[_Item], turns: list[int], timeline: Timeline) -> None:
    with torch.no_grad(), timeline.asked():
        while (item := waiting.get()) is not None:
            turns[0] += 1
            turns[1] = turns[0]
            _do(*item)
            turns[1] = 0
            # What was done holds weights, and must not while this waits.
            del item
            end_team()


def _do(work: Callable[[Future[Any]], Any], failed: Callable[[BaseException], object], future: Future[Any]) -> None:
    if future.cancelled():
        return
    try:
        made, raised = work(future), None
    except BaseException as error:
        made, raised = None, error
    # Whoever keeps the error would keep what the frames that raised it have.
    del work
    if raised is not None:
        clear_frames(raised.__traceback__)
        failed(raised)
        fail(future, raised)
    elif future.set_running_or_notify_cancel():
        future.set_result(made)
