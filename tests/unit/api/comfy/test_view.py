from __future__ import annotations

import os
from email.utils import formatdate
from pathlib import Path

import pytest

from serve_app.api.files import stored_file
from serve_app.store.files.store import FileRef
from serve_app.store.files.volume import Volume

BYTES = bytes(range(256)) * 4
CHANGED_S = 1_700_000_000


@pytest.fixture(autouse=True)
def image(volume: Volume, tmp_path: Path) -> str:
    """A kilobyte that is called an image, last changed at CHANGED_S."""
    volume.write(FileRef("output", "", "a.png"), BYTES)
    os.utime(tmp_path / "output" / "a.png", (CHANGED_S, CHANGED_S))
    return "/view?filename=a.png"


async def test_an_image_is_sent_whole_with_its_validators(client, image):
    response = await client.get(image)
    assert (response.status_code, response.content) == (200, BYTES)
    headers = response.headers
    assert headers["content-type"] == "image/png"
    assert headers["content-length"] == "1024"
    assert headers["last-modified"] == formatdate(CHANGED_S, usegmt=True)
    assert headers["etag"].startswith('"')
    assert headers["accept-ranges"] == "bytes"
    assert headers["x-content-type-options"] == "nosniff"
    assert headers["content-disposition"] == "inline; filename*=UTF-8''a.png"


async def test_a_file_longer_than_a_chunk_arrives_whole(client, volume, monkeypatch):
    monkeypatch.setattr(stored_file, "CHUNK_BYTES", 100)
    assert (await client.get("/view?filename=a.png")).content == BYTES


@pytest.mark.parametrize(
    ("name", "content_type"),
    [("b.jpg", "image/jpeg"), ("b.JPEG", "image/jpeg"), ("b.webp", "image/webp"), ("b.gif", "image/gif")],
)
async def test_the_four_image_types_are_served_under_their_own(client, volume, name, content_type):
    volume.write(FileRef("output", "", name), b"x")
    response = await client.get("/view", params={"filename": name})
    assert (response.status_code, response.headers["content-type"]) == (200, content_type)


@pytest.mark.parametrize("name", ["b.latent", "b.html", "b.svg", "b.png.txt", "png"])
async def test_a_file_of_any_other_type_is_as_absent_as_a_missing_one(client, volume, name):
    volume.write(FileRef("output", "", name), b"x")
    response = await client.get("/view", params={"filename": name})
    assert response.status_code == 404
    assert response.json()["status_code"] == 404


async def test_type_and_subfolder_choose_the_directory(client, volume):
    volume.write(FileRef("temp", "sub/deep", "ü ä.png"), b"temp")
    volume.write(FileRef("input", "", "a.png"), b"input")
    found = await client.get("/view", params={"filename": "ü ä.png", "subfolder": "sub/deep", "type": "temp"})
    assert found.content == b"temp"
    assert found.headers["content-disposition"] == "inline; filename*=UTF-8''%C3%BC%20%C3%A4.png"
    assert (await client.get("/view?filename=a.png&type=input")).content == b"input"


@pytest.mark.parametrize("annotated", ["a.png [input]", "a.png[input]"])
async def test_an_annotated_name_overrules_the_type(client, volume, annotated):
    volume.write(FileRef("input", "", "a.png"), b"input")
    response = await client.get("/view", params={"filename": annotated, "type": "output"})
    assert response.content == b"input"


@pytest.mark.parametrize(
    "query",
    [
        {},
        {"filename": ""},
        {"filename": "none.png"},
        {"filename": " [output]"},
        {"filename": "a.png", "type": "models"},
        {"filename": "a.png", "type": ""},
        {"filename": "a.png", "subfolder": "none"},
        {"filename": "secret.png", "subfolder": ".."},
        {"filename": "../secret.png"},
        {"filename": "..\\secret.png"},
        {"filename": "a.png", "subfolder": "a.png"},
        {"filename": "a\0.png"},
        {"filename": "a.png", "subfolder": "\0"},
        {"filename": "x" * 5000 + ".png"},
        {"filename": "a.png", "subfolder": "x/" * 5000},
        {"filename": "link.png"},
        {"filename": "folder.png"},
    ],
)
async def test_what_is_not_in_the_directory_is_404(client, tmp_path, query):
    (tmp_path / "secret.png").write_bytes(b"secret")
    (tmp_path / "output" / "link.png").symlink_to(tmp_path / "secret.png")
    (tmp_path / "output" / "folder.png").mkdir()
    response = await client.get("/view", params=query)
    assert response.status_code == 404
    assert response.json().keys() == {"error", "detail", "status_code"}
    assert str(tmp_path) not in response.text


