"""One-off work that waits for its turn between forwards: what is next, and what is done together with it.

It decides and does; when, and in which thread, is the engine's. Equal work for several jobs is answered at once, by the
batcher's rule: the first that waits always is, others of its key as far as they fit.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Hashable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Any

import torch

from serve_app import log
from serve_app.engine.batcher import share
from serve_app.engine.device_lost import check, is_lost
from serve_app.engine.stopping import Asked, StoppedError

_log = log.get("engine")

PAUSED = object()
"""The answer of a call that is to go on later, behind the others that wait."""
PACES_KEPT = 256
"""Of how many kinds of work it is remembered how long it takes."""


@dataclass(slots=True, eq=False)
class Call:
    """Work, as the batcher sees it. answers: from the questions of calls of one key to an answer for each.

    key: what it can be done together by; None: it goes alone. cost: how much work it is, in a unit of its key (texts,
    pixels); most: how much of it is done at once; even: a unit takes as long in any. beside, keeps: as `Engine.call`.
    """

    answers: Callable[[list[Any]], Sequence[Any]]
    future: Asked[Any]
    question: Any = None
    key: Hashable = None
    cost: int = 1
    most: int = 1
    even: bool = False
    beside: bool = False
    keeps: object = None
    since: int = field(default=0, init=False)


class Calls:
    """The calls that wait, oldest first."""

    def __init__(self) -> None:
        self._waiting: deque[Call] = deque()
        # Seconds that a unit of work took last, by key.
        self._paces_s: dict[Hashable, float] = {}

    def __bool__(self) -> bool:
        return bool(self._waiting)

    def add(self, call: Call) -> None:
        """Let a call wait for its turn."""
        self._waiting.append(call)

    def take(self, left_s: float | None) -> list[Call]:
        """Take out the oldest call, with those that are done together with it; [] if there is none.

        Their futures are then running. left_s: seconds left before the next forward, held against past durations of the
        key; the oldest call runs regardless. None: no limit.
        """
        first = self._oldest()
        if first is None or first.key is None:
            return [] if first is None else [first]
        most = first.most
        if left_s is not None:
            pace_s = self._paces_s.get(first.key)
            most = 0 if pace_s is None else most if pace_s * most <= left_s else int(left_s / pace_s)
        equal = share([first, *(call for call in self._waiting if call.key == first.key)], most)[1:]
        for call in equal:
            self._waiting.remove(call)
        return [first, *(call for call in equal if _starts(call.future))]

    def run(self, calls: Sequence[Call]) -> list[tuple[Future[Any], Any]]:
        """Run calls that were taken together; return the futures and their answers, which the device may still make.

        If that fails for several, each waits again, to be run alone, unless all were cancelled meanwhile.
        Errors: DeviceLostError.
        """
        answered: list[tuple[Future[Any], Any]] = []
        try:
            # Weights and results outlive the call, and whoever gets a result may change it in place.
            with torch.inference_mode(False), torch.no_grad():
                answers = calls[0].answers([call.question for call in calls])
            for call, answer in list(zip(calls, answers, strict=True)):
                if answer is PAUSED:
                    self.add(call)
                else:
                    answered.append((call.future, answer))
        except BaseException as error:
            if is_lost(error):
                self._waiting.extendleft(calls)
            check(error)
            if len(calls) == 1 or isinstance(error, StoppedError):
                for call in calls:
                    fail(call.future, error)
                return []
            _log.warning("work done together failed and is done one by one: calls=%d error=%s", len(calls), repr(error))
            for call in reversed(calls):
                call.key = None
                self._waiting.appendleft(call)
        return answered

    def learn(self, calls: Sequence[Call]) -> Callable[[float], None]:
        """Return what is to be told how many seconds calls took that were run together. It keeps none of them."""
        key, cost = calls[0].key, _cost(calls)

        def took(seconds: float) -> None:
            if key is not None:
                self._paces_s.pop(key, None)
                self._paces_s[key] = seconds / cost
                if len(self._paces_s) > PACES_KEPT:
                    del self._paces_s[next(iter(self._paces_s))]

        return took

    def expected_s(self, calls: Sequence[Call]) -> float:
        """Return how long calls take together by past durations of their key; 0 if there are none."""
        return self._paces_s.get(calls[0].key, 0.0) * _cost(calls)

    def takes_s(self, calls: Sequence[Call]) -> float:
        """Return what `expected_s` does of calls whose cost says how long they take; 0 of others."""
        return self.expected_s(calls) if calls[0].even else 0.0

    def fail(self, error: BaseException) -> None:
        """Fail every call that waits."""
        while self._waiting:
            fail(self._waiting.popleft().future, error)

    def _oldest(self) -> Call | None:
        """Take out the oldest call that is still wanted; its future is then running."""
        while self._waiting:
            if _starts((call := self._waiting.popleft()).future):
                return call
        return None


def _cost(calls: Sequence[Call]) -> int:
    """Return how much work calls are in all, of which a batch may be empty."""
    return max(1, sum(call.cost for call in calls))


def fail(future: Future[Any], error: BaseException) -> None:
    """Give a future an error, unless it has been cancelled."""
    if isinstance(error, StopIteration):
        # An event loop that waits for the future would never hear of this one.
        error = RuntimeError(f"it raised {error!r}")
    if isinstance(error, StoppedError):
        # Nobody hears of it, and its frames would keep the models that it was raised in.
        error = StoppedError()
    if _starts(future):
        future.set_exception(error)


def _starts(future: Future[Any]) -> bool:
    """Whether the answer is still wanted; the future is then running."""
    return future.running() or future.set_running_or_notify_cancel()
