"""The queue of one-off calls between forwards: which is next, and which are batched with it.

It decides and does; when, and in which thread, is the engine's. Calls of one key are batched by the batcher's rule: the
oldest is always answered, others of its key as far as they fit.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Hashable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from traceback import clear_frames
from typing import Any

import torch

from serve_app import log
from serve_app.engine.batcher import share
from serve_app.engine.device_lost import check, is_lost
from serve_app.engine.in_flight import Closeable, close
from serve_app.engine.stopping import StoppableFuture, StoppedError

_log = log.get("engine")

PAUSED = object()
"""The answer of a call that is to be run again, after the others that wait."""
PACES_KEPT = 256
"""Of how many keys the last duration is kept."""


@dataclass(slots=True, eq=False)
class Call:
    """One-off work, as the batcher sees it. answers: from the questions of calls of one key to an answer for each.

    key: only equal keys share a batch; None: it runs alone. cost: how much work it is, in a unit of its key (texts,
    pixels); most: the cost of a batch at most; even: a unit takes as long in any call. side_stream, uses: as
    `Engine.call`. over: it is not run again.
    """

    answers: Callable[[list[Any]], Sequence[Any]]
    future: StoppableFuture[Any]
    question: Any = None
    key: Hashable = None
    cost: int = 1
    most: int = 1
    even: bool = False
    side_stream: bool = False
    uses: Closeable | None = None
    over: bool = field(default=False, init=False)

    def begin(self) -> bool:
        """Whether the call is not cancelled; its future is then running. If it is, what it uses is closed."""
        if _starts(self.future):
            return True
        close(self.uses)
        return False


class Calls:
    """The calls that wait, oldest first."""

    def __init__(self) -> None:
        self._waiting: deque[Call] = deque()
        # Seconds that a unit of work took last, by key.
        self._paces_s: dict[Hashable, float] = {}

    def __bool__(self) -> bool:
        return bool(self._waiting)

    def add(self, call: Call) -> None:
        """Append a call."""
        self._waiting.append(call)

    def take(self, left_s: float | None) -> list[Call]:
        """Take out the oldest call and those batched with it; [] if there is none. Their futures are then running.

        left_s: seconds left before the next forward, which limit the batch by past durations of the key; the oldest
        call runs regardless. None: no limit.
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
        return [first, *(call for call in equal if call.begin())]

    def run(self, calls: Sequence[Call]) -> list[tuple[Future[Any], Any]]:
        """Run calls that were taken together; return futures with answers, which the device may not have computed yet.

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
                    call.over = True
                    answered.append((call.future, answer))
        except BaseException as error:
            if is_lost(error):
                self._waiting.extendleft(calls)
            check(error)
            if len(calls) == 1 or isinstance(error, StoppedError):
                for call in calls:
                    call.over = True
                    fail(call.future, error)
                return []
            _log.warning("work done together failed and is done one by one: calls=%d error=%s", len(calls), repr(error))
            for call in reversed(calls):
                call.key = None
                self._waiting.appendleft(call)
        return answered

    def learn(self, calls: Sequence[Call]) -> Callable[[float], None]:
        """Return a function that takes the seconds that a batch of calls took. It keeps no reference to the calls."""
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
        """Return `expected_s` for calls whose cost is known to be proportional to time; 0 for others."""
        return self.expected_s(calls) if calls[0].even else 0.0

    def fail(self, error: BaseException) -> None:
        """Fail every call that waits."""
        while self._waiting:
            call = self._waiting.popleft()
            close(call.uses)
            fail(call.future, error)

    def _oldest(self) -> Call | None:
        """Take out the oldest call that is not cancelled; its future is then running."""
        while self._waiting:
            if (call := self._waiting.popleft()).begin():
                return call
        return None


def _cost(calls: Sequence[Call]) -> int:
    """Return the cost of calls in all; at least 1, as the batch of a question may be empty."""
    return max(1, sum(call.cost for call in calls))


def fail(future: Future[Any], error: BaseException) -> None:
    """Give a future an error, unless it has been cancelled. Called where the frames that raised it have ended."""
    if isinstance(error, StopIteration):
        # asyncio does not deliver StopIteration through a future.
        error = RuntimeError(f"it raised {error!r}")
    if isinstance(error, StoppedError):
        error = StoppedError()
    # Whoever keeps the error would keep what the frames have, such as a forward's tensors.
    clear_frames(error.__traceback__)
    if _starts(future):
        future.set_exception(error)


def _starts(future: Future[Any]) -> bool:
    """Whether the future is not cancelled; it is then running."""
    return future.running() or future.set_running_or_notify_cancel()
