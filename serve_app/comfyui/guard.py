"""Runs a process, and kills it with all its descendants once a pipe closes, as it does however the parent dies.

A program of its own, run by its path and with the standard library only, so that it starts quickly: `guard.py PIPE
FOLDER COMMAND…`. FOLDER is the process's own and is deleted with it. Exits with the process's status.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import select
import shutil
import signal
import sys

PR_SET_PDEATHSIG, PR_SET_CHILD_SUBREAPER = 1, 36


def main() -> int:
    """Run the process; see above."""
    pipe, folder, *command = sys.argv[1:]
    libc = ctypes.CDLL(None)
    # Orphaned descendants become children of this process, and can be found.
    libc.prctl(PR_SET_CHILD_SUBREAPER, 1)
    woken, wake = os.pipe()
    os.set_blocking(wake, False)
    signal.signal(signal.SIGCHLD, lambda *_: None)
    signal.set_wakeup_fd(wake, warn_on_full_buffer=False)
    guard, child = os.getpid(), os.fork()
    if child == 0:
        libc.prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != guard:
            os._exit(1)
        os.setsid()
        try:
            os.execvp(command[0], command)
        except OSError as error:
            print(f"{command[0]} cannot be run: {error.strerror}", flush=True)
            os._exit(127)
    status = None
    while status is None:
        ready, _, _ = select.select([int(pipe), woken], [], [])
        if woken in ready:
            os.read(woken, 4096)
        status = _ended(child)
        if int(pipe) in ready:
            break
    _end_all(child)
    shutil.rmtree(folder, ignore_errors=True)
    return 0 if status is None else os.waitstatus_to_exitcode(status) % 256


def _ended(child: int) -> int | None:
    """Reap zombies; return the child's status if it is among them."""
    found = None
    with contextlib.suppress(ChildProcessError):
        while (buried := os.waitpid(-1, os.WNOHANG))[0]:
            found = buried[1] if buried[0] == child else found
    return found


def _end_all(child: int) -> None:
    """Kill the child's group, then remaining descendants, until none is left."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(child, signal.SIGKILL)
    with contextlib.suppress(ChildProcessError):
        while True:
            for pid in _children():
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            os.waitpid(-1, 0)


def _children() -> list[int]:
    with open(f"/proc/self/task/{os.getpid()}/children") as children:
        return [int(pid) for pid in children.read().split()]


if __name__ == "__main__":
    raise SystemExit(main())
