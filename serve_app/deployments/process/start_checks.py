"""What must hold before a server starts: `serve-app up` checks it first, and `serve-app doctor` prints it.

Each check is a function of what is to be started, and yields what it found.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import socket
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, TypeAlias

from serve_app.config import AppConfig
from serve_app.config.ingress import LOOPBACK
from serve_app.config.storage import S3Config
from serve_app.deployments.proxy import haproxy
from serve_app.errors import ConfigError, DatabaseAwayError, DatabaseDamagedError, StoreError, StoreRefusedError
from serve_app.events import ENDINGS
from serve_app.packs.requirements import check_lock
from serve_app.replica.files import models_location
from serve_app.replica.host import driver_version, host_stats
from serve_app.store.database.changes import JobQuery
from serve_app.store.database.database import exists
from serve_app.store.database.jobs import Jobs
from serve_app.store.files.location import Location

LOW_BYTES = 1_000_000_000
"""Free space of a disk below which a warning is due."""
AHEAD_S = 60.0
"""How far the newest job may be ahead of the clock, which other hosts' clocks may be."""
NEWEST = JobQuery(("queued", "running", *ENDINGS), "created", descending=True, limit=1)
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

    own_ray: on a Ray of its own, on this machine. insecure: beyond this machine without tenants. looking: only to look,
    which changes nothing, also while the server runs.
    """

    settings: AppConfig
    host: str
    port: int
    own_ray: bool = True
    insecure: bool = False
    looking: bool = False


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
    elif not wrong:
        yield Finding("folders", "ok", ", ".join(map(str, sorted({settings.models_dir, *written.values()}))))


def database(start: Start) -> Iterator[Finding]:
    """Open the database, which makes or migrates it unless this only looks; and compare the clock with its newest job.

    One that does not answer may come back by itself.
    """
    if start.looking and not exists(start.settings.database_url):
        yield Finding("database", "ok", "there is none yet; the first start makes it")
        return
    try:
        with contextlib.closing(Jobs(start.settings.database_url, migrates=not start.looking)) as jobs:
            if start.looking:
                jobs.inspect()
                jobs.check_sound()
            newest = jobs.rows([job_id for job_id, _ in jobs.keys(NEWEST)], brief=True)
    except (ConfigError, DatabaseDamagedError) as error:
        yield Finding("database", "error", str(error))
    except DatabaseAwayError as error:
        yield Finding("database", "warning", f"{error}; going on without it until it answers")
    else:
        yield Finding("database", "ok", "it can be used")
        ahead_s = newest[0].created_s - time.time() if newest else 0.0
        if ahead_s > AHEAD_S:
            what = f"the newest job was submitted {ahead_s:.0f} s after what the clock takes for now"
            yield Finding("clock", "warning", what, "timedatectl set-ntp true")
        else:
            yield Finding("clock", "ok", time.strftime("%Y-%m-%d %H:%M:%S %z"))


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
            if start.looking and _answers(start):
                yield Finding("port", "ok", f"this server or another answers on {where}")
            else:
                yield Finding("port", "error", f"cannot listen on {where}: {error.strerror}", "give another --port")
        else:
            yield Finding("port", "ok", f"{where} is free")


def gpus(start: Start) -> Iterator[Finding]:
    """List this machine's GPUs, and have each pool that takes one use it, as its replicas will."""
    host = host_stats()
    for gpu in host.gpus:
        memory = f"{gpu.vram_free_mb} of {gpu.vram_total_mb} MB free"
        yield Finding("gpu", "ok", f"{gpu.name}, {memory}, driver {driver_version()}")
    if not host.gpus:
        yield Finding("gpu", "ok", f"none is here (driver {driver_version()}): models compute on the CPU")
    settings = start.settings.on(len(host.gpus))
    for lack in lacking_gpus(settings, len(host.gpus)) if start.own_ray else ():
        yield Finding("gpu", "error", lack)
    pools = [pool for pool in settings.pools if 0 < pool.gpus <= len(host.gpus) and pool.device != "cpu"]
    if pools:
        # Imported here: torch takes seconds.
        from serve_app.replica.gpu import gpu_of

        try:
            gpu_of(pools[0].name)
        except ConfigError as error:
            yield Finding("gpu", "error", str(error))


def lacking_gpus(settings: AppConfig, found: float) -> Iterator[str]:
    """Yield a sentence for each pool that asks for more GPUs than there are."""
    for pool in settings.pools:
        if pool.gpus > found:
            yield (
                f"pool {pool.name} asks for num_gpus: {pool.gpus:g}, and this machine has {found:g}; "
                "`num_gpus: auto` takes one where there is one"
            )


def vocabularies(start: Start) -> Iterator[Finding]:
    """List the vocabularies of text encoders. One that no model needs may be missing."""
    from serve_app.models.tokenizers.installed import installed

    def user_file(name: str) -> Path | None:
        path = start.settings.models_dir / "text_encoders" / name
        return path if path.is_file() else None

    for name, install in installed(user_file):
        if install:
            yield Finding(
                "vocabulary", "warning", f"{name}'s is not here, which models with that encoder need", install
            )
        else:
            yield Finding("vocabulary", "ok", f"{name}'s is here")


def proxy(start: Start) -> Iterator[Finding]:
    """Look for the HAProxy that is to listen."""
    found = haproxy.find()
    if found is None:
        yield Finding(
            "proxy", "warning", "there is no HAProxy, and Serve's own is several times slower", "install haproxy"
        )
    else:
        yield Finding("proxy", "ok", found)


EVERYWHERE: tuple[Check, ...] = (exposure, packs)
"""The checks that also hold for a server on a Ray cluster."""
HERE: tuple[Check, ...] = (folders, port, database, buckets)
"""The checks for a server on this machine."""


LOOKS: tuple[Check, ...] = (proxy, gpus, vocabularies)
"""Checks for people alone: as a server starts, its parts make them themselves or go on without."""


def examine(start: Start) -> Iterator[Finding]:
    """Yield what the checks find: those of `serve-app up`, and the others if this only looks."""
    here = HERE if start.own_ray else ()
    for check in (*EVERYWHERE, *here, *(LOOKS if start.looking else ())):
        yield from check(start)


def _writable(folder: Path) -> bool:
    """Whether this user may write to a folder, or make it."""
    there = next(path for path in (folder, *folder.parents) if path.exists())
    return there.is_dir() and os.access(there, os.W_OK | os.X_OK)


def _answers(start: Start) -> bool:
    """Whether a server of this project answers where this one is to listen."""
    import httpx

    with contextlib.suppress(httpx.HTTPError, ValueError, KeyError):
        answer = httpx.get(f"http://{start.host}:{start.port}/healthz", timeout=2.0)
        return bool(answer.json()["status"] == "ok")
    return False


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
