"""A machine of a cluster, made of namespaces: its own network, processes, host name, folder and shared memory."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sysconfig
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

import psutil

from tests.hosts.network import Network

FOLDER = "/mnt"
"""Where a host sees its own folder, with its home and its temporary files."""
SHARED_MEMORY = "400m"
SERVICE = f"""
set -e
mount --bind "$HOST_FOLDER" {FOLDER}
mount --bind {FOLDER}/haproxy /tmp/haproxy-serve
mount -t tmpfs -o size={SHARED_MEMORY},mode=1777 shm /dev/shm
hostname "$HOST_NAME"
cd {FOLDER}/home
set +e
trap 'ended=1; kill -TERM $service' TERM
until [ "$ended" ]; do
    "$@" & service=$!
    wait $service
    wait $service
    [ "$ended" ] || sleep 5
done
"""
"""The host's first process. It starts the service again 5 s after it has ended, as serve-app-worker.service has it."""
STARTED_S = ENDED_S = 20.0
DRAINED_S = 60.0
"""As the unit's TimeoutStopSec."""


class Host:
    """One machine. service: the command that it runs from its start on, and again whenever it ends."""

    def __init__(
        self, name: str, folder: Path, network: Network, environment: Mapping[str, str], service: Sequence[str]
    ) -> None:
        self.name = name
        self.address = network.addresses[name]
        self._folder, self._network, self._service = folder, network, list(service)
        for part in ("home/.ray", "tmp", "haproxy"):
            (folder / part).mkdir(parents=True)
        Path("/tmp/haproxy-serve").mkdir(exist_ok=True)
        self._environment = {
            **environment,
            "PATH": f"{sysconfig.get_path('scripts')}:{os.environ['PATH']}",
            "HOME": f"{FOLDER}/home",
            "TMPDIR": f"{FOLDER}/tmp",
            "RAY_TMPDIR": f"{FOLDER}/tmp",
            "HOST_FOLDER": str(folder),
            "HOST_NAME": name,
        }
        self._first: subprocess.Popen[bytes] | None = None

    @property
    def logs(self) -> Path:
        """Ray's sessions, as this machine sees them."""
        return self._folder / "tmp" / "ray"

    def give(self, name: str, content: str) -> str:
        """Write a file into its home, for its user alone; return where it is there."""
        path = self._folder / "home" / name
        path.touch(mode=0o600)
        path.write_text(content)
        return f"{FOLDER}/home/{name}"

    def start(self) -> None:
        """Turn it on."""
        unshared = ["unshare", "--mount", "--uts", "--pid", "--fork", "--kill-child", "--mount-proc"]
        with (self._folder / "service.log").open("ab") as log:
            self._first = subprocess.Popen(
                [*self._network.within(self.name), *unshared, "sh", "-c", SERVICE, "sh", *self._service],
                env=self._environment,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )

    def kill(self) -> None:
        """Turn it off: all of its processes end at once, and its files stay."""
        if self._first is not None:
            self._first.kill()
            self._first.wait(ENDED_S)
            self._first = None

    def stop(self) -> None:
        """Stop its service in good order, then turn it off."""
        assert self._first is not None
        os.kill(self._init(), signal.SIGTERM)
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._first.wait(DRAINED_S)
        self.kill()

    def run(self, *command: str, patience_s: float = 240.0) -> str:
        """Run a command on it and return what it said. Errors: RuntimeError if it fails."""
        entered = ["nsenter", "--target", str(self._init()), "--mount", "--uts", "--net", "--pid"]
        done = subprocess.run(
            [*entered, *command],
            env=self._environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=patience_s,
            check=False,
        )
        if done.returncode != 0:
            raise RuntimeError(f"{self.name}: {' '.join(command)} ended with {done.returncode}: {done.stdout[-2000:]}")
        return done.stdout

    def said(self) -> str:
        """Return what its service has printed."""
        return (self._folder / "service.log").read_text(errors="replace")

    def _init(self) -> int:
        assert self._first is not None, f"{self.name} is off"
        deadline = time.monotonic() + STARTED_S
        while not (children := psutil.Process(self._first.pid).children()):
            assert time.monotonic() < deadline, self.said()
            time.sleep(0.05)
        return children[0].pid
