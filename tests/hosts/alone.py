"""One run on a machine at a time. It begins by ending and removing what another one has left that was killed."""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import IO

import psutil

from tests.hosts import network

FOLDER = Path(tempfile.gettempdir()) / "serve-app-hosts"
"""Where a run keeps its files: hosts' folders, PostgreSQL's, the store's, logs."""
LOCK = FOLDER.with_suffix(".lock")
MARK = "SERVE_APP_TEST_HOSTS"
"""In the environment of every process that a run starts."""
ENDED_S = 30.0
"""How long what is left may take to end."""
CLOSING_S = 45
"""How long a run that is over its time may take to end what it has started."""


@contextlib.contextmanager
def alone(patience_s: float, *, keep: bool = False) -> Iterator[Path]:
    """Yield an empty folder, which nobody else has meanwhile, and remove it afterwards.

    patience_s: how long another run's end is waited for. keep: leave the folder until the next run begins. Errors:
    TimeoutError if the other run has not ended by then.
    """
    with LOCK.open("a") as lock:
        _lock(lock, patience_s)
        clear()
        FOLDER.mkdir(mode=0o755)
        os.environ[MARK] = str(os.getpid())
        try:
            yield FOLDER
        finally:
            del os.environ[MARK]
            if not keep:
                shutil.rmtree(FOLDER, ignore_errors=True)


def clear() -> None:
    """End every process of a run but this one, and remove its networks and files. Errors: TimeoutError."""
    deadline = time.monotonic() + ENDED_S
    while left := _left():
        if time.monotonic() > deadline:
            raise TimeoutError(f"an earlier run's processes do not end: {left}")
        for process in left:
            with contextlib.suppress(psutil.Error):
                process.kill()
        psutil.wait_procs(left, timeout=1.0)
    network.remove()
    shutil.rmtree(FOLDER, ignore_errors=True)


def limit(seconds: int) -> None:
    """Have this process end by an exception after so long, as at Ctrl-C, and by force when that takes too long."""

    def over(*_: object) -> None:
        # Without a handler the second alarm ends the process.
        signal.signal(signal.SIGALRM, signal.SIG_DFL)
        signal.alarm(CLOSING_S)
        sys.exit(f"not done after {seconds} s")

    signal.signal(signal.SIGALRM, over)
    signal.alarm(seconds)


def _lock(lock: IO[str], patience_s: float) -> None:
    deadline = time.monotonic() + patience_s
    while True:
        try:
            # The kernel gives it back when this process ends, however it does. No child inherits it.
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return
        except BlockingIOError:
            if time.monotonic() > deadline:
                raise TimeoutError(f"another run has {LOCK} since more than {patience_s:.0f} s") from None
            time.sleep(0.5)


def _left() -> list[psutil.Process]:
    found = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error, OSError):
            alive = process.pid != os.getpid() and process.status() != psutil.STATUS_ZOMBIE
            if alive and MARK in process.environ():
                found.append(process)
    return found
