"""The contenders: servers started for the run, each in a directory of its own, and stopped after it."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import psutil
import torch
import yaml

from bench.client import Client
from bench.workflows import noop

T = TypeVar("T")

START_S = 600.0
STOP_S = 60.0


@dataclass(frozen=True)
class Contender:
    """A server that can be started. kind: "serve-app", "serve-app unbatched" or "ComfyUI". packs: a folder of them.

    pools: of a serve-app, as the configuration has them; none for one that runs everything. ready: a path that is
    answered 200 once it has started; None sends it a job. arguments: more of a serve-app's configuration. prepare: is
    called with the directory before it starts.
    """

    kind: str
    models: Path
    comfyui: Path | None = None
    python: Path = Path(sys.executable)
    packs: Path | None = None
    pools: Sequence[Mapping[str, Any]] = ()
    ready: str | None = None
    arguments: Mapping[str, Any] = field(default_factory=dict)
    prepare: Callable[[Path], None] | None = None

    def command(self, directory: Path, port: int) -> list[str]:
        """Return what starts it, with everything it writes under the directory."""
        if self.comfyui is None:
            config = directory / "config.yaml"
            config.write_text(yaml.safe_dump(self._config(directory)))
            command = [str(self.python), "-m", "serve_app.cli", "up", "--port", str(port), "--config", str(config)]
            return command if self.packs is None else [*command, "--custom-nodes-dir", str(self.packs)]
        paths = directory / "models.yaml"
        folders = {"base_path": str(self.models), "checkpoints": "checkpoints", "diffusion_models": "diffusion_models"}
        paths.write_text(yaml.safe_dump({"bench": folders | ({"custom_nodes": str(self.packs)} if self.packs else {})}))
        command = [str(self.python), str(self.comfyui / "main.py"), "--listen", "127.0.0.1", "--port", str(port)]
        command += ["--extra-model-paths-config", str(paths), "--disable-all-custom-nodes"]
        if self.packs is not None:
            command += ["--whitelist-custom-nodes", *sorted(pack.name for pack in self.packs.iterdir())]
        for name in ("output", "temp", "user"):
            (directory / name).mkdir()
            command += [f"--{name}-directory", str(directory / name)]
        return command if torch.cuda.is_available() else [*command, "--cpu"]

    def _config(self, directory: Path) -> dict[str, object]:
        arguments = {
            "models_dir": str(self.models),
            **{f"{area}_dir": str(directory / area) for area in ("input", "output", "temp")},
            "database_url": f"sqlite:///{directory}/jobs.sqlite",
            "pools": list(self.pools) or [{"name": "gpu", "num_gpus": int(torch.cuda.is_available())}],
            "strict": self.kind == "serve-app unbatched",
            **self.arguments,
        }
        return {"applications": [{"name": "serve-app", "args": arguments}]}


class Server:
    """A contender that runs. started_s: seconds from its start until it took a job."""

    def __init__(self, contender: Contender, directory: Path) -> None:
        self.name = contender.kind
        self.port = _free_port()
        self._log = directory / "log"
        if contender.prepare is not None:
            contender.prepare(directory)
        began = time.perf_counter()
        with self._log.open("w") as log:
            command = contender.command(directory, self.port)
            self._process = subprocess.Popen(command, cwd=directory, env=_environment(), stdout=log, stderr=log)
        self.client = Client(self.port)
        while not (self.client.accepts(noop()) if contender.ready is None else self.client.finds(contender.ready)):
            if self._process.poll() is not None or time.perf_counter() - began > START_S:
                self.stop()
                raise RuntimeError(f"{self.name} did not start:\n{self._log.read_text()[-2000:]}")
            time.sleep(0.05)
        self.started_s = time.perf_counter() - began

    def memory_mb(self) -> tuple[float, float]:
        """Return the peak of the process that took most, and what all processes take now, what they share once."""
        processes = self.processes()
        return max(map(_peak_mb, processes)), sum(p.memory_full_info().pss for p in processes) / 2**20

    def processes(self) -> list[psutil.Process]:
        """Return all of its processes."""
        root = psutil.Process(self._process.pid)
        return [root, *root.children(recursive=True)]

    def stop(self) -> float:
        """Stop it and return how many seconds that took."""
        self.client.close()
        began = time.perf_counter()
        self._process.send_signal(signal.SIGTERM)
        try:
            self._process.wait(STOP_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        return time.perf_counter() - began


@contextlib.contextmanager
def running(contender: Contender) -> Iterator[Server]:
    """Run a contender meanwhile.

    Where jobs that compute are timed no other one runs: an idle one takes some of a core, which delays work on all.
    """
    with tempfile.TemporaryDirectory(prefix="bench", ignore_cleanup_errors=True) as directory:
        server = Server(contender, Path(directory))
        try:
            yield server
        finally:
            server.stop()


def in_turn(servers: Iterable[T], turn: int) -> list[T]:
    """Return servers in the order in which they are asked in a turn: every other time the last one is first."""
    return list(servers)[:: -1 if turn % 2 else 1]


def _peak_mb(process: psutil.Process) -> float:
    status = Path(f"/proc/{process.pid}/status").read_text().splitlines()
    return next(int(line.split()[1]) / 1024 for line in status if line.startswith("VmHWM:"))


def _environment() -> dict[str, str]:
    """Return this process's environment, but for Ray's habit of running its workers at nice 15.

    With it whatever else the machine does would come before our server and not before the others.
    """
    return {**os.environ, "RAY_worker_niceness": "0"}


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
