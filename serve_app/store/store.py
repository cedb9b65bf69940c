"""The store protocol: the three directories clients know (input, output, temp), on a volume or an object store.

Names are checked here once: a name or subfolder that would leave its area raises FileMissingError, as ComfyUI's
clients see a 404 for it. Everything is synchronous; callers on an event loop use a thread.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import BinaryIO, Literal, Protocol, TypeAlias

Area: TypeAlias = Literal["input", "output", "temp"]
AREAS: tuple[Area, ...] = ("input", "output", "temp")


@dataclass(frozen=True, slots=True)
class FileRef:
    """A stored file as clients name it. `subfolder` uses forward slashes, "" for none."""

    area: Area
    subfolder: str
    filename: str

    @classmethod
    def parse(cls, name: str, area: Area = "input") -> FileRef:
        """Return the file a widget's value names: "sub/a.png", in `area` unless it ends " [output]" or the like."""
        for annotated in AREAS:
            if name.endswith(f"[{annotated}]"):
                name, area = name.removesuffix(f"[{annotated}]").rstrip(), annotated
                break
        subfolder, _, filename = name.rpartition("/")
        return cls(area, subfolder, filename)


@dataclass(frozen=True, slots=True)
class FileStat:
    """Size in bytes, Unix time of the last change in seconds, and a tag that changes with the content."""

    size: int
    modified_s: float
    etag: str


class Store(Protocol):
    """What every store can do. Errors: FileMissingError for a name that is absent or leaves its area."""

    def stat(self, ref: FileRef) -> FileStat: ...

    def open(self, ref: FileRef) -> BinaryIO:
        """Open for reading; seekable. The caller closes it."""
        ...

    def write(self, ref: FileRef, data: bytes, *, replace: bool = True) -> None:
        """Store the whole content or nothing: a reader never sees half a file. Replaces an older content.

        Errors: FileExistsError for a name that is taken, without `replace`.
        """
        ...

    def names(self, area: Area, subfolder: str = "") -> Iterator[str]:
        """Yield the file names directly in a subfolder; none if the subfolder does not exist."""
        ...
