"""Streams stored files as one ZIP archive, with at most one piece in memory.

Files are stored as they are, since pictures and videos are compressed already. Source: PKWARE's APPNOTE.TXT, as
Python's zipfile writes it to what cannot be sought in: sizes and checksums follow each file.
"""

from __future__ import annotations

import zipfile
from collections.abc import Generator, Iterator, Sequence
from datetime import UTC, datetime
from typing import NamedTuple

from serve_app.errors import FileMissingError
from serve_app.store.files.store import FileRef, Store

PIECE_BYTES = 256 * 1024
GONE = "MISSING.txt"
"""The member that lists files deleted since the archive was requested."""
_FIRST, _LAST = (1980, 1, 1, 0, 0, 0), (2107, 12, 31, 23, 59, 58)
"""The range of times of the format."""


class ArchiveMember(NamedTuple):
    """One file of an archive. name: in the archive. size: bytes at the request. changed_s: Unix time."""

    ref: FileRef
    name: str
    size: int
    changed_s: float


def zipped(store: Store, members: Sequence[ArchiveMember]) -> Generator[bytes]:
    """Yield the archive, in pieces of about PIECE_BYTES. It blocks while files are read."""
    written = _Written()
    gone = []
    with zipfile.ZipFile(written, "w", zipfile.ZIP_STORED) as archive:  # type: ignore[call-overload]
        for member in members:
            try:
                size = store.stat(member.ref).size
                file = store.open(member.ref)
            except FileMissingError:
                gone.append(member.name)
                continue
            with file:
                entry = _entry(member.name, member.changed_s)
                entry.file_size = size  # by which it is decided whether the entry is of the large kind
                with archive.open(entry, "w") as target:
                    while piece := file.read(PIECE_BYTES):
                        target.write(piece)
                        yield from written.taken()
        if gone:
            archive.writestr(_entry(GONE, 0.0), "\n".join(gone) + "\n")
    yield from written.taken()


class _Written:
    """The written bytes that are not yielded yet."""

    def __init__(self) -> None:
        self._pieces: list[bytes] = []

    def write(self, piece: bytes) -> int:
        self._pieces.append(bytes(piece))
        return len(piece)

    def flush(self) -> None:
        """Do nothing: nothing is buffered elsewhere."""

    def taken(self) -> Iterator[bytes]:
        if self._pieces:
            yield b"".join(self._pieces)
            self._pieces.clear()


def _entry(name: str, changed_s: float) -> zipfile.ZipInfo:
    changed = datetime.fromtimestamp(max(changed_s, 0.0), UTC).timetuple()[:6]
    entry = zipfile.ZipInfo(name, min(max(changed, _FIRST), _LAST))
    entry.external_attr = 0o644 << 16
    return entry
