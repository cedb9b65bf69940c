"""The notice by which `serve-app up` tells its replicas that it stops, so that they save the states of their runs.

Two named pipes in a folder, whose name Ray's processes inherit. The supervisor holds one open for writing: its end,
also by a SIGKILL, is the notice. Each replica holds the other open for writing until it has nothing left to keep.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
import shutil
import tempfile
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path

from serve_app import log

VARIABLE = "SERVE_APP_STOP_NOTICE"
LOOK_S = 0.02
_STOPS, _KEEPS = "stops", "keeps"
_log = log.get("up")


class StopNotice:
    """The supervisor's side."""

    def __init__(self) -> None:
        self._folder = Path(tempfile.mkdtemp(prefix="serve-app-stop-"))
        for name in (_STOPS, _KEEPS):
            os.mkfifo(self._folder / name, 0o600)
        # Linux opens a pipe for both without waiting for another end.
        self._stops: int | None = os.open(self._folder / _STOPS, os.O_RDWR)
        self._keeps = os.open(self._folder / _KEEPS, os.O_RDONLY | os.O_NONBLOCK)

    @property
    def environment(self) -> dict[str, str]:
        """Return the environment variable by which replicas find it."""
        return {VARIABLE: str(self._folder)}

    def give(self, timeout_s: float) -> bool:
        """Tell the replicas; return whether none has anything left to keep, which is waited for."""
        if self._stops is not None:
            os.close(self._stops)
            self._stops = None
        end_s = time.monotonic() + timeout_s
        while time.monotonic() < end_s:
            try:
                if not os.read(self._keeps, 1):
                    return True
            except BlockingIOError:
                time.sleep(LOOK_S)
        _log.warning("replicas have not kept the states of their runs within %g s", timeout_s)
        return False

    def close(self) -> None:
        """Give notice if that was not done, and remove the pipes."""
        if self._stops is not None:
            os.close(self._stops)
            self._stops = None
        os.close(self._keeps)
        shutil.rmtree(self._folder, ignore_errors=True)


async def leave_at_stop(leave: Callable[[], Awaitable[None]]) -> None:
    """Wait for the notice, then leave, for which the supervisor waits. Returns at once where there is none to come."""
    if (folder := os.environ.get(VARIABLE)) is None:
        return
    with contextlib.ExitStack() as files:
        try:
            keeps = os.open(Path(folder, _KEEPS), os.O_WRONLY | os.O_NONBLOCK)
            files.callback(os.close, keeps)
            stops = os.open(Path(folder, _STOPS), os.O_RDONLY | os.O_NONBLOCK)
            files.callback(os.close, stops)
        except OSError as error:
            if error.errno not in (errno.ENOENT, errno.ENXIO):
                raise
            # Its supervisor has ended.
            return
        # A pipe whose other end was closed before this one was opened is not reported.
        with contextlib.suppress(BlockingIOError):
            if not os.read(stops, 1):
                await leave()
                return
        async with _readable(stops) as notice:
            await notice.wait()
        await leave()


@contextlib.asynccontextmanager
async def _readable(file: int) -> AsyncIterator[asyncio.Event]:
    """Yield what is set once a file can be read, or has ended."""
    loop, found = asyncio.get_running_loop(), asyncio.Event()

    def note() -> None:
        loop.remove_reader(file)
        found.set()

    loop.add_reader(file, note)
    try:
        yield found
    finally:
        loop.remove_reader(file)
