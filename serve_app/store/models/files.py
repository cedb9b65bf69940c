"""Model files on this host's disk. The catalog knows folders and names.

Names are relative and use forward slashes, e.g. "checkpoints/sub/a.safetensors". `mirror.py` has those of a bucket.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO, Protocol

from serve_app.store.files.atomic_write import write_file
from serve_app.store.files.store import FileStat

DEPTH_LIMIT = 16
"""The depth of subfolders that are searched."""


class ModelFiles(Protocol):
    """The interface of a location of model files. Errors of a bucket: StoreError. str() describes the location."""

    def names(self, directory: str, ends: tuple[str, ...]) -> Iterator[str]:
        """Yield the files below a directory, relative to it, with one of the suffixes in lower case."""
        ...

    def stat(self, name: str) -> FileStat | None:
        """Return a file's size, time and tag, or None."""
        ...

    def path(self, name: str) -> Path:
        """Return an existing file's path on this host, fetching it if needed."""
        ...

    def open(self, name: str) -> BinaryIO:
        """Open an existing file to read a small part."""
        ...

    def put(self, name: str, data: Iterator[bytes]) -> None:
        """Store a new file, whole or not at all. Errors: FileExistsError, OSError, StoreError, and what data raises."""
        ...

    def delete(self, name: str) -> None:
        """Remove a file; open readers are not disturbed. An absent one is no error. Errors: OSError, StoreError."""
        ...


class ModelFolder:
    """Model files below a directory. Every call reads the disk, so a new file is visible at once."""

    def __init__(self, root: Path) -> None:
        self._root = root

    def __str__(self) -> str:
        return str(self._root)

    def names(self, directory: str, ends: tuple[str, ...]) -> Iterator[str]:
        """Yield the files below a directory. Links are followed, except to a folder that contains them."""
        stack: list[tuple[Path, str, tuple[str, ...]]] = [(self._root / directory, "", ())]
        while stack:
            current, prefix, above = stack.pop()
            real = os.path.realpath(current)
            if real in above or len(above) > DEPTH_LIMIT:
                continue
            try:
                with os.scandir(current) as entries:
                    for entry in entries:
                        if entry.name.startswith("."):
                            continue
                        if entry.is_dir():
                            stack.append((current / entry.name, f"{prefix}{entry.name}/", (*above, real)))
                        elif entry.name.lower().endswith(ends) and entry.is_file():
                            yield prefix + entry.name
            except OSError:  # a folder that is absent or may not be read has no files for us
                continue

    def stat(self, name: str) -> FileStat | None:
        """Return a file's size, time and tag; None if there is no such file."""
        path = self._root / name
        try:
            if not path.is_file():
                return None
            found = path.stat()
        except (OSError, ValueError):
            return None
        return FileStat(found.st_size, found.st_mtime, f"{found.st_size}-{found.st_mtime_ns}")

    def path(self, name: str) -> Path:
        """Return where a file is."""
        return self._root / name

    def open(self, name: str) -> BinaryIO:
        """Open a file for reading."""
        return (self._root / name).open("rb")

    def put(self, name: str, data: Iterator[bytes]) -> None:
        """Store a new file. Errors: FileExistsError, OSError."""
        path = self._root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        write_file(path, data, replace=False)

    def delete(self, name: str) -> None:
        """Remove a file. Errors: OSError."""
        (self._root / name).unlink(missing_ok=True)
