"""What a class's own code raises, kept to that class: it ends no event loop, and nobody waits for it in vain.

SystemExit and KeyboardInterrupt end a loop as they leave one of its tasks, CancelledError looks like a cancellation
that nobody asked for, and StopIteration can be put into no future. They travel as RaisedError until they are reported.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager

from serve_app.errors import ServeAppError


class RaisedError(ServeAppError):
    """Carries what a class's code raised that is no plain Exception."""

    def __init__(self, raised: BaseException) -> None:
        super().__init__(f"{type(raised).__name__}: {said(raised)}")
        self.raised = raised

    def __reduce__(self) -> tuple[type[RaisedError], tuple[BaseException]]:
        return (RaisedError, (self.raised,))


@contextmanager
def contained() -> Iterator[None]:
    """Run other people's code: what it raises that is no plain Exception leaves as RaisedError.

    Only the CancelledError of a task that is being cancelled leaves as it is.
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
    """Whether the asyncio task that runs here has been asked to stop."""
    try:
        running = asyncio.current_task()
    except RuntimeError:  # a thread without a loop
        return False
    return running is not None and running.cancelling() > 0


def raised(error: BaseException) -> BaseException:
    """Return what was raised in the first place."""
    return error.raised if isinstance(error, RaisedError) else error


def said(value: object) -> str:
    """Return str(value), also where the value's own code for that fails."""
    try:
        # Of a subclass of str, its plain text.
        return "".join(str(value))
    except BaseException as error:
        return f"<{type(value).__name__} without a text: {type(error).__name__}>"
