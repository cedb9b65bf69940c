"""`GET /logs`: the log lines of the server's processes on this host, read from the files that Ray writes them to.

Ray gives each process a file for its standard error. A line is read in either form of `log.py`; what follows a line
without being one, such as a traceback, belongs to it, and what other packages write is left out.
"""

from __future__ import annotations

import asyncio
import contextlib
import heapq
import json
import os
import re
from collections import deque
from collections.abc import AsyncGenerator, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import ray

from serve_app.service.log_query import LogQuery

EVERY_S = 0.5
"""How often files are looked at for new lines."""
TAIL_BYTES = 4 * 1024 * 1024
"""How far before a file's end its lines are read."""
PIECE_BYTES = 1024 * 1024
"""The most that is read of a file at once."""
PATTERN = "worker-*.err"

_TEXT = re.compile(r"(?P<at>\d{4}-\d\d-\d\d \d\d:\d\d:\d\d,\d{3}) (?P<level>[A-Z]+) (?P<logger>serve_app[\w.]*): (.*)")
_IDS = re.compile(r" (\w+)=(\S+)(?=( \w+=\S+)*$)")


class LogFiles:
    """The log lines of this host's processes. folder: of their files; None for that of the Ray of this process."""

    def __init__(self, folder: Path | None = None) -> None:
        self._folder = folder

    async def __call__(self, query: LogQuery) -> AsyncGenerator[str]:
        """Yield the wanted lines as JSON, the oldest first, each with a line feed; "" where none has come for long.

        With `query.follow` this goes on until the caller stops; a file that appears meanwhile is read from its start.
        """
        files: dict[Path, _File] = {}
        found = await asyncio.to_thread(self._new_lines, files, None)
        for line in deque(filter(query.fits, found), query.last):
            yield _text(line)
        while query.follow:
            await asyncio.sleep(EVERY_S)
            found = await asyncio.to_thread(self._new_lines, files, 0)
            for line in filter(query.fits, found):
                yield _text(line)
            yield ""

    def _new_lines(self, files: dict[Path, _File], begin: int | None) -> list[dict[str, Any]]:
        """Return the lines since the last look, in order of time. begin: where unknown files are read from; None for
        TAIL_BYTES before their end.
        """
        for path in (self._folder or _rays_folder()).glob(PATTERN):
            if path not in files:
                with contextlib.suppress(FileNotFoundError):
                    size = path.stat().st_size
                    files[path] = _File(path, max(0, size - TAIL_BYTES) if begin is None else begin)
        return list(heapq.merge(*(file.new_lines() for file in files.values()), key=lambda line: str(line["at"])))


def _rays_folder() -> Path:
    return Path(ray._private.worker._global_node.get_logs_dir_path())


@dataclass(slots=True)
class _File:
    """A file that is being written. offset: how far it has been read."""

    path: Path
    offset: int
    rest: bytes = field(default=b"")

    def new_lines(self) -> list[dict[str, Any]]:
        """Return the lines that have been written since the last look; none while Ray replaces the file."""
        try:
            file = self.path.open("rb")
        except FileNotFoundError:
            return []
        with file:
            if os.fstat(file.fileno()).st_size < self.offset:  # Ray began it anew
                self.offset, self.rest = 0, b""
            file.seek(self.offset)
            pieces = [self.rest]
            while piece := file.read(PIECE_BYTES):
                self.offset += len(piece)
                pieces.append(piece)
        *whole, self.rest = b"".join(pieces).split(b"\n")
        return list(_parsed(line.decode(errors="replace") for line in whole))


def _parsed(texts: Iterator[str]) -> Iterator[dict[str, Any]]:
    """Yield the log lines among some texts."""
    last: dict[str, Any] | None = None
    for text in texts:
        if (line := _of_json(text) or _of_text(text)) is not None:
            if last is not None:
                yield last
            last = line
        elif last is not None and text.startswith("    "):
            last["traceback"] = f"{last['traceback']}\n{text}" if "traceback" in last else text
    if last is not None:
        yield last


def _of_json(text: str) -> dict[str, Any] | None:
    if not text.startswith('{"at": '):
        return None
    try:
        line = json.loads(text)
    except ValueError:
        return None
    return line if isinstance(line, dict) and {"level", "logger", "message"} <= line.keys() else None


def _of_text(text: str) -> dict[str, Any] | None:
    if (found := _TEXT.match(text)) is None:
        return None
    at = datetime.strptime(found["at"], "%Y-%m-%d %H:%M:%S,%f").astimezone(UTC)
    message = found[4]
    ids = {name: value for name, value, _ in _IDS.findall(message)}
    return {
        "at": at.isoformat(timespec="milliseconds"),
        "level": found["level"],
        "logger": found["logger"],
        "message": message,
        **{name: value for name, value in ids.items() if name not in ("at", "level", "logger", "message")},
    }


def _text(line: Mapping[str, Any]) -> str:
    return json.dumps(line, ensure_ascii=False) + "\n"
