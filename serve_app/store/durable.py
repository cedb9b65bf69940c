"""Writing a file whole or not at all, for whatever keeps files on a file system."""

from __future__ import annotations

import contextlib
import os
import uuid
from pathlib import Path

UNFINISHED = ".part"
"""How the name of a file that is still being written ends; such files are not listed."""


def write_file(path: Path, data: bytes, *, replace: bool = True) -> None:
    """Store the whole content or nothing, and return once it is on the disk. The folder must exist.

    Errors: FileExistsError if there is such a file and it may not be replaced, whoever made it meanwhile; OSError.
    """
    unfinished = path.with_name(f".{uuid.uuid4().hex}{UNFINISHED}")
    try:
        with unfinished.open("xb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        if replace:
            os.replace(unfinished, path)
        else:
            # A link is made only if the name is free, which looking first could not promise.
            os.link(unfinished, path)
    finally:
        with contextlib.suppress(OSError):
            unfinished.unlink()
    # The name itself must outlive a crash too: the record that tells of the file does.
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)
