"""A client of one bucket of an S3-compatible store, under one prefix, for clients' files and model files.

Keys here are without the prefix. An absent key is FileNotFoundError, a taken one FileExistsError; every other failure
is StoreError: at once for a refusal, after the location's `patience_s` if the store is unavailable or busy. Credentials
come from the environment, a shared file or a role, as boto3 finds them. Source: Amazon S3 API Reference; conditional
writes: "How to prevent object overwrites with conditional writes".
"""

from __future__ import annotations

import base64
import contextlib
import hashlib
import mimetypes
import random
import re
import time
import uuid
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from typing import Any, TypeVar

import boto3
from botocore.config import Config
from botocore.exceptions import BotoCoreError, ClientError, ConnectionError, HTTPClientError
from botocore.parsers import ResponseParserError

from serve_app.errors import StoreError, StoreRefusedError
from serve_app.store.files.location import Location
from serve_app.store.files.store import FileStat

T = TypeVar("T")

CONNECTIONS = 32
"""Connections a process keeps open to one store."""

PART_BYTES = 64 * 1024 * 1024
"""The part size of uploads of unknown length; S3 takes 10,000 parts of at least 5 MiB."""

FIRST_PAUSE_S, LONGEST_PAUSE_S = 0.1, 5.0
"""The first and the longest delay before a retry."""
_ACCESS = frozenset({"AccessDenied", "403", "InvalidAccessKeyId", "SignatureDoesNotMatch", "NoCredentialsError"})
_ABSENT = frozenset({"404", "NoSuchKey", "NotFound"})
_UNKNOWN = frozenset({"501", "NotImplemented"})
_TAKEN = frozenset({"412", "PreconditionFailed", "ConditionalRequestConflict"})
_MD5 = re.compile(r"[0-9a-f]{32}")
_PAGE = "text/html"


class ForeignAnswerError(BotoCoreError):  # type: ignore[misc]
    """Another server answered with 200, such as a captive portal or a proxy's login page."""

    fmt = "the answer is not S3's: {reason}; a proxy or a login page answers in its place"


