"""Content hashes of assets, and the names of their files."""

from __future__ import annotations

import re
import secrets
from collections.abc import Callable, Iterator
from pathlib import PurePosixPath
from typing import BinaryIO

from serve_app.store.files.store import FileRef
from serve_app.store.page.assets import FOLDER

HASH = re.compile(r"blake3:[0-9a-f]{64}")
"""How a hash is written."""
PIECE_BYTES = 1 << 20

_SUFFIX = re.compile(r"\.[a-z0-9]{1,8}")


class FilePieces:
    """The content of an open file, from its beginning at each iteration.

    late: whether the time is up, which raises TimeoutError.
    """

    def __init__(self, file: BinaryIO, late: Callable[[], bool] = lambda: False) -> None:
        self._file, self._late = file, late

    def __iter__(self) -> Iterator[bytes]:
        self._file.seek(0)
        while piece := self._file.read(PIECE_BYTES):
            if self._late():
                raise TimeoutError("reading the file takes too long")
            yield piece


def content_hash(pieces: FilePieces) -> tuple[str, int]:
    """Return the hash of a content, and its size in bytes. Source: the BLAKE3 paper, by the package `blake3`."""
    # Only who keeps assets needs it: the rest of the server does without.
    from blake3 import blake3

    digest, size = blake3(), 0
    for piece in pieces:
        digest.update(piece)
        size += len(piece)
    return f"blake3:{digest.hexdigest()}", size


def new_file(hash_: str, name: str) -> FileRef:
    """Return a unique file for an upload's content. name: the client's, whose suffix is kept."""
    suffix = PurePosixPath(name).suffix.lower()
    kept = suffix if _SUFFIX.fullmatch(suffix) else ""
    return FileRef("input", FOLDER, f"{hash_.removeprefix('blake3:')}-{secrets.token_hex(6)}{kept}")
