"""A real server for tests: `serve-app up` as its own process over a directory, and the processes Ray started for it.

Every process of one server carries this module's own mark in its environment, so tests find and count them without
trusting the server's own bookkeeping.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import httpx
import psutil
import yaml

from serve_app.store.files.atomic_write import UNFINISHED
from tests import workflows
from tests.unit.models.sample import write_sample_checkpoint

T = TypeVar("T")

MARK = "SERVE_APP_TEST_MARK"
CHECKPOINT = "sd15.safetensors"
PATIENCE_S = 240.0
"""What a busy machine may need for anything here; a test that waits this long fails."""
ENDED_S = 60.0
"""What processes that were killed may need to end."""
txt2img = partial(workflows.txt2img, CHECKPOINT)
TITLES = {
    "scheduler": "ray::SchedulerActor",
    "ingress": "ray::ServeReplica:serve-app:ingress",
    "replica": "ray::ServeReplica:serve-app:gpu",
    "webhook_sender": "ray::WebhookSender",
}
"""What Ray calls the processes that tests kill."""


class Processes:
    """What carries one mark in its environment, however it came to be started.

    folder: where Ray keeps its files, by default a new one.
    """

    def __init__(self, folder: Path | None = None) -> None:
        self._mark = str(uuid.uuid4())
        self._ray = folder or Path(tempfile.mkdtemp(prefix="ray-"))
        self.environment = {
            **os.environ,
            MARK: self._mark,
            # A directory of its own: Ray looks there for a running cluster to join. Its path is short, for sockets.
            "RAY_TMPDIR": str(self._ray),
            "RAY_AUTH_MODE": "disabled",
            "RAY_USAGE_STATS_ENABLED": "0",
            # Threads that wait for tensor work would spin on processors that other tests use.
            "OMP_WAIT_POLICY": "PASSIVE",
            # Keeps the environment readable in processes that Ray renames.
            "SPT_NOENV": "1",
            "PYTHONUNBUFFERED": "1",
        }
        self.environment.pop("RAY_ADDRESS", None)

    def found(self, title: str = "") -> list[psutil.Process]:
        """Return the living processes whose title starts so, all by default."""
        found = []
        for process in psutil.process_iter():
            with contextlib.suppress(psutil.Error, OSError):
                alive = process.status() != psutil.STATUS_ZOMBIE and process.environ().get(MARK) == self._mark
                if alive and " ".join(process.cmdline()).startswith(title):
                    found.append(process)
        return found

    def pid(self, kind: str) -> int:
        """Return the process of a kind in TITLES, once there is one."""
        return wait_for(lambda: self.found(TITLES[kind]), f"a process {TITLES[kind]}")[0].pid

    def logged(self) -> list[str]:
        """Return the lines that Ray's workers have logged."""
        logs = self._ray.glob("ray/session_2*/logs/worker-*.err")
        return [line for path in logs for line in path.read_text(errors="replace").splitlines()]

    def keep_logs(self, directory: Path) -> None:
        """Copy Ray's logs there before they go with the processes."""
        for session in self._ray.glob("session_2*"):
            shutil.copytree(session / "logs", directory, dirs_exist_ok=True, ignore_dangling_symlinks=True)

    def close(self) -> None:
        """End whatever is left. Errors: AssertionError if it does not end."""
        deadline = time.monotonic() + ENDED_S
        while left := self.found():
            assert time.monotonic() < deadline, f"processes that were killed do not end: {left}"
            for process in left:
                with contextlib.suppress(psutil.Error):
                    process.kill()
            psutil.wait_procs(left, timeout=1.0)
        shutil.rmtree(self._ray, ignore_errors=True)


def configure(root: Path, arguments: Mapping[str, Any]) -> None:
    """Write what `serve-app up` in a directory is configured by: the application with these arguments."""
    application = {"name": "serve-app", "route_prefix": "/", "import_path": "serve_app.deployments.build:build"}
    (root / "configs").mkdir()
    config = {"applications": [{**application, "args": dict(arguments)}]}
    (root / "configs" / "local.yaml").write_text(yaml.safe_dump(config))