class Bucket:
    """A client of one bucket; any number of threads may use it."""

    def __init__(self, location: Location) -> None:
        self.location = location
        self._prefix = location.prefix.strip("/") + "/" if location.prefix.strip("/") else ""
        self.client = _client(location, location.endpoint)
        public = location.public_endpoint
        self._signing = self.client if public is None else _client(location, public)
        self._conditional = True
        self._tags_are_md5 = True
        """Whether tags of contents uploaded in one request are their MD5, as far as is known."""

    def check(self, *, writes: bool) -> None:
        """Check that the bucket is there and may be listed, and if `writes` that keys may be written and deleted.

        Errors: StoreRefusedError if not, StoreError if the store does not answer.
        """
        next(self.list(""), None)
        if writes:
            key = f".check-{uuid.uuid4().hex}"
            self.put(key, b"", "text/plain")
            self.delete(key)

    def stat(self, key: str) -> FileStat:
        """Return a key's size, time and tag. Errors: FileNotFoundError, StoreError."""
        try:
            return self._ask("look at", key, lambda: _stat(_no_page(self.client.head_object(**self._at(key)), key)))
        except FileNotFoundError:
            # An answer without a body does not say whether it is the key or the bucket that is absent.
            asked = {"Bucket": self.location.bucket, "Prefix": self._prefix + key, "MaxKeys": 1}
            self._ask("look at", key, lambda: _listed(self.client.list_objects_v2(**asked)))
            raise

    def get(self, key: str, span: range | None = None, etag: str | None = None) -> dict[str, Any]:
        """Return the answer to GET, its `Body` to be read and closed. etag: only while the content is this one.

        Errors: FileNotFoundError, FileExistsError for another content than etag's, StoreError.
        """
        asked = self._at(key) | ({} if span is None else {"Range": f"bytes={span.start}-{span.stop - 1}"})
        if etag is not None:
            asked["IfMatch"] = f'"{etag}"'
        return self._ask("read", key, lambda: _has(self.client.get_object(**asked), "ETag", "LastModified"))

    def is_md5(self, answer: dict[str, Any]) -> bool:
        """Whether the tag of the content that an answer is about is its MD5."""
        encrypted = "SSECustomerAlgorithm" in answer or "kms" in answer.get("ServerSideEncryption", "")
        return self._tags_are_md5 and not encrypted and _MD5.fullmatch(tag(answer)) is not None

    def put(self, key: str, data: bytes, content_type: str, *, replace: bool = True) -> None:
        """Store a content atomically; it is durable on return.

        Without `replace`, a conditional write checks that the name is new; with a store that lacks those, a check
        before, which a concurrent write can pass. Errors: FileExistsError, StoreError.
        """
        md5 = hashlib.md5(data, usedforsecurity=False)
        said = base64.b64encode(md5.digest()).decode()
        asked = {**self._at(key), "Body": data, "ContentType": content_type, "ContentMD5": said}
        tries = 0

        def put_once() -> None:
            nonlocal tries
            tries += 1
            if not replace and not self._conditional and self._there(key):
                raise FileExistsError(key)
            unless_there = {"IfNoneMatch": "*"} if not replace and self._conditional else {}
            self._check_stored(key, self.client.put_object(**asked, **unless_there), md5.hexdigest(), len(data))

        try:
            self._ask("write", key, put_once)
        except FileExistsError:
            # An earlier try may have succeeded and only its answer have been lost.
            if tries == 1 or self._read(key) != data:
                raise
        except StoreError as error:
            if replace or not self._conditional or _code(error.__cause__) not in _UNKNOWN:
                raise
            self._conditional = False
            self.put(key, data, content_type, replace=False)

    def _check_stored(self, key: str, answer: dict[str, Any], md5: str, size: int) -> None:
        """Check that an answer to a write is of a store that has the content. Errors: ForeignAnswerError, boto3's."""
        if (stored := tag(_has(_no_page(answer, key), "ETag"))) == md5:
            return
        # The tag of a content that is encrypted, or in parts, is none that could be worked out here.
        found = _stat(_no_page(self.client.head_object(**self._at(key)), key))
        if (found.etag, found.size) != (stored, size):
            raise ForeignAnswerError(reason=f"{size} bytes were written, and {found.size} are there")
        if self.is_md5(answer):
            self._tags_are_md5 = False

    def put_parts(
        self, key: str, data: Iterable[bytes | memoryview], content_type: str, *, replace: bool = True
    ) -> None:
        """Store a content of unknown length atomically; as `put`. Parts of an unfinished upload are deleted. Errors: as
        `put`.
        """
        at = self._at(key)
        create = partial(self.client.create_multipart_upload, **at, ContentType=content_type)
        begun = self._ask("write", key, lambda: _has(create(), "UploadId"))
        upload = {**at, "UploadId": begun["UploadId"]}
        try:
            parts, size = [], 0
            for number, part in enumerate(_parts(data), 1):
                said = base64.b64encode(hashlib.md5(part, usedforsecurity=False).digest()).decode()
                sent = {**upload, "PartNumber": number, "Body": part, "ContentMD5": said}
                answer = self._ask("write", key, partial(self._upload_part, **sent))
                parts.append({"PartNumber": number, "ETag": answer["ETag"]})
                size += len(part)
            self._complete(key, {**upload, "MultipartUpload": {"Parts": parts}}, size, replace=replace)
        except BaseException:
            with contextlib.suppress(Exception):
                self.client.abort_multipart_upload(**upload)
            raise

    def _upload_part(self, **sent: Any) -> dict[str, Any]:
        return _has(self.client.upload_part(**sent), "ETag")

    def _complete(self, key: str, asked: dict[str, Any], size: int, *, replace: bool) -> None:
        def complete() -> None:
            if not replace and not self._conditional and self._there(key):
                raise FileExistsError(key)
            unless_there = {"IfNoneMatch": "*"} if not replace and self._conditional else {}
            answer = self.client.complete_multipart_upload(**asked, **unless_there)
            self._check_stored(key, answer, "", size)

        try:
            self._ask("write", key, complete)
        except StoreError as error:
            if replace or not self._conditional or _code(error.__cause__) not in _UNKNOWN:
                raise
            self._conditional = False
            self._complete(key, asked, size, replace=False)

    def list(self, start: str, *, deep: bool = False) -> Iterator[tuple[str, FileStat]]:
        """Yield (rest of the key, its stat) for every key with a prefix. deep: also where the rest has "/".

        Errors: StoreError.
        """
        asked = {"Bucket": self.location.bucket, "Prefix": self._prefix + start, **({} if deep else {"Delimiter": "/"})}
        while True:
            page = self._ask("list", start, lambda: _listed(self.client.list_objects_v2(**asked)))
            for found in page.get("Contents", ()):
                yield found["Key"].removeprefix(asked["Prefix"]), _stat(found)
            if not page.get("IsTruncated"):
                return
            asked["ContinuationToken"] = page["NextContinuationToken"]

    def delete(self, key: str) -> None:
        """Remove a key; an absent one is no error. Errors: StoreError."""
        with contextlib.suppress(FileNotFoundError):
            self._ask("delete", key, lambda: self.client.delete_object(**self._at(key)))

    def link(self, key: str, seconds: int, **answer: str) -> str:
        """Return a presigned URL to read the key. answer: parameters of GetObject that set the answer's headers. Makes
        no request. Errors: StoreError.
        """
        asked = {**self._at(key), **answer}
        sign = self._signing.generate_presigned_url
        return str(self._ask("sign a link to", key, lambda: sign("get_object", Params=asked, ExpiresIn=seconds)))

    def _read(self, key: str) -> bytes:
        body = self.get(key)["Body"]
        try:
            return bytes(body.read())
        finally:
            body.close()

    def _there(self, key: str) -> bool:
        try:
            self.client.head_object(**self._at(key))
            return True
        except ClientError as error:
            if _code(error) in _ABSENT:
                return False
            raise

    def _at(self, key: str) -> dict[str, str]:
        return {"Bucket": self.location.bucket, "Key": self._prefix + key}

    def _ask(self, what: str, key: str, ask: Callable[[], T]) -> T:
        """Make a request, with retries for `patience_s`, and turn boto3's errors into this module's."""
        deadline = time.monotonic() + self.location.patience_s
        pause_s = FIRST_PAUSE_S
        while True:
            try:
                return _no_page(_asked(ask), key)
            except (ClientError, BotoCoreError) as error:
                code = _code(error)
                if code in _ABSENT:
                    raise FileNotFoundError(key) from error
                if code in _TAKEN:
                    raise FileExistsError(key) from error
                if not _may_pass(error):
                    raise self.error(what, key, code, _words(error), StoreRefusedError) from error
                if time.monotonic() + pause_s > deadline:
                    raise self.error(what, key, code, _words(error)) from error
            # At random, so that many who were refused together do not come back together.
            time.sleep(pause_s * random.uniform(0.5, 1.0))
            pause_s = min(LONGEST_PAUSE_S, 2 * pause_s)

    def error(self, what: str, key: str, code: str, words: str, kind: type[StoreError] = StoreError) -> StoreError:
        """Return the error of a failed action."""
        hint = ""
        if code in _ACCESS:
            hint = "; credentials are AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY of the environment, or a role"
        reason = f"{code}: {words}" if words else code
        return kind(f"could not {what} {key[:300]!r} in {self.location}: {reason}{hint}", retry_after_s=5)


