"""The object store when it refuses, is away, breaks off, or knows no conditional writes. All against a real one."""

from __future__ import annotations

import io
import threading
import time
from dataclasses import replace

import httpx
import pytest
from botocore.awsrequest import AWSResponse

from serve_app.errors import StoreError
from serve_app.store.files.bucket import Bucket
from serve_app.store.files.s3 import S3
from serve_app.store.files.store import FileRef
from tests.captive_portal import HTML, XHTML, CaptivePortal
from tests.seaweed import SECRET

REF = FileRef("output", "sub", "x.png")
CONTENT = bytes(range(256)) * 8192


def everything(store: S3) -> list:
    """Every way to ask a store, as calls without arguments."""
    return [
        lambda: store.stat(REF),
        lambda: store.open(REF),
        lambda: store.write(REF, b"x"),
        lambda: store.write(REF, b"x", replace=False),
        lambda: list(store.names("output")),
    ]


def test_keys_lie_under_the_prefix_by_area(bucket):
    S3(bucket).write(REF, b"x")
    listed = bucket.client.list_objects_v2(Bucket=bucket.location.bucket)["Contents"]
    assert [found["Key"] for found in listed] == ["site/a/output/sub/x.png"]


def test_a_file_has_the_content_type_of_its_name(bucket):
    S3(bucket).write(REF, b"x")
    key = {"Bucket": bucket.location.bucket, "Key": "site/a/output/sub/x.png"}
    assert bucket.client.head_object(**key)["ContentType"] == "image/png"


@pytest.mark.parametrize(
    ("variable", "value"), [("AWS_SECRET_ACCESS_KEY", "wrong-secret"), ("AWS_ACCESS_KEY_ID", "nobody")]
)
def test_wrong_credentials_are_named_as_the_reason_and_never_shown(bucket, bucket_of, monkeypatch, variable, value):
    S3(bucket).write(REF, b"x")
    monkeypatch.setenv(variable, value)
    store = S3(bucket_of(bucket.location.bucket))
    for ask in everything(store):
        with pytest.raises(StoreError, match="credentials are AWS_ACCESS_KEY_ID") as refused:
            ask()
        assert bucket.location.bucket in str(refused.value)
        assert SECRET not in str(refused.value)
        assert value not in str(refused.value)


def test_missing_credentials_are_named_as_the_reason(bucket, bucket_of, monkeypatch, tmp_path):
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "none"))
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "none"))
    with pytest.raises(StoreError, match=r"NoCredentialsError.*credentials are"):
        S3(bucket_of(bucket.location.bucket)).write(REF, b"x")


def test_a_bucket_that_is_not_there_is_named_as_the_reason(bucket_of):
    for ask in everything(S3(bucket_of("no-such-bucket"))):
        with pytest.raises(StoreError, match=r"NoSuchBucket.*bucket does not exist") as refused:
            ask()
        assert "s3://no-such-bucket/site/a at http" in str(refused.value)


def test_a_store_that_is_away_is_an_error_once_patience_ends(bucket_of):
    store = S3(bucket_of("bucket", endpoint="http://127.0.0.1:9", patience_s=0.0))
    for ask in everything(store):
        with pytest.raises(StoreError, match="EndpointConnectionError"):
            ask()


@pytest.mark.parametrize("page", [HTML, XHTML])
def test_a_page_of_html_in_the_stores_place_is_an_error_for_every_request(bucket_of, page):
    portal = CaptivePortal(page)
    store = S3(bucket_of("bucket", endpoint=portal.endpoint, patience_s=0.0))
    for ask in [*everything(store), lambda: store.delete(REF), lambda: store.write(REF, iter([b"x"]))]:
        # botocore itself takes some answers for a failure of the store's.
        with pytest.raises(StoreError, match=r"the answer is not S3's|500: Internal Server Error"):
            ask()
    portal.close()


def test_a_file_is_stored_only_once_the_answer_has_its_tag(bucket_of):
    portal = CaptivePortal(b"", "application/octet-stream")
    store = S3(bucket_of("bucket", endpoint=portal.endpoint, patience_s=0.0))
    with pytest.raises(StoreError, match="the answer is not S3's"):
        store.write(REF, b"xyz")
    portal.close()


def test_a_content_that_is_not_what_its_tag_says_is_an_error_at_its_end(bucket, monkeypatch):
    S3(bucket).write(REF, CONTENT)
    get = bucket.get

    def spoilt(key, span=None, etag=None):
        answer = get(key, span, etag)
        return {**answer, "Body": io.BytesIO(answer["Body"].read()[:-1] + b"?")}

    monkeypatch.setattr(bucket, "get", spoilt)
    with S3(bucket).open(REF) as file, pytest.raises(StoreError, match="not what its tag says"):
        file.read()


