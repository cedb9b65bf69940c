"""The server under attack, its database and store, and its supervisor, which starts it again once it has ended."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import boto3
import psutil
import psycopg
import yaml
from PIL import Image

import serve_app
from tests.chaos.jobs import CARD
from tests.cluster.server import Server, free_port
from tests.postgres import Postgres, binaries
from tests.seaweed import ACCESS, SECRET, Seaweed

PACKS = Path(__file__).parent / "packs"
MODELS = Path(serve_app.__file__).parent / "models" / "shipped"
SLOTS = 16
MEMORY_BYTES = 4 * 2**30
NODE_TIME_S = 60.0
BUCKET = "chaos"
GONE_S = 60.0
"""How long the processes of a server that ended may take to end."""


@dataclass(frozen=True)
class Setting:
    """What a campaign runs on. clock: the server's wall clock can be set, by libfaketime.

    devices: of a replica, each a process of its own. arguments: of the application, beside those that every campaign
    has.
    """

    root: Path
    replicas: int = 1
    database: Literal["sqlite", "postgres"] = "sqlite"
    store: Literal["volume", "s3"] = "volume"
    clock: bool = False
    keep: bool = False
    devices: int = 1
    arguments: Mapping[str, Any] = field(default_factory=dict)

    @property
    def title(self) -> str:
        """What to call it in a report."""
        devices = f" of {self.devices} devices" if self.devices > 1 else ""
        return f"{self.database}, {self.store}, {self.replicas} replicas{devices}"


class Site:
    """A server that is started again whenever it ends. violations: what its ends and starts did wrong."""

    def __init__(self, setting: Setting) -> None:
        self.setting = setting
        self.root = setting.root
        self.replicas: int | None = setting.replicas
        self.clock = setting.clock
        self.violations: list[str] = []
        self.starts = 0
        self.postgres = Postgres(_programs()) if setting.database == "postgres" else None
        self.seaweed = Seaweed(_made(self.root / "seaweed")) if setting.store == "s3" else None
        # Ray would let its workers yield to all else on this machine, and a busy one would starve them.
        self._environment = {"RAY_worker_niceness": "0", **(self._faked_clock() if setting.clock else {})}
        self._config = self.root / "config.yaml"
        Image.new("RGB", (64, 64), (40, 90, 200)).save(_made(self.root / "input") / CARD)
        self._config.write_text(yaml.safe_dump({"applications": [{"name": "serve-app", "args": self._arguments()}]}))
        self.port = free_port()
        self._expected = threading.Event()
        self._closing = threading.Event()
        self._changing = threading.Lock()
        self.server = self._start()
        self.server.wait_until_ready()
        self._supervisor = threading.Thread(target=self._supervise, daemon=True)
        self._supervisor.start()

    @property
    def url(self) -> str:
        """Where it answers, across restarts."""
        return f"http://127.0.0.1:{self.port}"

    @property
    def output(self) -> Path:
        """The output directory of a store that is a volume."""
        return self.root / "output"

    def processes(self) -> list[psutil.Process]:
        """Return every living process of the server."""
        return self.server.processes.found()

    def kill_up(self) -> None:
        """SIGKILL what was started; the supervisor starts another."""
        with self._changing:
            self._expected.set()
            self.server.up.kill()

    @contextlib.contextmanager
    def stopped(self, *, back: bool = True) -> Iterator[None]:
        """Stop the server in good order meanwhile, and return once it is back. back: whether it comes back."""
        with self._changing:
            self._stop()
            yield
            if not back:
                return
            self.server = self._start()
        self.server.wait_until_ready()

    def check(self) -> tuple[int, str]:
        """Let `serve-app check` mend what it can; return its exit status and what it said."""
        command = [sys.executable, "-m", "serve_app.cli", "check", "--config", str(self._config), "--mend"]
        environment = {**os.environ, **self._environment}
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
        return done.returncode, done.stdout + done.stderr

    def saved(self) -> set[tuple[str, str]]:
        """Return (subfolder, filename) of every file that is stored as an output."""
        # Unfinished ones go by age, as a server starts.
        paths = [path for path in self.files("output") if path.suffix != ".part"]
        return {("/".join(path.parts[:-1]), path.name) for path in paths}

    def files(self, area: str) -> list[Path]:
        """Return the paths, within an area of the store, of what is there."""
        if self.seaweed is not None:
            pages = self._bucket().get_paginator("list_objects_v2").paginate(Bucket=BUCKET, Prefix=f"{area}/")
            return [Path(item["Key"]).relative_to(area) for page in pages for item in page.get("Contents", ())]
        folder = self.root / area
        return [path.relative_to(folder) for path in folder.rglob("*") if path.is_file()]

    def set_clock(self, offset_s: int) -> None:
        """Let the server's wall clock go so far from this machine's."""
        new = self.root / "clock.new"
        new.write_text(f"{offset_s:+d}\n")
        new.rename(self.root / "clock")

    @contextlib.contextmanager
    def locked_database(self) -> Iterator[None]:
        """Keep everybody else from writing to the SQLite database meanwhile."""
        with contextlib.closing(sqlite3.connect(self.root / "jobs.sqlite", isolation_level=None, timeout=30)) as other:
            other.execute("BEGIN EXCLUSIVE")
            yield
            other.execute("ROLLBACK")

    @contextlib.contextmanager
    def read_only_database(self) -> Iterator[None]:
        """Have PostgreSQL take no writes, in sessions that are there too, as after a demotion."""
        assert self.postgres is not None
        self.postgres.execute("ALTER SYSTEM SET default_transaction_read_only = on")
        self.postgres.execute("SELECT pg_reload_conf()")
        try:
            yield
        finally:
            self.postgres.execute("ALTER SYSTEM RESET default_transaction_read_only")
            self.postgres.execute("SELECT pg_reload_conf()")

    def terminate_backends(self) -> None:
        """End every connection to the PostgreSQL database."""
        assert self.postgres is not None
        with psycopg.connect(self._database_url, autocommit=True) as connection:
            connection.execute(
                "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
                " WHERE datname = current_database() AND pid <> pg_backend_pid()"
            )

    def close(self) -> None:
        """Stop the server in good order, then what it ran on. Its files stay if they are to be kept."""
        self._closing.set()
        with self._changing:
            self._stop()
        if self.postgres is not None:
            self.postgres.close()
        if self.seaweed is not None:
            self.seaweed.kill()
        if not self.setting.keep:
            shutil.rmtree(self.root, ignore_errors=True)

    def _start(self) -> Server:
        self.starts += 1
        self._expected.clear()
        arguments = ["--config", str(self._config), "--custom-nodes-dir", str(PACKS)]
        return Server(self.root, self.port, self._environment, arguments)

    def _stop(self) -> None:
        up = self.server.up
        if up.poll() is None:
            self._expected.set()
            up.send_signal(signal.SIGTERM)
            try:
                if (status := up.wait(GONE_S)) != 0:
                    self.violations.append(f"after SIGTERM `up` ended with {status}")
            except subprocess.TimeoutExpired:
                self.violations.append(f"`up` had not ended {GONE_S:.0f} s after SIGTERM")
        self._clear(patience_s=0.0 if up.poll() == 0 else GONE_S)

    def _clear(self, patience_s: float) -> None:
        """See that no process is left, and keep the logs."""
        deadline = time.monotonic() + patience_s
        while (left := self.processes()) and time.monotonic() < deadline:
            time.sleep(0.2)
        for process in left:
            with contextlib.suppress(psutil.Error):
                self.violations.append(f"left behind: {' '.join(process.cmdline())[:120]}")
        if self.setting.keep:
            self.server.processes.keep_logs(self.root / "logs" / str(self.starts))
        self.server.close()

    def _supervise(self) -> None:
        while not self._closing.wait(0.2):
            with self._changing:
                if (status := self.server.up.poll()) is None or self._closing.is_set():
                    continue
                if not self._expected.is_set():
                    self.violations.append(f"`up` ended by itself with {status}")
                self._clear(GONE_S)
                self.server = self._start()

    def _arguments(self) -> dict[str, Any]:
        pool: dict[str, Any] = {
            "name": "gpu",
            "min_replicas": self.setting.replicas,
            "max_replicas": self.setting.replicas,
            "tasks_per_replica": SLOTS,
            "memory_bytes": MEMORY_BYTES,
            "node_time_s": NODE_TIME_S,
        }
        pool |= several(self.setting.devices)
        places = {f"{area}_dir": str(self.root / area) for area in ("input", "output", "temp", "user")}
        self._database_url = f"sqlite:///{self.root}/jobs.sqlite" if self.postgres is None else self.postgres.database()
        arguments: dict[str, Any] = {
            "models_dir": str(MODELS),
            **places,
            "database_url": self._database_url,
            "pools": [pool],
            "backoff": {"first_s": 1.0, "longest_s": 5.0, "forgiven_s": 60.0},
            **self.setting.arguments,
        }
        if self.seaweed is not None:
            self._bucket().create_bucket(Bucket=BUCKET)
            self._bucket().upload_file(str(self.root / "input" / CARD), BUCKET, f"input/{CARD}")
            self._environment |= {"AWS_ACCESS_KEY_ID": ACCESS, "AWS_SECRET_ACCESS_KEY": SECRET}
            where = {"bucket": BUCKET, "endpoint": self.seaweed.endpoint, "path_style": True}
            arguments["store"] = {"kind": "s3", **where}
        return arguments

    def _faked_clock(self) -> dict[str, str]:
        library = faked_time()
        assert library is not None, "no libfaketime is installed"
        self.set_clock(0)
        return {
            "LD_PRELOAD": str(library),
            "FAKETIME_TIMESTAMP_FILE": str(self.root / "clock"),
            "FAKETIME_CACHE_DURATION": "1",
            "DONT_FAKE_MONOTONIC": "1",
            "FAKETIME_DONT_FAKE_MONOTONIC": "1",
        }

    def _bucket(self) -> Any:
        assert self.seaweed is not None
        key = {"aws_access_key_id": ACCESS, "aws_secret_access_key": SECRET, "region_name": "us-east-1"}
        return boto3.client("s3", endpoint_url=self.seaweed.endpoint, **key)


def several(devices: int) -> dict[str, Any]:
    """Return a pool's settings for replicas of so many devices, each a process of its own."""
    if devices == 1:
        return {}
    return {"devices_per_replica": devices, "device": "cpu", "num_cpus": 0.1, "threads": 1}


def faked_time() -> Path | None:
    """Return libfaketime's library for programs with threads, or None where it is not installed."""
    return next(iter(sorted(Path("/usr/lib").glob("*/faketime/libfaketimeMT.so.1"))), None)


def _programs() -> Path:
    programs = binaries()
    assert programs is not None, "no PostgreSQL is installed"
    return programs


def _made(directory: Path) -> Path:
    directory.mkdir(parents=True, exist_ok=True)
    return directory
