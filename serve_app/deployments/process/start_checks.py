"""What must hold before a server starts: `serve-app up` checks it first, and `serve-app doctor` prints it.

Each check is a function of what is to be started, and yields what it found.
"""

from __future__ import annotations

import os
import shutil
import socket
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, TypeAlias

from serve_app.config import AppConfig
from serve_app.config.ingress import LOOPBACK
from serve_app.config.storage import S3Config
from serve_app.errors import ConfigError, DatabaseAwayError, DatabaseDamagedError, StoreError, StoreRefusedError
from serve_app.packs.requirements import check_lock
from serve_app.replica.files import models_location
from serve_app.store.database.jobs import Jobs
from serve_app.store.files.location import Location

LOW_BYTES = 1_000_000_000
"""Free space of a disk below which a warning is due."""
Level: TypeAlias = Literal["ok", "warning", "error"]
"""Whether a server can start: well, with something missing, or not."""


@dataclass(frozen=True, slots=True)
class Finding:
    """What one check found. mend: the command, or the change of the configuration, that mends it."""

    check: str
    level: Level
    what: str
    mend: str = ""

    def __str__(self) -> str:
        return f"{self.what}; {self.mend}" if self.mend else self.what


@dataclass(frozen=True, slots=True)
class Start:
    """What is to be started, or was: the configuration with absolute paths, and where it listens.

    own_ray: on a Ray of its own, on this machine. insecure: beyond this machine without tenants.
    """

    settings: AppConfig
    host: str
    port: int
    own_ray: bool = True
    insecure: bool = False


Check: TypeAlias = Callable[[Start], Iterator[Finding]]


def folders(start: Start) -> Iterator[Finding]:
    """Check the folders that the configuration names: there, writable, with room."""
    settings = start.settings
    written = {"user_dir": settings.user_dir}
    if not isinstance(settings.store, S3Config):
        written |= {f"{area}_dir": folder for area, folder in settings.directories.items()}
    wrong = [f"{key} {folder}" for key, folder in written.items() if not _writable(folder)]
    if wrong:
        yield Finding("folders", "error", f"this user may not write to {', '.join(wrong)}", "chown it, or name another")
    for folder in sorted({settings.models_dir, *written.values()}):
        if folder.is_dir() and (left := shutil.disk_usage(folder).free) < LOW_BYTES:
            yield Finding("folders", "warning", f"{left // 1_000_000} MB are left on the disk of {folder}", "make room")
    if settings.models is None and not settings.models_dir.is_dir():
        mend = "make it, or name another by --models-dir or `models_dir`"
        yield Finding("folders", "warning", f"there is no models folder {settings.models_dir}", mend)
    if not wrong:
        yield Finding("folders", "ok", ", ".join(map(str, sorted({settings.models_dir, *written.values()}))))


def database(start: Start) -> Iterator[Finding]:
    """Open the database, which makes or migrates it. One that does not answer may come back by itself."""
    try:
        Jobs(start.settings.database_url).close()
    except (ConfigError, DatabaseDamagedError) as error:
        yield Finding("database", "error", str(error))
    except DatabaseAwayError as error:
        yield Finding("database", "warning", f"{error}; going on without it until it answers")
    else:
        yield Finding("database", "ok", "it can be used")


def buckets(start: Start) -> Iterator[Finding]:
    """Check the buckets of clients' files and of model files: there, readable, writable."""
    settings = start.settings
    if isinstance(settings.store, S3Config):
        yield _bucket("clients' files", Location.of(settings.store), writes=True)
    if (models := models_location(settings)) is not None:
        yield _bucket("model files", models, writes=settings.model_changes is not None)


def packs(start: Start) -> Iterator[Finding]:
    """Check the folder of node packs and its lock file."""
    folder = start.settings.custom_nodes_dir
    if folder is None:
        return
    if not folder.is_dir():
        mend = "name the folder of node packs by --custom-nodes-dir or `custom_nodes_dir`"
        yield Finding("packs", "error", f"there is no folder {folder}", mend)
        return
    try:
        check_lock(folder)
    except ConfigError as error:
        yield Finding("packs", "error", str(error))
    else:
        yield Finding("packs", "ok", str(folder))


def exposure(start: Start) -> Iterator[Finding]:
    """Refuse to listen beyond this machine without tenants, unless `insecure`."""
    host, settings = start.host, start.settings
    if host in LOOPBACK or host.startswith("127.") or settings.tenants is not None or start.insecure:
        return
    yield Finding(
        "port",
        "error",
        f"--host {host} lets in whoever reaches it, to everything that everyone has: turn on tenants "
        "(docs/tenants.md), or say --insecure where something else decides who comes in",
    )


def port(start: Start) -> Iterator[Finding]:
    """Check that the port can be listened on."""
    where = f"{start.host}:{start.port}"
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((start.host, start.port))
        except OSError as error:
            yield Finding("port", "error", f"cannot listen on {where}: {error.strerror}", "give another --port")
        else:
            yield Finding("port", "ok", f"{where} is free")


EVERYWHERE: tuple[Check, ...] = (exposure, packs)
"""The checks that also hold for a server on a Ray cluster."""
HERE: tuple[Check, ...] = (folders, port, database, buckets)
"""The checks for a server on this machine."""


def examine(start: Start) -> Iterator[Finding]:
    """Yield what the checks of `serve-app up` find."""
    for check in (*EVERYWHERE, *HERE) if start.own_ray else EVERYWHERE:
        yield from check(start)


def _writable(folder: Path) -> bool:
    return os.access(folder, os.W_OK | os.X_OK)


def _bucket(what: str, location: Location, *, writes: bool) -> Finding:
    # Imported here: a server with files on a volume needs no S3 client.
    from serve_app.store.files.bucket import Bucket

    try:
        Bucket(location.hurried).check(writes=writes)
    except StoreRefusedError as error:
        return Finding("bucket", "error", f"{what}: {error}", "make the bucket, or let the credentials use it")
    except StoreError as error:
        return Finding("bucket", "warning", f"{what}: {error}; going on without it until it answers")
    return Finding("bucket", "ok", f"{what}: {location}")
