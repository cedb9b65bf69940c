"""Keeps node packs from changing the packages that the server runs on: a pip that a pack starts is refused.

All replicas of a machine share one environment, and what a pack installs as it is loaded by one of them changes the
others while they run. What packs need is installed before the server starts (`requirements`).
"""

from __future__ import annotations

import os
import shlex
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

from serve_app.errors import NodeError
from serve_app.execution.executing import executing

PIPS = frozenset({"pip", "pip3", "pip._internal"})
CHANGES = frozenset({"install", "uninstall", "sync"})
STARTS = {"subprocess.Popen": 1, "os.system": 0, "os.exec": 1, "os.posix_spawn": 1}
"""Audit events of a program's start, with which of their arguments is its command."""


class PackInstallError(NodeError):
    """A node pack tries to change the packages that the server runs on."""

    def __init__(self, command: str) -> None:
        super().__init__(
            f"{command!r} is refused: node packs may not change the packages that the server runs on. Install what "
            "they need before it starts; `serve-app packs DIR --lock` says what that is (docs/plugins.md)"
        )
        self.command = command

    def __reduce__(self) -> tuple[type[PackInstallError], tuple[str]]:
        return (type(self), (self.command,))


_refused: list[str] | None = None
_hooked = False


@contextmanager
def without_installs() -> Iterator[list[str]]:
    """Refuse pip in this block, and in running nodes from here on; yields the list of what was refused in the block."""
    global _refused, _hooked
    if not _hooked:
        sys.addaudithook(_look)
        _hooked = True
    before, _refused = _refused, []
    try:
        yield _refused
    finally:
        _refused = before


def _look(event: str, arguments: tuple[Any, ...]) -> None:
    if event not in STARTS or (_refused is None and executing() is None):
        return
    command = arguments[STARTS[event]]
    parts = list(_parts([command] if isinstance(command, str | bytes | os.PathLike) else command))
    if PIPS.intersection(map(os.path.basename, parts)) and CHANGES.intersection(parts):
        text = shlex.join(parts)
        if _refused is not None:
            _refused.append(text)
        raise PackInstallError(text)


def _parts(command: Iterable[Any]) -> Iterator[str]:
    """Yield the words of a command, those of a shell's too."""
    for part in command:
        text = os.fsdecode(part)
        try:
            yield from shlex.split(text)
        except ValueError:
            yield from text.split()