class Application:
    """A running application as its HTTP clients see it."""

    def __init__(self, port: int) -> None:
        self.port = port
        self.url = f"http://127.0.0.1:{port}"
        self.http = httpx.Client(base_url=self.url, timeout=60.0)

    def answers(self) -> bool:
        """Whether a job can be submitted now."""
        try:
            return self.http.get("/queue").status_code == 200
        except httpx.TransportError:
            return False

    def get(self, path: str, **query: Any) -> Any:
        """Return the JSON answer to a GET that succeeds, asking again while the server says to come back.

        It says so of any request while its scheduler, or the process that has the request, is starved or replaced.
        """

        def answered() -> list[httpx.Response]:
            response = self.http.get(path, params=query)
            return [] if response.status_code == 503 and "retry-after" in response.headers else [response]

        [response] = wait_for(answered, f"an answer to GET {path}")
        assert response.status_code == 200, response.text
        return response.json()

    def submit(self, prompt: Mapping[str, Any], **keys: Any) -> str:
        """Queue a prompt and return the job's id."""
        response = self.http.post("/prompt", json={"prompt": prompt, **keys})
        assert response.status_code == 200, response.text
        return str(response.json()["prompt_id"])

    def finished(self, job_id: str) -> dict[str, Any]:
        """Return the history entry of a job once it has ended, asking again while the server says to come back."""
        ended = {"success", "error", "cancelled"}

        def entry() -> dict[str, Any] | None:
            response = self.http.get(f"/history/{job_id}")
            if response.status_code == 503 and "retry-after" in response.headers:
                return None
            assert response.status_code == 200, response.text
            found: dict[str, Any] = response.json()[job_id]
            return found if found["status"]["status_str"] in ended else None

        return wait_for(entry, f"the end of job {job_id}")


class Server(Application):
    """`serve-app up` over `root`, which holds models, outputs and the database, and so may be started again."""

    def __init__(
        self,
        root: Path,
        port: int | None = None,
        environment: Mapping[str, str] | None = None,
        arguments: Sequence[str] = (),
    ) -> None:
        super().__init__(port or free_port())
        provide_checkpoint(root)
        self.root = root
        self.log = root / "up.log"
        self.processes = Processes()
        with self.log.open("a") as log:
            self.up = subprocess.Popen(
                [sys.executable, "-m", "serve_app.cli", "up", "--port", str(self.port), *arguments],
                cwd=root,
                env={**self.processes.environment, **(environment or {})},
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    def wait_until_ready(self) -> None:
        """Return once a job can run. Fails with the server's log if it ends before."""

        def ready() -> bool:
            assert self.up.poll() is None, f"the server ended with {self.up.returncode}:\n{self.log.read_text()}"
            return self.answers()

        wait_for(ready, "a server that answers")

    def saved(self, folder: str = "") -> set[str]:
        """Return the names of what is stored in a folder of outputs, without what a killed process had begun."""
        names = (path.name for path in (self.root / "output" / folder).iterdir())
        return {name for name in names if not name.endswith(UNFINISHED)}

    def kill(self, kind: str) -> None:
        """SIGKILL the process of a kind in TITLES."""
        os.kill(self.processes.pid(kind), signal.SIGKILL)

    def close(self) -> None:
        """End the server and everything it started."""
        self.http.close()
        if self.up.poll() is None:
            self.up.terminate()
            with contextlib.suppress(subprocess.TimeoutExpired):
                self.up.wait(30)
        self.processes.close()


@contextlib.contextmanager
def running(root: Path) -> Iterator[Server]:
    """Yield a server that is ready; end it afterwards."""
    server = Server(root)
    try:
        server.wait_until_ready()
        yield server
    finally:
        server.close()


def provide_checkpoint(root: Path) -> None:
    """Put a small checkpoint where the server looks for one."""
    path = root / "models" / "checkpoints" / CHECKPOINT
    if not path.exists():
        write_sample_checkpoint(path)


def free_port() -> int:
    """Return a port of this machine that nobody listens on."""
    [port] = free_ports(1)
    return port


def free_ports(count: int) -> list[int]:
    """Return so many different ones. Linux gives those from 32768 on to whatever connects."""
    ports: set[int] = set()
    while len(ports) < count:
        port = 20_000 + secrets.randbelow(12_768)
        with socket.socket() as probe, contextlib.suppress(OSError):
            probe.bind(("127.0.0.1", port))
            ports.add(port)
    return list(ports)


def wait_for(look: Callable[[], T | None], what: str, patience_s: float = PATIENCE_S) -> T:
    """Return the first truthy answer of `look`; fail if there is none in time."""
    deadline = time.monotonic() + patience_s
    while time.monotonic() < deadline:
        if found := look():
            return found
        time.sleep(0.1)
    raise AssertionError(f"waited {patience_s:.0f} s for {what}")
