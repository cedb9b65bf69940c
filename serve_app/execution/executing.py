"""The node call that runs in the current context: a context variable shared by its threads and coroutines.

It lets nodes without capabilities report progress and make subgraphs, as ComfyUI's do by its globals. Source: the facts
of ComfyUI 0.3.64's `comfy_execution/utils.py` and `graph_utils.py`.
"""

from __future__ import annotations

import itertools
import threading
from asyncio import AbstractEventLoop
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any

from serve_app.config.limits import SizeLimits
from serve_app.errors import NodeError
from serve_app.execution.rounds import Rounds
from serve_app.execution.time_limit import TimeLimit

Progress = Callable[[float, float, Any], None]
"""(value, maximum, preview or None) -> nothing. Callable from any thread."""


SendMessage = Callable[[str, Any], None]
"""(type, data) -> nothing: a message of a pack's own for the job's client. Callable from any thread."""


def ignore(*_: Any) -> None:
    """Do nothing."""


class Underway:
    """The running calls, each until its function has ended, even if it was cancelled. Usable from any thread."""

    def __init__(self) -> None:
        self._calls: dict[int, Executing] = {}
        self._queued = 0
        self.ended: Callable[[], object] = lambda: None
        """Called in any thread as the last of them ends."""

    @property
    def waits(self) -> bool:
        """Whether nothing runs, and a call waits for a thread."""
        return self._queued > 0 and not self._calls

    @contextmanager
    def queued(self) -> Iterator[None]:
        """Count a call that asks for a thread in this block, until it has ended. In the event loop's thread."""
        self._queued += 1
        try:
            yield
        finally:
            self._queued -= 1

    def __bool__(self) -> bool:
        return bool(self._calls)

    @contextmanager
    def noted(self, call: Executing) -> Iterator[None]:
        """Count a call as running inside the context."""
        self._calls[id(call)] = call
        try:
            yield
        finally:
            del self._calls[id(call)]
            if not self._calls:
                self.ended()

    def names(self) -> list[str]:
        """Return their nodes and jobs."""
        return sorted({f"{call.name} of job {call.job_id}" for call in list(self._calls.values())})


@dataclass(frozen=True, slots=True)
class Executing:
    """One call of one node. index: of the element in its lists. stopped: set once the call is cancelled.

    tenant: the job's owner. limits: sizes of its results; made_bytes: what its task had made before it. time_limit: how
    long it may take. underway: where it is noted while it runs. hidden: returns the value of a hidden input. loop: runs
    its coroutines. rounds: of its task. All are None outside an execution.
    """

    job_id: str
    node_id: str
    class_type: str = ""
    index: int = 0
    tenant: str = ""
    progress: Progress = ignore
    send_message: SendMessage = ignore
    stopped: threading.Event = field(default_factory=threading.Event)
    limits: SizeLimits = field(default_factory=SizeLimits)
    made_bytes: int = 0
    time_limit: TimeLimit | None = None
    underway: Underway = field(default_factory=Underway)
    subgraphs: Iterator[int] = field(default_factory=itertools.count)
    hidden: Callable[[str], Any] | None = None
    loop: AbstractEventLoop | None = None
    rounds: Rounds | None = None

    @property
    def name(self) -> str:
        """The node's name in messages."""
        return f"node {self.node_id} ({self.class_type})"

    def prefix(self) -> str:
        """Return a new prefix for the ids of a subgraph that this call makes: NODE.INDEX.COUNT, deterministic."""
        return f"{self.node_id}.{self.index}.{next(self.subgraphs)}."


_current: ContextVar[Executing | None] = ContextVar("executing", default=None)


def executing() -> Executing | None:
    """Return the call that runs here, or None outside any."""
    return _current.get()


def check_cancelled() -> None:
    """Check for cancellation, between parts of long work. Errors: NodeError once the current call is cancelled."""
    if (call := executing()) is not None and call.stopped.is_set():
        raise NodeError("it is waited for no more")


def enter(call: Executing) -> None:
    """Set the call of this context."""
    _current.set(call)
