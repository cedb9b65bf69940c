"""A thread pool for asyncio: runs functions in threads, so that the event loop stays responsive."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import Callable
from queue import SimpleQueue
from typing import Any, TypeAlias, TypeVar

T = TypeVar("T")
_Call: TypeAlias = tuple["asyncio.Future[Any]", Callable[..., Any], tuple[Any, ...]]


class Threads:
    """A pool of at most `most` threads, started on demand; one thread runs its calls in order.

    after: run after each call. concurrent.futures would create two futures for a call, with locks and callbacks, which
    cost more than a short function.
    """

    def __init__(self, name: str, most: int = 1, after: Callable[[], object] = lambda: None) -> None:
        self._name, self._most, self._after = name, most, after
        self._calls: SimpleQueue[_Call | None] = SimpleQueue()
        self._threads: list[threading.Thread] = []
        self._closed = False
        self.idle: list[None] = []
        """One item for each waiting thread; list append and pop are atomic between threads."""

    async def call(self, function: Callable[..., T], *arguments: Any) -> T:
        """Run a function and return its result. Errors: the function's own; RuntimeError once the pool is closed.

        If the caller is cancelled, a running function goes on, and a queued one is not called.
        """
        if self._closed:
            raise RuntimeError(f"the threads '{self._name}' have ended, and make no more calls")
        answer: asyncio.Future[T] = asyncio.get_running_loop().create_future()
        self._calls.put((answer, function, arguments))
        try:
            self.idle.pop()
        except IndexError:
            if len(self._threads) < self._most:
                self._threads.append(threading.Thread(target=self._run, name=self._name, daemon=True))
                self._threads[-1].start()
        return await answer

    def close(self) -> None:
        """Wait until all calls are done."""
        self._closed = True
        for _ in self._threads:
            self._calls.put(None)
        for thread in self._threads:
            thread.join()

    def _run(self) -> None:
        while (call := self._calls.get()) is not None:
            _make(*call)
            del call  # which would be kept until the next
            self._after()
            self.idle.append(None)


def _make(answer: asyncio.Future[Any], function: Callable[..., Any], arguments: tuple[Any, ...]) -> None:
    if answer.cancelled():
        return
    value: Any = None
    error: BaseException | None = None
    try:
        value = function(*arguments)
    except BaseException as raised:
        error = raised
    # A closed loop has nobody waiting.
    with contextlib.suppress(RuntimeError):
        answer.get_loop().call_soon_threadsafe(_settle, answer, value, error)
    del error  # whose traceback refers to this call


def _settle(answer: asyncio.Future[Any], value: Any, error: BaseException | None) -> None:
    if answer.done():  # cancelled meanwhile
        return
    if error is None:
        answer.set_result(value)
    else:
        answer.set_exception(error)
