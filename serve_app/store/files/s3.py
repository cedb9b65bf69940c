"""A store on an S3-compatible server: the areas as folders of one bucket, which every host reaches."""

from __future__ import annotations

import io
import mimetypes
from collections.abc import Iterator
from typing import BinaryIO

from serve_app.store.files.bucket import Bucket
from serve_app.store.files.object_file import ObjectFile
from serve_app.store.files.store import Area, Content, FileRef, FileStat, pieces

BUFFER_BYTES = 256 * 1024
KEY_BYTES = 1024
"""How long S3 lets a key be."""


class S3:
    """The store, under keys AREA/SUBFOLDER/FILENAME. links_s: how long a link is valid; None for no links."""

    def __init__(self, bucket: Bucket, links_s: int | None = None) -> None:
        self._bucket = bucket
        self._links_s = links_s

    def stat(self, ref: FileRef) -> FileStat:
        """Return the size, time and tag of a file. Errors: FileMissingError, StoreError."""
        try:
            return self._bucket.stat(self._key(ref))
        except FileNotFoundError as error:
            raise ref.missing("there is no such file") from error

    def open(self, ref: FileRef, span: range | None = None) -> BinaryIO:
        """Open a file for reading; the span is one request. Errors: FileMissingError, StoreError."""
        try:
            return io.BufferedReader(ObjectFile(self._bucket, self._key(ref), span), BUFFER_BYTES)
        except FileNotFoundError as error:
            raise ref.missing("there is no such file") from error

    def write(self, ref: FileRef, data: Content, *, replace: bool = True) -> None:
        """Store the whole content or nothing; it is durable when this returns.

        Errors: FileMissingError for an invalid name; FileExistsError for an existing file, without `replace`;
        StoreError.
        """
        content_type = mimetypes.guess_type(ref.filename)[0] or "application/octet-stream"
        if isinstance(data, bytes):
            self._bucket.put(self._key(ref), data, content_type, replace=replace)
        else:
            self._bucket.put_parts(self._key(ref), pieces(data), content_type, replace=replace)

    def names(self, area: Area, subfolder: str = "") -> Iterator[str]:
        """Yield the file names directly in a subfolder, none if it does not exist. Errors: as `stat`."""
        start = self._key(FileRef(area, subfolder, "any")).removesuffix("any")
        # A key that ends in "/" is the folder's own mark, which some tools make.
        return (name for name, _ in self._bucket.list(start) if name)

    def files(self, area: Area, subfolder: str = "") -> Iterator[tuple[FileRef, float]]:
        """Yield every file below a subfolder of an area with the Unix time it was stored at. Errors: as `stat`."""
        return ((ref, modified_s) for ref, _, modified_s in self.inventory(area, subfolder))

    def inventory(self, area: Area, subfolder: str = "") -> Iterator[tuple[FileRef, int, float]]:
        """As `WholeStore.inventory`. Errors: as `stat`."""
        start = self._key(FileRef(area, subfolder, "any")).removesuffix("any")
        for name, found in self._bucket.list(start, deep=True):
            folder, _, filename = f"{start}{name}".removeprefix(f"{area}/").rpartition("/")
            if filename:
                yield FileRef(area, folder, filename), found.size, found.modified_s

    def delete(self, ref: FileRef) -> None:
        """Remove a file; an absent one is no error. Errors: StoreError."""
        self._bucket.delete(self._key(ref))

    def link(self, ref: FileRef, content_type: str, disposition: str) -> str | None:
        """Return a link to the file with these headers, None without links. The file need not exist."""
        if self._links_s is None:
            return None
        answer = {"ResponseContentType": content_type, "ResponseContentDisposition": disposition}
        return self._bucket.link(self._key(ref), self._links_s, **answer)

    def _key(self, ref: FileRef) -> str:
        key = f"{ref.area}/{ref.path}"
        if len(key.encode()) + len(self._bucket.location.prefix.encode()) + 1 > KEY_BYTES:
            raise ref.missing(f"its key is longer than {KEY_BYTES} bytes")
        return key
