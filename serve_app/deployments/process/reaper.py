"""Kills every process that has a mark in its environment, so that none is left behind.

Ray's processes inherit the mark from the server's. Run as a program, the reaper waits until the pipe it was given
closes, which happens however its parent dies, SIGKILL included, and then does the same.
"""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import time
from collections.abc import Container

import psutil

MARK = "SERVE_APP_INSTANCE"


def marked(mark: str) -> dict[str, str]:
    """Return the environment variables of the mark, which child processes inherit."""
    # Ray renames its processes; the second keeps their environment, and so the mark, readable.
    return {MARK: mark, "SPT_NOENV": "1"}


class Reaper:
    """A running reaper. It acts when the process that started it has died, or calls `close`."""

    def __init__(self, process: subprocess.Popen[bytes], watched: int) -> None:
        self._process = process
        self._watched = watched

    def close(self) -> None:
        """Make it act, and return once it has ended."""
        os.close(self._watched)
        self._process.wait()


def watch(mark: str) -> Reaper:
    """Start a reaper for this process's mark."""
    read, write = os.pipe()
    with open(os.devnull) as nowhere:
        process = subprocess.Popen(
            [sys.executable, "-P", "-m", "serve_app.deployments.process.reaper", str(read), mark],
            pass_fds=[read],
            stdin=nowhere,
            start_new_session=True,
        )
    os.close(read)
    return Reaper(process, write)


def reap(mark: str, patience_s: float = 5.0, spared: Container[int | None] = ()) -> int:
    """Kill every marked process but this one and those spared, until none is left. Returns how many were killed."""
    killed = 0
    deadline = time.monotonic() + patience_s
    while (found := [p for p in _marked(mark) if p.pid not in spared]) and time.monotonic() < deadline:
        for process in found:
            with contextlib.suppress(psutil.Error):
                process.kill()
        killed += len(found)
        psutil.wait_procs(found, timeout=1.0)
    return killed


def _marked(mark: str) -> list[psutil.Process]:
    found = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error, OSError):
            alive = process.pid != os.getpid() and process.status() != psutil.STATUS_ZOMBIE
            if alive and process.environ().get(MARK) == mark:
                found.append(process)
    return found


if __name__ == "__main__":
    os.read(int(sys.argv[1]), 1)
    reap(sys.argv[2])
