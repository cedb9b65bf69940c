"""Atomic writes of files on a file system."""

from __future__ import annotations

import contextlib
import errno
import os
import uuid
from pathlib import Path

from serve_app.store.files.store import Content, pieces

UNFINISHED = ".part"
"""The suffix of files that are being written, which are not listed."""

NO_LINKS = frozenset({errno.EPERM, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS})
"""The errors of file systems without hard links, such as SMB."""


def write_file(path: Path, data: Content, *, replace: bool = True, durable: bool = True) -> None:
    """Store the whole content or nothing, and return once it is on the disk. The folder must exist.

    durable: whether it has to outlive a crash of the machine, which takes two waits for the disk.
    Errors: FileExistsError if the file exists, also since the call, and may not be replaced; OSError.
    """
    unfinished = path.with_name(f".{uuid.uuid4().hex}{UNFINISHED}")
    try:
        with unfinished.open("xb") as file:
            for piece in pieces(data):
                file.write(piece)
            file.flush()
            if durable:
                os.fsync(file.fileno())
        if replace:
            os.replace(unfinished, path)
        else:
            claim(unfinished, path)
    finally:
        with contextlib.suppress(OSError):
            unfinished.unlink()
    if not durable:
        return
    # The directory entry must survive a crash too, as the file's record does.
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def claim(unfinished: Path, path: Path) -> None:
    """Give a file its name only if that is free, atomically. Errors: FileExistsError."""
    try:
        os.link(unfinished, path)
    except OSError as error:
        if error.errno not in NO_LINKS:
            raise
        # Without links the name is claimed by an empty file, which readers may see for a moment.
        os.close(os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY))
        os.replace(unfinished, path)