def test_a_store_killed_in_the_middle_of_writes_has_every_file_that_was_reported_stored(bucket, bucket_of, seaweed):
    store = S3(bucket_of(bucket.location.bucket, patience_s=60.0))
    contents = {FileRef("output", "", f"{n:03}.png"): bytes([n]) * 300_000 for n in range(40)}
    stored: list[FileRef] = []

    def write(part: int) -> None:
        for ref in list(contents)[part::4]:
            store.write(ref, contents[ref])
            stored.append(ref)

    threads = [threading.Thread(target=write, args=(part,)) for part in range(4)]
    for thread in threads:
        thread.start()
    while len(stored) < 5:
        time.sleep(0.001)
    seaweed.kill()
    before = len(stored)
    lost = FileRef("output", "lost", "x.png")
    with pytest.raises(StoreError, match=r"could not write 'output/lost/x\.png'"):
        S3(bucket_of(bucket.location.bucket, patience_s=0.0)).write(lost, CONTENT)
    seaweed.start()
    for thread in threads:
        thread.join()
    assert before < len(contents)
    assert set(stored) == set(contents)
    assert set(store.names("output")) == {ref.filename for ref in contents}
    assert list(store.names("output", "lost")) == []
    for ref, content in contents.items():
        with store.open(ref) as file:
            assert file.read() == content


class Breaking:
    """A body that breaks off once, in the middle of a read, as a lost connection does."""

    def __init__(self, body) -> None:
        self._body = body
        self._left = 100_000

    def read(self, amount: int) -> bytes:
        if self._left <= 0:
            return b""
        data = self._body.read(min(amount, self._left))
        self._left -= len(data)
        return data

    def close(self) -> None:
        self._body.close()


def breaking(bucket: Bucket, monkeypatch: pytest.MonkeyPatch, times: int) -> list[range | None]:
    """Let the first connections break off; return the spans that are asked for."""
    asked: list[range | None] = []
    get = bucket.get

    def broken(key, span=None, etag=None):
        answer = get(key, span, etag)
        asked.append(span)
        return {**answer, "Body": Breaking(answer["Body"])} if len(asked) <= times else answer

    monkeypatch.setattr(bucket, "get", broken)
    return asked


def test_a_read_that_breaks_off_goes_on_where_it_was(bucket, monkeypatch):
    S3(bucket).write(REF, CONTENT)
    asked = breaking(bucket, monkeypatch, times=2)
    with S3(bucket).open(REF) as file:
        assert file.read() == CONTENT
    assert asked == [None, range(100_000, len(CONTENT)), range(200_000, len(CONTENT))]


def test_a_read_never_goes_on_in_another_content(bucket, monkeypatch):
    store = S3(bucket)
    store.write(REF, CONTENT)
    breaking(bucket, monkeypatch, times=1)
    with store.open(REF) as file:
        assert file.read(50_000) == CONTENT[:50_000]
        store.write(REF, CONTENT[::-1])
        with pytest.raises(StoreError, match="another content took its place"):
            file.read()


def test_without_conditional_writes_the_name_is_checked_first(bucket):
    """The refusal is Swift's; everything else is the real store's answer."""
    refused = []

    def refuse(request, **_):
        if "If-None-Match" in request.headers:
            refused.append(request)
            body = b"<Error><Code>NotImplemented</Code><Message>not implemented</Message></Error>"
            raw = type("Raw", (), {"stream": lambda *_: iter([body])})()
            return AWSResponse(request.url, 501, {}, raw)
        return None

    bucket.client.meta.events.register("before-send.s3.PutObject", refuse)
    store = S3(bucket)
    store.write(REF, b"mine", replace=False)
    with pytest.raises(FileExistsError):
        store.write(REF, b"yours", replace=False)
    with store.open(REF) as file:
        assert file.read() == b"mine"
    assert len(refused) == 1


def linked(store: S3, content_type: str, disposition: str) -> str:
    link = store.link(REF, content_type, disposition)
    assert link is not None
    return link


def test_a_link_gives_the_file_under_the_headers_it_was_made_for_and_to_nobody_who_changes_it(bucket):
    store = S3(bucket, links_s=60)
    store.write(REF, CONTENT)
    link = linked(store, "image/webp", 'inline; filename="y.png"')
    whole = httpx.get(link)
    assert (whole.status_code, whole.content) == (200, CONTENT)
    assert whole.headers["content-type"] == "image/webp"
    assert whole.headers["content-disposition"] == 'inline; filename="y.png"'
    part = httpx.get(link, headers={"Range": "bytes=5-9"})
    assert (part.status_code, part.content) == (206, CONTENT[5:10])
    assert httpx.get(link.replace("x.png", "y.png")).status_code == 403
    assert SECRET not in link


def test_a_link_ends(bucket):
    store = S3(bucket, links_s=1)
    store.write(REF, b"x")
    link = linked(store, "image/png", "inline")
    deadline = time.monotonic() + 60
    while httpx.get(link).status_code != 403:
        assert time.monotonic() < deadline


def test_links_may_name_the_store_as_clients_reach_it(bucket):
    inside = replace(bucket.location, public_endpoint=bucket.location.endpoint, endpoint="http://store.internal:1")
    store = S3(Bucket(inside), links_s=60)
    S3(bucket).write(REF, b"x")
    assert httpx.get(linked(store, "image/png", "inline")).content == b"x"


def test_a_store_that_gives_out_no_links_gives_none(bucket):
    assert S3(bucket).link(REF, "image/png", "inline") is None


def test_listing_goes_on_beyond_a_thousand_names(bucket):
    store = S3(bucket)
    threads = [
        threading.Thread(target=lambda part=part: [store.write(FileRef("temp", "many", f"{n}"), b"") for n in part])
        for part in (range(510), range(510, 1020))
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert set(store.names("temp", "many")) == {str(n) for n in range(1020)}
