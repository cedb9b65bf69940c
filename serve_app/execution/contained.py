"""Containment of exceptions from node code, so that none of them ends the event loop or hangs a waiter.

SystemExit and KeyboardInterrupt would end the loop, CancelledError looks like a cancellation, and StopIteration cannot
be set on a future. They are wrapped in RaisedError until they are reported.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager

from serve_app.errors import ServeAppError


class RaisedError(ServeAppError):
    """Wraps an exception of node code that is no plain Exception."""

    def __init__(self, raised: BaseException) -> None:
        super().__init__(f"{type(raised).__name__}: {safe_str(raised)}")
        self.raised = raised

    def __reduce__(self) -> tuple[type[RaisedError], tuple[BaseException]]:
        return (RaisedError, (self.raised,))


@contextmanager
def contained() -> Iterator[None]:
    """Run node code; wrap its exceptions that are no plain Exception in RaisedError.

    Only the CancelledError of a task that is being cancelled is not wrapped.
    """
    try:
        yield
    except BaseException as error:
        if isinstance(error, Exception) and not isinstance(error, StopIteration):
            raise
        if isinstance(error, asyncio.CancelledError) and is_cancelled():
            raise
        raise RaisedError(error) from error


def is_cancelled() -> bool:
    """Whether the current asyncio task is being cancelled."""
    try:
        running = asyncio.current_task()
    except RuntimeError:  # a thread without a loop
        return False
    return running is not None and running.cancelling() > 0


def original_error(error: BaseException) -> BaseException:
    """Unwrap a RaisedError."""
    return error.raised if isinstance(error, RaisedError) else error


def safe_str(value: object) -> str:
    """Return str(value), or a substitute if the value's own `__str__` fails."""
    try:
        # A subclass of str is converted to plain str.
        return "".join(str(value))
    except BaseException as error:
        return f"<{type(value).__name__} without a text: {type(error).__name__}>"
