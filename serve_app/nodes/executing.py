"""Which node runs here: a context variable that threads and coroutines of one call share, set before each call.

Nodes that do not ask for capabilities still report progress and make subgraphs by it, as ComfyUI's do by its globals.
Source: the facts of ComfyUI 0.3.64's `comfy_execution/utils.py` and `graph_utils.py`.
"""

from __future__ import annotations

import itertools
import threading
from collections.abc import Callable, Iterator
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any

from serve_app.limits import SizeLimits

Progress = Callable[[float, float, Any], None]
"""(value, maximum, preview or None) -> nothing. Callable from any thread."""


Say = Callable[[str, Any], None]
"""(type, data) -> nothing: a message of a pack's own for the job's client. Callable from any thread."""


def _silent(*told: Any) -> None:
    """Tell nobody."""


@dataclass(frozen=True, slots=True)
class Executing:
    """One call of one node. index: which element of its lists. stopped: set once nobody waits for it any more.

    limits: how large what it makes may be.
    """

    job_id: str
    node_id: str
    index: int = 0
    progress: Progress = _silent
    say: Say = _silent
    stopped: threading.Event = field(default_factory=threading.Event)
    limits: SizeLimits = field(default_factory=SizeLimits)
    subgraphs: Iterator[int] = field(default_factory=itertools.count)

    def prefix(self) -> str:
        """Return a new prefix for the ids of a subgraph that this call makes: NODE.INDEX.COUNT, deterministic."""
        return f"{self.node_id}.{self.index}.{next(self.subgraphs)}."


_current: ContextVar[Executing | None] = ContextVar("executing", default=None)


def executing() -> Executing | None:
    """Return the call that runs here, or None outside any."""
    return _current.get()


def enter(call: Executing) -> None:
    """Say which call runs in this context from now on."""
    _current.set(call)
