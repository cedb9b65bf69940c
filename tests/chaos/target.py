"""What a campaign attacks and judges."""

from __future__ import annotations

from contextlib import AbstractContextManager
from typing import Protocol

import psutil


class Target(Protocol):
    """A server of one host, or a cluster. violations: what its ends and starts did wrong. starts: how many there were.

    replicas: of its one pool, or None where pools scale. clock: whether its wall clock is set meanwhile.
    """

    violations: list[str]
    starts: int
    replicas: int | None
    clock: bool

    @property
    def url(self) -> str:
        """Where it answers, across restarts."""

    def processes(self) -> list[psutil.Process]:
        """Return every living process of it."""

    def stopped(self, *, back: bool = True) -> AbstractContextManager[None]:
        """Stop it in good order meanwhile; it is back afterwards, unless not `back`."""

    def check(self) -> tuple[int, str]:
        """Let `serve-app check` mend what it can; return its exit status and what it said."""

    def saved(self) -> set[tuple[str, str]]:
        """Return (subfolder, filename) of every file that is stored as an output."""

    def close(self) -> None:
        """Stop it, and what it runs on."""