def _asked(ask: Callable[[], T]) -> T:
    try:
        return ask()
    except ResponseParserError as error:
        raise ForeignAnswerError(reason="it is no XML") from error


def _no_page(answer: T, key: str) -> T:
    """Return an answer unless it is an HTML page for a file that is none. Errors: ForeignAnswerError."""
    if isinstance(answer, dict) and mimetypes.guess_type(key)[0] != _PAGE:
        headers = answer.get("ResponseMetadata", {}).get("HTTPHeaders", {})
        if headers.get("content-type", "").startswith(_PAGE):
            raise ForeignAnswerError(reason="it is a page of HTML")
    return answer


def _has(answer: dict[str, Any], *needed: str) -> dict[str, Any]:
    """Return an answer that has the fields that S3's always have. Errors: ForeignAnswerError."""
    if lacking := [name for name in needed if name not in answer]:
        raise ForeignAnswerError(reason=f"it has no {lacking[0]}")
    return answer


def _listed(answer: dict[str, Any]) -> dict[str, Any]:
    return _has(answer, "IsTruncated")


def _parts(data: Iterable[bytes | memoryview]) -> Iterator[bytes]:
    """Yield a content in parts of PART_BYTES, the last smaller."""
    part = bytearray()
    for piece in data:
        left = memoryview(piece).cast("B")
        while len(left):
            taken = PART_BYTES - len(part)
            part += left[:taken]
            left = left[taken:]
            if len(part) == PART_BYTES:
                yield bytes(part)
                part.clear()
    if part:
        yield bytes(part)


def _client(location: Location, endpoint: str | None) -> Any:
    config = Config(
        signature_version="s3v4",
        s3={"addressing_style": "path" if location.path_style else "virtual"},
        retries={"total_max_attempts": 1},
        connect_timeout=min(5.0, location.timeout_s),
        read_timeout=location.timeout_s,
        max_pool_connections=CONNECTIONS,
        # Checksums in trailers, boto3's default, are refused by many stores that are not Amazon's.
        request_checksum_calculation="when_required",
        response_checksum_validation="when_required",
    )
    # A session of its own: the default one may not be made use of by several threads at once.
    session = boto3.session.Session(region_name=location.region)
    region = session.region_name or "us-east-1"
    return session.client("s3", endpoint_url=endpoint, region_name=region, config=config)


def _stat(answer: dict[str, Any]) -> FileStat:
    """Return a key's size, time and tag from HEAD, GET or a listing. Errors: ForeignAnswerError."""
    _has(answer, "LastModified", "ETag")
    size = answer["ContentLength"] if "ContentLength" in answer else answer["Size"]
    return FileStat(int(size), answer["LastModified"].timestamp(), tag(answer))


def tag(answer: dict[str, Any]) -> str:
    """Return the tag of the content that an answer is about."""
    return str(answer["ETag"]).removeprefix("W/").strip('"')


def _code(error: BaseException | None) -> str:
    if isinstance(error, ClientError):
        return str(error.response.get("Error", {}).get("Code", "unknown"))
    return type(error).__name__


def _words(error: ClientError | BotoCoreError) -> str:
    return str(error.response.get("Error", {}).get("Message", "")) if isinstance(error, ClientError) else str(error)


def _may_pass(error: ClientError | BotoCoreError) -> bool:
    """Whether a retry may help: no answer, a broken connection, or a server that is busy."""
    if isinstance(error, ClientError):
        status = error.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0)
        return (status >= 500 and _code(error) not in _UNKNOWN) or status in (408, 429)
    return isinstance(error, HTTPClientError | ConnectionError | ForeignAnswerError)
