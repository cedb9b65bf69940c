"""A PostgreSQL of this machine, started for the tests: its own data directory, a Unix socket, by default no network."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import tempfile
import uuid
from collections.abc import Sequence
from pathlib import Path
from typing import LiteralString
from urllib.parse import urlsplit

import psutil
import psycopg

COMMAND_S = 120.0
"""How long a start or an end of a server may take, both of which wait for it."""


def binaries() -> Path | None:
    """Return the folder of the newest PostgreSQL's programs, or None where none is installed."""
    found = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"), key=lambda path: float(path.parts[-3]))
    if found:
        return found[-1].parent
    on_path = shutil.which("initdb")
    return Path(on_path).resolve().parent if on_path else None


class Postgres:
    """One server. It refuses to run as root, so root runs it as the user postgres.

    address: where it also listens, for whoever is in the same network. within: what its commands are prefixed with.
    root: an empty folder for its files and its socket, by default a new one.
    """

    def __init__(self, programs: Path, address: str = "", within: Sequence[str] = (), root: Path | None = None) -> None:
        self._programs, self._address, self._within = programs, address, list(within)
        self._root = root or Path(tempfile.mkdtemp(prefix="pg-"))
        if os.geteuid() == 0:
            shutil.chown(self._root, "postgres")
        self._run("initdb", "--no-sync", "--auth=trust", "--username=postgres", "-D", f"{self._root}/data")
        if address:
            with (self._root / "data" / "pg_hba.conf").open("a") as rules:
                rules.write("host all all samenet trust\n")
        self.start()

    def _run(self, program: str, *arguments: str) -> None:
        as_user = ["runuser", "-u", "postgres", "--"] if os.geteuid() == 0 else []
        command = [*self._within, *as_user, str(self._programs / program), *arguments]
        with (self._root / "commands.log").open("w+b") as said:
            # What it starts keeps the file open, and would keep a pipe open as well.
            done = subprocess.run(
                command, stdin=subprocess.DEVNULL, stdout=said, stderr=said, cwd=self._root, timeout=COMMAND_S
            )
            said.seek(0)
            assert done.returncode == 0, said.read().decode()

    def start(self) -> None:
        options = f"-c listen_addresses={self._address} -c unix_socket_directories={self._root} -c fsync=off"
        # In its own folder: shared memory would outlive a server that is killed.
        options += " -c dynamic_shared_memory_type=mmap"
        self._run("pg_ctl", "-w", "-D", f"{self._root}/data", "-l", f"{self._root}/log", "-o", options, "start")

    def stop(self) -> None:
        """End the server at once, as a crash would."""
        self._run("pg_ctl", "-w", "-D", f"{self._root}/data", "-m", "immediate", "stop")

    def kill(self) -> None:
        """SIGKILL the postmaster; its children notice and end."""
        pid = int((self._root / "data" / "postmaster.pid").read_text().split()[0])
        children = psutil.Process(pid).children()
        os.kill(pid, signal.SIGKILL)
        psutil.wait_procs(children, timeout=60)

    def database(self) -> str:
        """Make a new, empty database and return its URL."""
        name = f"t{uuid.uuid4().hex}"
        self.execute(f'CREATE DATABASE "{name}"')
        return f"postgresql://postgres@/{name}?host={self._root}"

    def drop(self, url: str) -> None:
        """Delete a database, whoever is connected to it."""
        self.execute(f'DROP DATABASE "{urlsplit(url).path[1:]}" WITH (FORCE)')

    @property
    def socket(self) -> Path:
        """Where it listens."""
        return self._root / ".s.PGSQL.5432"

    def execute(self, statement: LiteralString) -> None:
        """Carry a statement out, as the superuser in a database that no test uses."""
        with self.connect() as connection:
            connection.execute(statement)

    def connect(self) -> psycopg.Connection[tuple[object, ...]]:
        """Connect as the superuser to a database that no test uses; each statement takes effect by itself."""
        writes = "-c default_transaction_read_only=off"
        at = f"host={self._root} user=postgres dbname=postgres options='{writes}'"
        return psycopg.connect(at, autocommit=True)

    def close(self) -> None:
        self.stop()
        shutil.rmtree(self._root)
