"""A cache of a bucket's model files on this host's disk, filled on first use.

A copy is stored under the tag of its content, so an existing copy is the right one, and replacing a model in the
bucket does not disturb readers of the old one. Processes of a host share the copies: a lock file lets one fetch while
others wait, and is released when its process ends.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import io
import os
import threading
import time
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import BinaryIO

from serve_app import log
from serve_app.errors import StoreError
from serve_app.store.files.bucket import Bucket
from serve_app.store.files.object_file import ObjectFile
from serve_app.store.files.store import FileStat

LISTING_S = 5.0
"""The age up to which a listing of the bucket is used."""
AWAY_S = 30.0
"""How long an old listing is used while the bucket is unavailable."""
STREAMS, SPAN_BYTES, CHUNK_BYTES = 8, 64 * 1024**2, 1024**2
"""A file is fetched by concurrent requests of one span each, and written in chunks."""
UNFINISHED = ".part"

_log = log.get("store")


class Mirror:
    """The model files of a bucket. budget_bytes: beyond it copies are evicted, least recently used first; 0 for no
    limit.
    """

    def __init__(self, bucket: Bucket, cache_dir: Path, budget_bytes: int = 0) -> None:
        self._bucket = bucket
        # Who has a listing can go on with it, and had better not wait for a newer one.
        self.hurried = Bucket(bucket.location.hurried)
        self._cache = cache_dir
        self._budget_bytes = budget_bytes
        self._lock = threading.Lock()
        self._known: Mapping[str, FileStat] | None = None
        self._good_until_s = 0.0

    def __str__(self) -> str:
        return str(self._bucket.location)

    def names(self, directory: str, ends: tuple[str, ...]) -> Iterator[str]:
        """Yield the files below a directory, relative to it. Errors: StoreError."""
        for key in self._files():
            name = key.removeprefix(f"{directory}/")
            hidden = any(part.startswith(".") for part in name.split("/"))
            if name != key and not hidden and name.lower().endswith(ends):
                yield name

    def stat(self, name: str) -> FileStat | None:
        """Return a file's size, time and tag, or None. Errors: StoreError."""
        return self._files().get(name)

    def path(self, name: str) -> Path:
        """Return the path of this host's copy, fetched if needed. Errors: FileNotFoundError, StoreError, OSError."""
        found = self._files().get(name)
        if found is None:
            raise FileNotFoundError(name)
        copy = self._copy_of(name, found)
        if not _is_whole(copy, found):
            copy.parent.mkdir(parents=True, exist_ok=True)
            with _alone(copy.with_name(f".{copy.name}.lock")):
                if not _is_whole(copy, found):
                    self._make_room(found.size)
                    self._fetch(name, found, copy)
        with contextlib.suppress(OSError):  # used now; if another process has just let it go, the reader will say so
            # Its time of change stays: who reads a copy takes another for another content.
            os.utime(copy, ns=(time.time_ns(), copy.stat().st_mtime_ns))
        return copy

    def copies(self) -> dict[str, Path]:
        """Return the path of each file's copy, existing or not, by name. Errors: StoreError."""
        return {name: self._copy_of(name, found) for name, found in self._files().items()}

    def open(self, name: str) -> BinaryIO:
        """Open a file in the bucket itself. Errors: FileNotFoundError, StoreError."""
        return io.BufferedReader(ObjectFile(self._bucket, name, None), CHUNK_BYTES)

    def put(self, name: str, data: Iterator[bytes]) -> None:
        """Store a new file in the bucket; other hosts see it within LISTING_S. Errors: FileExistsError, StoreError."""
        self._bucket.put_parts(name, data, "application/octet-stream", replace=False)
        self._look_again()

    def delete(self, name: str) -> None:
        """Remove a file from the bucket; its copies are evicted later. Errors: StoreError."""
        self._bucket.delete(name)
        self._look_again()

    def _look_again(self) -> None:
        with self._lock:
            self._good_until_s = 0.0

    def _files(self) -> Mapping[str, FileStat]:
        """Return the bucket's listing, at most LISTING_S old while it is available."""
        with self._lock:
            if self._known is None or time.monotonic() > self._good_until_s:
                try:
                    asked = self._bucket if self._known is None else self.hurried
                    self._known = dict(asked.list("", deep=True))
                    self._good_until_s = time.monotonic() + LISTING_S
                except StoreError as error:
                    if self._known is None:
                        raise
                    _log.warning("model files are as they were: %s", error)
                    self._good_until_s = time.monotonic() + AWAY_S
            return self._known

    def _copy_of(self, name: str, found: FileStat) -> Path:
        return self._cache / hashlib.sha256(f"{found.size} {found.etag}".encode()).hexdigest()[:16] / name

    def _fetch(self, name: str, found: FileStat, copy: Path) -> None:
        """Copy a file here atomically, and check that it is the listed one."""
        began_s = time.monotonic()
        unfinished = copy.with_name(f".{copy.name}{UNFINISHED}")
        try:
            with unfinished.open("wb") as file, ThreadPoolExecutor(STREAMS) as streams:
                spans = [range(n, min(n + SPAN_BYTES, found.size)) for n in range(0, found.size, SPAN_BYTES)]
                list(streams.map(lambda span: self._copy(name, found, span, file.fileno()), spans))
                os.fsync(file.fileno())
            # The tag of what was put in one request is its MD5; that of several is none that could be checked here.
            if self._is_md5(name) and _md5(unfinished) != found.etag:
                raise self._bucket.error("fetch", name, "Damaged", "what arrived is not what its tag says")
            if unfinished.stat().st_size != found.size:
                raise self._bucket.error("fetch", name, "Damaged", f"{found.size} bytes were to arrive")
            os.replace(unfinished, copy)
        finally:
            unfinished.unlink(missing_ok=True)
        _log.info("fetched %s, %.2f GB, in %.1f s", name, found.size / 1e9, time.monotonic() - began_s)

    def _copy(self, name: str, found: FileStat, span: range, descriptor: int) -> None:
        buffer = memoryview(bytearray(CHUNK_BYTES))
        with ObjectFile(self._bucket, name, span) as source:
            if source.etag != found.etag:
                raise self._bucket.error("fetch", name, "Changed", "another content took its place meanwhile")
            while source.tell() < span.stop:
                at = source.tell()
                count = source.readinto(buffer[: min(CHUNK_BYTES, span.stop - at)])
                if not count:  # shorter than it was listed, which its size will tell
                    return
                os.pwrite(descriptor, buffer[:count], at)

    def _is_md5(self, name: str) -> bool:
        answer = self._bucket.get(name, range(1))
        answer["Body"].close()
        return self._bucket.is_md5(answer)

    def _make_room(self, size: int) -> None:
        """Evict copies, least recently used first, until `size` bytes fit. Open readers are not disturbed."""
        if not self._budget_bytes:
            return
        copies = [(path.stat(), path) for path in self._cache.rglob("*") if path.is_file() and path.name[0] != "."]
        kept = sum(found.st_size for found, _ in copies)
        for found, path in sorted(copies, key=lambda copy: copy[0].st_atime):
            if kept + size <= self._budget_bytes:
                return
            path.unlink(missing_ok=True)
            kept -= found.st_size


def _is_whole(copy: Path, found: FileStat) -> bool:
    try:
        return copy.stat().st_size == found.size
    except OSError:
        return False


def _md5(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, lambda: hashlib.md5(usedforsecurity=False)).hexdigest()


@contextlib.contextmanager
def _alone(lock: Path) -> Iterator[None]:
    """Acquire a lock file, waiting for its holder."""
    with lock.open("wb") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield
