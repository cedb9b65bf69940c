"""A bucket's object as a readable file: one request for each sequentially read range."""

from __future__ import annotations

import hashlib
import io
import time
from typing import Any

from botocore.exceptions import BotoCoreError

from serve_app.store.files.bucket import FIRST_PAUSE_S, LONGEST_PAUSE_S, Bucket, tag

READS = 6
"""The tries of one range when connections break."""


class ObjectFile(io.RawIOBase):
    """A key as a file. A broken connection is resumed at its position while the content is the same."""

    def __init__(self, bucket: Bucket, key: str, span: range | None) -> None:
        super().__init__()
        self._bucket, self._key = bucket, key
        self._at = 0 if span is None else span.start
        self._answer: dict[str, Any] | None = None
        self._read: Any = None
        """The MD5 of the bytes read, as long as they are read in order and the tag is an MD5."""
        if span is not None and not span:
            found = bucket.stat(key)
            self._size, self.etag = found.size, found.etag
            return
        self._answer = bucket.get(key, span)
        self.etag = tag(self._answer)
        _, _, whole = self._answer.get("ContentRange", "").rpartition("/")
        self._size = int(whole) if whole.isdigit() else int(self._answer["ContentLength"])
        if span is None and bucket.is_md5(self._answer):
            self._read = hashlib.md5(usedforsecurity=False)

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._at

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        at = offset + {io.SEEK_SET: 0, io.SEEK_CUR: self._at, io.SEEK_END: self._size}[whence]
        if at < 0:
            raise ValueError(f"position {at} lies before the file")
        if at != self._at:
            self._read = None
            self._let_go()
            self._at = at
        return at

    def readinto(self, buffer: Any) -> int:
        if self._at >= self._size or not len(buffer):
            return 0
        reason = "it ended early"
        for attempt in range(READS):
            try:
                data = self._body().read(len(buffer))
            except BotoCoreError as error:
                data, reason = b"", str(error)
            if data:
                buffer[: len(data)] = data
                self._at += len(data)
                self._check(data)
                return len(data)
            # Empty while bytes are left: the requested range is read, or the connection has broken.
            self._let_go()
            if attempt:
                time.sleep(min(LONGEST_PAUSE_S, FIRST_PAUSE_S * 2**attempt))
        raise self._bucket.error("read", self._key, f"byte {self._at} of {self._size}", reason)

    def _check(self, data: bytes) -> None:
        """Check at the end that the bytes read match the tag. Errors: StoreError."""
        if self._read is None:
            return
        self._read.update(data)
        if self._at == self._size and self._read.hexdigest() != self.etag:
            raise self._bucket.error("read", self._key, "Damaged", "what arrived is not what its tag says")

    def close(self) -> None:
        self._let_go()
        super().close()

    def _body(self) -> Any:
        if self._answer is None:
            try:
                self._answer = self._bucket.get(self._key, range(self._at, self._size), self.etag)
            except (FileExistsError, FileNotFoundError) as error:
                raise self._bucket.error("read on", self._key, "Changed", "another content took its place") from error
        return self._answer["Body"]

    def _let_go(self) -> None:
        if self._answer is not None:
            self._answer["Body"].close()
            self._answer = None
