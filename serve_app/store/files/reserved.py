"""Files that nodes save under reserved names: their names, and the digests that prove they are a node's own."""

from __future__ import annotations

import hashlib
import posixpath
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from serve_app.store.files.store import AREAS, Content, FileRef, Store, pieces

BATCH = "%batch_num%"
"""The placeholder in a key for a file's position among those that are saved together."""

LONGEST_KEY = 767
"""The most characters of a key."""


@dataclass(frozen=True, slots=True)
class Contents:
    """The contents to save under one prefix: the part of each name after the counter, and a digest of each file.

    size: of all of them, in bytes.
    """

    ending: str
    digests: tuple[str, ...]
    size: int = 0

    @classmethod
    def of(cls, ending: str, contents: Sequence[Content]) -> Contents:
        """Return the digests and the size of contents."""
        size = sum(memoryview(piece).nbytes for content in contents for piece in pieces(content))
        return cls(ending, tuple(_digest(pieces(content)) for content in contents), size)

    def __len__(self) -> int:
        return len(self.digests)


@dataclass(frozen=True, slots=True)
class Reservation:
    """Reserved counters of one node of one job, for files PREFIX_00001ENDING and on.

    key: area, folder and prefix. digests: of each file, one for each attempt of the node; none for files of old
    releases.
    """

    job_id: str
    node_id: str
    key: str
    first: int
    amount: int
    ending: str
    digests: tuple[frozenset[str], ...]

    def files(self) -> list[tuple[FileRef, frozenset[str]]]:
        """Return the files that the node may have saved, with their digests."""
        refs = named(self.key, self.ending, self.first, self.amount)
        return list(zip(refs, self.digests, strict=True)) if len(self.digests) == self.amount else []


def named(key: str, ending: str, first: int, amount: int) -> list[FileRef]:
    """Return `count` files with consecutive counters. ending: after the counter, "_.png"; of files that share a
    counter, "_.png|_.txt".
    """
    area, _, path = key.partition("/")
    subfolder, filename = posixpath.split(path)
    endings = ending.split("|")
    numbered = (
        (filename.replace(BATCH, str(i // len(endings))), first + i // len(endings), endings[i % len(endings)])
        for i in range(amount)
    )
    known = next(known for known in AREAS if known == area)
    return [FileRef(known, subfolder, f"{start}_{counter:05}{end}") for start, counter, end in numbered]


def shown(ui: Any) -> Iterator[FileRef]:
    """Yield the stored files that a ui dict names."""
    for items in ui.values() if isinstance(ui, Mapping) else ():
        for item in items if isinstance(items, list | tuple) else ():
            if isinstance(item, Mapping) and item.get("type") in AREAS and isinstance(item.get("filename"), str):
                yield FileRef(item["type"], str(item.get("subfolder") or ""), item["filename"])


def is_own(store: Store, ref: FileRef, digests: frozenset[str]) -> bool:
    """Whether a file has one of the digests of its reservation. Errors: as `Store.open`."""
    with store.open(ref) as file:
        return _digest(iter(lambda: file.read(1 << 20), b"")) in digests


def _digest(content: Iterable[bytes | memoryview]) -> str:
    digest = hashlib.sha256()
    for piece in content:
        digest.update(piece)
    return digest.hexdigest()