async def test_an_absolute_name_is_404(client, tmp_path):
    (tmp_path / "secret.png").write_bytes(b"secret")
    assert (await client.get("/view", params={"filename": str(tmp_path / "secret.png")})).status_code == 404
    query = {"filename": "secret.png", "subfolder": str(tmp_path)}
    assert (await client.get("/view", params=query)).status_code == 404


@pytest.mark.parametrize(
    ("asked", "first", "last"),
    [
        ("bytes=0-0", 0, 0),
        ("bytes=100-199", 100, 199),
        ("bytes=1000-", 1000, 1023),
        ("bytes=1000-99999", 1000, 1023),
        ("bytes=-24", 1000, 1023),
        ("bytes=-99999", 0, 1023),
        ("Bytes=0-1", 0, 1),
    ],
)
async def test_a_range_is_sent_alone_and_says_where_it_lies(client, image, asked, first, last):
    response = await client.get(image, headers={"Range": asked})
    assert response.status_code == 206
    assert response.content == BYTES[first : last + 1]
    assert response.headers["content-range"] == f"bytes {first}-{last}/1024"
    assert response.headers["content-length"] == str(last - first + 1)


@pytest.mark.parametrize("asked", ["bytes=1024-", "bytes=5000-6000", "bytes=-0"])
async def test_a_range_outside_the_file_is_416_and_names_the_size(client, image, asked):
    response = await client.get(image, headers={"Range": asked})
    assert (response.status_code, response.headers["content-range"]) == (416, "bytes */1024")
    assert response.json()["status_code"] == 416


@pytest.mark.parametrize("asked", ["bytes=9-3", "bytes=-", "bytes=a-b", "lines=0-3", "bytes=0-1,5-6", "bytes=²-3", ""])
async def test_a_malformed_foreign_or_multiple_range_is_ignored(client, image, asked):
    response = await client.get(image, headers={b"Range": asked.encode()})
    assert (response.status_code, response.content) == (200, BYTES)


async def test_any_range_of_an_empty_file_is_416(client, volume):
    volume.write(FileRef("output", "", "empty.png"), b"")
    assert (await client.get("/view?filename=empty.png")).content == b""
    response = await client.get("/view?filename=empty.png", headers={"Range": "bytes=0-"})
    assert (response.status_code, response.headers["content-range"]) == (416, "bytes */0")


async def test_a_range_holds_only_for_the_content_that_if_range_names(client, image):
    known = (await client.get(image)).headers
    for current in (known["etag"], known["last-modified"]):
        response = await client.get(image, headers={"Range": "bytes=0-9", "If-Range": current})
        assert response.status_code == 206
    others = ['"another"', f"W/{known['etag']}", formatdate(CHANGED_S - 1, usegmt=True), "yesterday"]
    for other in others:
        response = await client.get(image, headers={"Range": "bytes=0-9", "If-Range": other})
        assert (response.status_code, response.content) == (200, BYTES)


async def test_a_copy_that_is_current_is_not_sent_again(client, image):
    etag = (await client.get(image)).headers["etag"]
    for tags in (etag, f"W/{etag}", f'"other", {etag}', "*"):
        response = await client.get(image, headers={"If-None-Match": tags})
        assert (response.status_code, response.content) == (304, b"")
        assert response.headers["etag"] == etag
        assert "content-type" not in response.headers
    for date in (formatdate(CHANGED_S, usegmt=True), formatdate(CHANGED_S + 9, usegmt=True)):
        assert (await client.get(image, headers={"If-Modified-Since": date})).status_code == 304


async def test_a_copy_that_is_outdated_is_sent_again(client, image):
    for headers in (
        {"If-None-Match": '"other"'},
        {"If-Modified-Since": formatdate(CHANGED_S - 1, usegmt=True)},
        {"If-Modified-Since": "yesterday"},
        # The tag decides where both are sent.
        {"If-None-Match": '"other"', "If-Modified-Since": formatdate(CHANGED_S, usegmt=True)},
    ):
        assert (await client.get(image, headers=headers)).status_code == 200


async def test_the_condition_is_evaluated_before_the_range(client, image):
    etag = (await client.get(image)).headers["etag"]
    response = await client.get(image, headers={"If-None-Match": etag, "Range": "bytes=0-9"})
    assert response.status_code == 304


async def test_a_replaced_file_has_another_tag(client, volume, image):
    before = (await client.get(image)).headers["etag"]
    volume.write(FileRef("output", "", "a.png"), BYTES[::-1])
    assert (await client.get(image)).headers["etag"] != before


async def test_head_has_the_headers_of_get_and_no_ranges(client, image):
    get = await client.get(image)
    head = await client.head(image, headers={"Range": "bytes=0-9"})
    assert (head.status_code, head.content) == (200, b"")
    assert head.headers.pop("x-request-id") != get.headers.pop("x-request-id")
    assert {**head.headers} == {**get.headers}
