"""Keeps the server's process and its Ray running: when a part of them dies, ends what is left and starts again.

Imports no Ray, so nothing of Ray's can end it or hang it. Run as a program it is what `become` makes of `serve-app up`:
`HAPROXY COMMAND...`, HAPROXY being null or the list of an `HAProxy`'s arguments, and on standard input what COMMAND is
given on its own.
"""

from __future__ import annotations

import contextlib
import json
import os
import select
import signal
import subprocess
import sys
import tempfile
import threading
import time
import uuid
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NoReturn

import psutil

from serve_app import log
from serve_app.deployments.process import reaper
from serve_app.deployments.process.stop_notice import StopNotice
from serve_app.deployments.proxy.haproxy import HAProxy

STDIN = 0
PARTS = ("gcs_server", "raylet")
"""Ray's essential processes that Ray does not restart, children of the server's process."""
GIVEN_UP = 3
"""The exit status of a server that would fail again if restarted."""
LOOK_S = 0.5
TRIES = 3
"""The failed starts before the first success after which it gives up."""
STEADY_S = 60.0
"""A server that was ready for this long is restarted without a delay."""
LONGEST_WAIT_S = 30.0
STOP_S = 8.0
"""The timeout of a server's stop."""
KILLED_S = 30.0
"""How long the system may take to end a process that was killed."""
KEEPING_S = 8.0
"""How long a stop waits for replicas that keep the states of their runs."""
_log = log.get("up")


def become(
    command: Sequence[str],
    given: bytes,
    environment: Mapping[str, str],
    haproxy: tuple[str, str, str, int, int] | None,
) -> NoReturn:
    """Go on as a process that supervises, without what this one has imported to check its configuration."""
    with tempfile.TemporaryFile() as file:
        file.write(given)
        file.seek(0)
        os.dup2(file.fileno(), STDIN)
    program = [sys.executable, "-P", "-m", __name__, json.dumps(haproxy), *command]
    sys.stdout.flush()
    os.execve(sys.executable, program, environment)


def supervise(
    command: Sequence[str],
    given: bytes,
    environment: Mapping[str, str],
    stop: threading.Event,
    haproxy: HAProxy | None = None,
) -> int:
    """Run the command until `stop`, again whenever it or its Ray dies. Returns the exit status.

    The command gets `given` on standard input and, as its last argument, a descriptor to write to once it is ready.
    haproxy: what runs from before the first start until after the last end.
    1 if it never was and either says that it never will be or has failed TRIES times.
    """
    mark = str(uuid.uuid4())
    reaping = reaper.watch(mark)
    notice = StopNotice()
    environment = {**environment, **reaper.marked(mark), **notice.environment}
    try:
        if haproxy is not None:
            haproxy.start(environment)
        return _keep(command, given, environment, mark, stop, notice, haproxy)
    finally:
        notice.close()
        if haproxy is not None:
            haproxy.end()
        reaper.reap(mark)
        reaping.close()


def _keep(
    command: Sequence[str],
    given: bytes,
    environment: Mapping[str, str],
    mark: str,
    stop: threading.Event,
    notice: StopNotice,
    haproxy: HAProxy | None,
) -> int:
    worked = False
    failures = 0
    while not stop.is_set():
        with _Life(command, given, environment) as life:
            while (fault := life.fault()) is None and not stop.wait(LOOK_S):
                if haproxy is not None:
                    haproxy.keep()
            if fault is None:
                log.announce("stopping")
                notice.give(KEEPING_S)
                life.end()
                break
            reaper.reap(mark, spared=() if haproxy is None else {haproxy.pid})
            worked = worked or life.ready_s > 0
            failures = 0 if life.ready_s > STEADY_S else failures + 1
        if not worked and (life.status == GIVEN_UP or failures == TRIES):
            print(f"serve-app up: the server does not start: {fault}; see the log above", file=sys.stderr)
            return 1
        wait_s = min(LONGEST_WAIT_S, 2.0 ** (failures - 1)) if failures > 1 else 0.0
        _log.error("%s; starting again in %.0f s, jobs go on then", fault, wait_s)
        stop.wait(wait_s)
    return 0


class _Life:
    """One run of the command."""

    def __init__(self, command: Sequence[str], given: bytes, environment: Mapping[str, str]) -> None:
        self._ready, write = os.pipe()
        # A session of its own, so that a terminal's Ctrl-C reaches the supervisor alone, which passes it on in order.
        self._process = subprocess.Popen(
            [*command, str(write)],
            stdin=subprocess.PIPE,
            env=environment,
            pass_fds=[write],
            start_new_session=True,
        )
        os.close(write)
        assert self._process.stdin is not None
        with contextlib.suppress(BrokenPipeError), self._process.stdin as stdin:
            stdin.write(given)
        self._parts: dict[str, psutil.Process] = {}
        self._ready_at_s: float | None = None

    def __enter__(self) -> _Life:
        return self

    def __exit__(self, *_: object) -> None:
        os.close(self._ready)
        # It has been given its time, or an error leaves it running, which nothing else would end.
        self._process.kill()
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(KILLED_S)

    @property
    def status(self) -> int | None:
        """The exit status, once there is one."""
        return self._process.poll()

    @property
    def ready_s(self) -> float:
        """How long it has been ready; 0 if it never was."""
        return 0.0 if self._ready_at_s is None else time.monotonic() - self._ready_at_s

    def fault(self) -> str | None:
        """Return the part that has died, or None."""
        if self._ready_at_s is None and select.select([self._ready], [], [], 0)[0] and os.read(self._ready, 1):
            self._ready_at_s = time.monotonic()
        if (status := self.status) is not None:
            return f"the server's process has ended with {_worded(status)}"
        if len(self._parts) < len(PARTS):
            with contextlib.suppress(psutil.Error):
                self._parts |= {p.name(): p for p in psutil.Process(self._process.pid).children() if p.name() in PARTS}
        for name, part in self._parts.items():
            if not _lives(part):
                return f"Ray's {name} has died"
        return None

    def end(self) -> None:
        """Stop it; the reaper kills it if it does not end in time."""
        self._process.send_signal(signal.SIGTERM)
        try:
            self._process.wait(STOP_S)
        except subprocess.TimeoutExpired:
            _log.warning("the server has not stopped within %.0f s and is killed", STOP_S)
            self._process.kill()


def _lives(process: psutil.Process) -> bool:
    try:
        return bool(process.is_running() and process.status() != psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return False


def _worded(status: int) -> str:
    return f"status {status}" if status >= 0 else signal.Signals(-status).name


def main() -> int:
    """Supervise until SIGTERM or Ctrl-C."""
    log.configure()
    stop = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stop.set())
    front, *command = sys.argv[1:]
    haproxy = None
    if (arguments := json.loads(front)) is not None:
        binary, folder, host, port, replicas = arguments
        haproxy = HAProxy(binary, Path(folder), host, port, replicas)
    return supervise(command, sys.stdin.buffer.read(), os.environ, stop, haproxy)


if __name__ == "__main__":
    sys.exit(main())
