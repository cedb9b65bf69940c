"""The store protocol: the three areas clients know (input, output, temp) and the server's own, on a volume or an object
store.

Names come from clients and are checked here: one that would leave its area counts as absent, since ComfyUI answers 404
for both. Everything is synchronous; callers on an event loop use a thread.
"""

from __future__ import annotations

import posixpath
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import BinaryIO, Literal, Protocol, TypeAlias

from serve_app.errors import FileMissingError

Area: TypeAlias = Literal["input", "output", "temp", "work"]
AREAS: tuple[Area, ...] = ("input", "output", "temp")
"""The areas that clients know. The other one has files of the server's own that may be lost."""


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

    @property
    def path(self) -> str:
        """The file's path within its area, e.g. "sub/a.png". Errors: FileMissingError for an invalid name."""
        text = f"{self.subfolder}/{self.filename}"
        if "\0" in text or "\\" in text:
            raise self.missing("NUL and backslash are not allowed in names")
        if self.filename in ("", ".", "..") or "/" in self.filename:
            raise self.missing("a file name is not empty, not dots, and has no slash")
        if self.subfolder.startswith("/") or ".." in self.subfolder.split("/"):
            raise self.missing("the subfolder leaves the area")
        try:
            text.encode()
        except UnicodeEncodeError as error:
            raise self.missing("it holds half a surrogate pair, which is no Unicode text") from error
        return posixpath.normpath(posixpath.join(self.subfolder, self.filename))

    def missing(self, reason: str) -> FileMissingError:
        """Return the error for an absent file."""
        name = f"{self.subfolder}/{self.filename}" if self.subfolder else self.filename
        return FileMissingError(f"{self.area} file {name[:300]!r}: {reason}")


class Pieces(Protocol):
    """A content too large for memory: its bytes in order, the same at each iteration."""

    def __iter__(self) -> Iterator[bytes | memoryview]: ...


Content: TypeAlias = bytes | Pieces
"""The content of a file."""


def pieces(content: Content) -> Iterable[bytes | memoryview]:
    """Return the bytes of a content in order."""
    return (content,) if isinstance(content, bytes) else content


@dataclass(frozen=True, slots=True)
class FileStat:
    """Size in bytes, Unix time of the last change in seconds, and a tag that changes with the content."""

    size: int
    modified_s: float
    etag: str


class Store(Protocol):
    """The interface of a store. Errors of all: FileMissingError for a name that is absent or leaves its area;
    StoreError, or OSError of a disk, if the store is unavailable or refuses.
    """

    def stat(self, ref: FileRef) -> FileStat: ...

    def open(self, ref: FileRef, span: range | None = None) -> BinaryIO:
        """Open for reading; seekable. The caller closes it. span: the range that will be read."""
        ...

    def write(self, ref: FileRef, data: Content, *, replace: bool = True) -> None:
        """Store the whole content or nothing: a reader never sees half a file. Replaces an older content.

        Errors: FileExistsError for an existing file, without `replace`.
        """
        ...

    def names(self, area: Area, subfolder: str = "") -> Iterator[str]:
        """Yield the file names directly in a subfolder; none if the subfolder does not exist."""
        ...

    def files(self, area: Area, subfolder: str = "") -> Iterator[tuple[FileRef, float]]:
        """Yield every file of an area, or below a subfolder, half-written ones too, with its last change."""
        ...

    def delete(self, ref: FileRef) -> None:
        """Remove a file; an absent one is no error."""
        ...

    def link(self, ref: FileRef, content_type: str, disposition: str) -> str | None:
        """Return a temporary URL of the file for a client, with these headers; None if there are none."""
        ...


class WholeStore(Store, Protocol):
    """A store with access to all files."""

    def inventory(self, area: Area, subfolder: str = "") -> Iterator[tuple[FileRef, int, float]]:
        """Yield every file of an area, or below a subfolder, with its bytes and the Unix time of its last change.

        Half-written ones too.
        """
        ...
