"""A store on a file system: a directory for each area, on one host's disk or on a volume that every host mounts.

Names are checked twice: their text, as for every store, and where their real path ends up.
"""

from __future__ import annotations

import contextlib
import errno
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from stat import S_ISREG
from typing import BinaryIO

from serve_app.errors import FileMissingError
from serve_app.store.files.atomic_write import UNFINISHED, write_file
from serve_app.store.files.store import Area, Content, FileRef, FileStat


class Volume:
    """The areas as directories. They are created at the first write."""

    def __init__(self, directories: Mapping[Area, Path]) -> None:
        self._roots = {area: Path(os.path.realpath(directory)) for area, directory in directories.items()}

    def resolve(self, ref: FileRef) -> Path:
        """Return the real path of an existing regular file. Errors: FileMissingError."""
        path = self.path_of(ref)
        self._stat(ref, path)
        return path

    def stat(self, ref: FileRef) -> FileStat:
        """Return the size, time and tag of a file. Errors: FileMissingError."""
        found = self._stat(ref, self.path_of(ref))
        # A file is replaced whole, by a new inode, so even two contents of one size and one clock tick differ in tag.
        etag = f"{found.st_mtime_ns:x}-{found.st_size:x}-{found.st_ino:x}"
        return FileStat(found.st_size, found.st_mtime, etag)

    def open(self, ref: FileRef, span: range | None = None) -> BinaryIO:
        """Open a file for reading, at the start of the span. Errors: FileMissingError."""
        path = self.resolve(ref)
        try:
            file = path.open("rb")
        except OSError as error:
            raise ref.missing(str(error)) from error
        if span is not None:
            file.seek(span.start)
        return file

    def write(self, ref: FileRef, data: Content, *, replace: bool = True) -> None:
        """Store the whole content or nothing, and return once it is on the disk, except previews and the server's own.

        Errors: FileMissingError for a name that leaves its area or is a folder's; FileExistsError for a name that is
        taken, without `replace`; OSError when the disk refuses.
        """
        path = self.path_of(ref)
        try:
            if path.is_dir():
                raise ref.missing("it is a folder")
            try:
                path.parent.mkdir(parents=True, exist_ok=True)
            except (FileExistsError, NotADirectoryError) as error:
                raise ref.missing("a part of its subfolder is a file") from error
            write_file(path, data, replace=replace, durable=ref.area not in ("temp", "work"))
        except OSError as error:
            if error.errno == errno.ENAMETOOLONG:
                raise ref.missing("it is longer than the file system's names") from error
            raise

    def names(self, area: Area, subfolder: str = "") -> Iterator[str]:
        """Yield the file names directly in a subfolder, none if it does not exist."""
        try:
            with os.scandir(self.path_of(FileRef(area, subfolder, "any")).parent) as entries:
                for entry in entries:
                    if not entry.name.endswith(UNFINISHED) and entry.is_file():
                        yield entry.name
        except (FileNotFoundError, NotADirectoryError):
            return

    def files(self, area: Area, subfolder: str = "") -> Iterator[tuple[FileRef, float]]:
        """Yield every file below a subfolder of an area, half-written ones too, with its last change; no links."""
        return ((ref, modified_s) for ref, _, modified_s in self.inventory(area, subfolder))

    def inventory(self, area: Area, subfolder: str = "") -> Iterator[tuple[FileRef, int, float]]:
        """As `WholeStore.inventory`; no links."""
        root = self._roots[area]
        for folder, _, names in os.walk(self.path_of(FileRef(area, subfolder, "any")).parent):
            place = Path(folder).relative_to(root).as_posix()
            for name in names:
                with contextlib.suppress(FileNotFoundError):
                    found = os.lstat(os.path.join(folder, name))
                    if S_ISREG(found.st_mode):
                        ref = FileRef(area, "" if place == "." else place, name)
                        yield ref, found.st_size, found.st_mtime

    def delete(self, ref: FileRef) -> None:
        """Remove a file; an absent one is no error. Errors: OSError when the disk refuses."""
        with contextlib.suppress(FileMissingError):
            self.resolve(ref).unlink(missing_ok=True)

    def link(self, ref: FileRef, content_type: str, disposition: str) -> str | None:
        """Return None: a volume is read through the ingress."""
        return None

    def path_of(self, ref: FileRef) -> Path:
        root = self._roots.get(ref.area)
        if root is None:
            raise ref.missing(f"there is no area {ref.area!r}; there are {', '.join(self._roots)}")
        try:
            path = Path(os.path.realpath(root / ref.path))
        except OSError as error:
            raise ref.missing(str(error)) from error
        if not path.is_relative_to(root):
            raise ref.missing("it is a symbolic link out of the area")
        return path

    def _stat(self, ref: FileRef, path: Path) -> os.stat_result:
        try:
            found = path.stat()
        except OSError as error:
            raise ref.missing("there is no such file") from error
        if not S_ISREG(found.st_mode):
            raise ref.missing("it is not a file")
        return found
