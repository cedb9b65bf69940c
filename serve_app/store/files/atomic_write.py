"""Writing a file whole or not at all, for whatever keeps files on a file system."""

from __future__ import annotations

import contextlib
import errno
import os
import uuid
from pathlib import Path

from serve_app.store.files.store import Content, pieces

UNFINISHED = ".part"
"""How the name of a file that is still being written ends; such files are not listed."""

NO_LINKS = frozenset({errno.EPERM, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS})
"""What file systems without hard links, such as SMB's, say when they are asked for one."""


def write_file(path: Path, data: Content, *, replace: bool = True, durable: bool = True) -> None:
    """Store the whole content or nothing, and return once it is on the disk. The folder must exist.

    durable: whether it has to outlive a crash of the machine, which takes two waits for the disk.
    Errors: FileExistsError if there is such a file and it may not be replaced, whoever made it meanwhile; OSError.
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
    # The name itself must outlive a crash too: the record that tells of the file does.
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def claim(unfinished: Path, path: Path) -> None:
    """Give a file its name only if that is free, which looking first could not promise. Errors: FileExistsError."""
    try:
        os.link(unfinished, path)
    except OSError as error:
        if error.errno not in NO_LINKS:
            raise
        # Without links the name is claimed by an empty file, which readers may see for a moment.
        os.close(os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY))
        os.replace(unfinished, path)
