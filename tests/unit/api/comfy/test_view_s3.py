"""GET /view where the files are in an object store: streamed through the server, or fetched by a link."""

from __future__ import annotations

from collections.abc import AsyncIterator

import httpx
import pytest

from serve_app.api.app import create_app
from serve_app.service.service import Service
from serve_app.store.files.s3 import S3
from serve_app.store.files.store import FileRef
from tests.unit.api.scripted_replica import Reached
from tests.usual_limits import LIMITS

BYTES = bytes(range(256)) * 4000
VIEW = "/view?filename=ü.png&subfolder=sub"


async def reached(scheduler: Reached, store: S3) -> AsyncIterator[httpx.AsyncClient]:
    service = Service(scheduler.client, store, lambda folder: [], LIMITS)
    transport = httpx.ASGITransport(app=create_app(service))
    async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
        yield client


@pytest.fixture
def written(bucket):
    S3(bucket).write(FileRef("output", "sub", "ü.png"), BYTES)
    return bucket


@pytest.fixture
async def client(scheduler, written):
    async for client in reached(scheduler, S3(written)):
        yield client


@pytest.fixture
async def linking(scheduler, written):
    async for client in reached(scheduler, S3(written, links_s=60)):
        yield client


async def test_a_file_is_streamed_whole_and_in_ranges(client):
    whole = await client.get(VIEW)
    assert (whole.status_code, whole.content) == (200, BYTES)
    assert whole.headers["content-type"] == "image/png"
    part = await client.get(VIEW, headers={"Range": "bytes=300000-600000", "If-Range": whole.headers["etag"]})
    assert (part.status_code, part.content) == (206, BYTES[300_000:600_001])
    assert part.headers["content-range"] == f"bytes 300000-600000/{len(BYTES)}"
    assert (await client.get(VIEW, headers={"Range": f"bytes={len(BYTES)}-"})).status_code == 416


async def test_a_copy_that_is_current_is_not_sent_again_by_server_or_store(client, linking):
    head = await client.head(VIEW)
    assert (head.status_code, head.headers["content-length"]) == (200, str(len(BYTES)))
    for answers in (client, linking):
        response = await answers.get(VIEW, headers={"If-None-Match": head.headers["etag"]})
        assert (response.status_code, response.content) == (304, b"")


async def test_an_absent_file_is_404_with_and_without_links(client, linking):
    for answers in (client, linking):
        assert (await answers.get("/view?filename=none.png")).status_code == 404


async def test_a_link_leads_to_the_same_bytes_type_and_tag(client, linking):
    response = await linking.get(VIEW)
    assert (response.status_code, response.content) == (307, b"")
    assert response.headers["cache-control"] == "no-store"
    through = (await client.get(VIEW)).headers
    linked = httpx.get(response.headers["location"], headers={"Range": "bytes=10-19"})
    assert (linked.status_code, linked.content) == (206, BYTES[10:20])
    for header in ("content-type", "content-disposition", "etag"):
        assert linked.headers[header] == through[header]
    assert (await linking.head(VIEW)).status_code == 200


async def test_a_store_that_refuses_is_503_with_the_reason(scheduler, bucket_of):
    async for client in reached(scheduler, S3(bucket_of("no-such-bucket"))):
        response = await client.get(VIEW)
        assert (response.status_code, response.headers["retry-after"]) == (503, "5")
        assert "NoSuchBucket" in response.json()["detail"]
