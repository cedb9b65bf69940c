"""`GET /view` and the documents over a real server: what a browser and a download manager ask for."""

from __future__ import annotations

import socket

import httpx
import pytest

from tests.cluster.server import Server

BYTES = bytes(range(256)) * 5000


@pytest.fixture(scope="module")
def image(server: Server) -> dict[str, str]:
    """A stored file of 1.28 MB, more than one chunk, as /view's query names it."""
    folder = server.root / "output" / "a folder"
    folder.mkdir(exist_ok=True)
    (folder / "ä image.png").write_bytes(BYTES)
    return {"filename": "ä image.png", "subfolder": "a folder", "type": "output"}


def test_a_file_arrives_whole(server: Server, image):
    response = server.http.get("/view", params=image)
    assert (response.status_code, response.headers["content-type"]) == (200, "image/png")
    assert response.content == BYTES


@pytest.mark.parametrize(("asked", "first", "last"), [("0-99", 0, 99), ("1000000-", 1_000_000, 1_279_999)])
def test_a_range_arrives_alone(server: Server, image, asked, first, last):
    response = server.http.get("/view", params=image, headers={"Range": f"bytes={asked}"})
    assert response.status_code == 206
    assert response.headers["content-range"] == f"bytes {first}-{last}/{len(BYTES)}"
    assert response.content == BYTES[first : last + 1]


def test_a_current_copy_is_not_sent_again(server: Server, image):
    first = server.http.get("/view", params=image)
    again = server.http.get("/view", params=image, headers={"If-None-Match": first.headers["etag"]})
    assert (again.status_code, again.content) == (304, b"")


@pytest.mark.parametrize(
    "query",
    [
        "filename=../up.log",
        "filename=..%2Fup.log",
        "filename=..%2Fmodels%2Fcheckpoints%2Fsd15.safetensors",
        "filename=up.log&subfolder=..",
        "filename=up.log&subfolder=a%20folder/../..",
        "filename=%2Fetc%2Fpasswd",
        "filename=..%5Cup.log",
        "filename=none%00.png",
        "filename=sd15.safetensors&type=models",
        "filename=none.png",
        "",
    ],
)
def test_nothing_outside_the_three_directories_is_served(server: Server, query):
    response = server.http.get(f"/view?{query}")
    assert response.status_code == 404
    assert response.json()["status_code"] == 404


@pytest.mark.parametrize(
    "path", ["/../up.log", "/view/../../up.log", "//etc/passwd", "/view?filename=%ZZ", "/%2e%2e/up.log"]
)
def test_a_raw_path_that_clients_would_tidy_is_404_as_well(server: Server, path):
    with socket.create_connection(("127.0.0.1", server.port)) as connection:
        connection.sendall(f"GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n".encode())
        answer = connection.makefile("rb").read()
    assert answer.startswith(b"HTTP/1.1 404")


def test_the_document_describes_the_five_routes_and_this_address(server: Server):
    document = server.get("/openapi.json")
    assert {"/prompt", "/queue", "/history/{prompt_id}", "/view", "/system_stats"} <= document["paths"].keys()
    addresses = {str(httpx.URL(server.url).join(entry["url"])).rstrip("/") for entry in document["servers"]}
    assert addresses == {server.url}


def test_the_docs_page_and_all_it_loads_come_from_this_server(server: Server):
    page = server.http.get("/docs")
    assert page.headers["content-type"].startswith("text/html")
    loaded = [part.split('"')[0] for key in ('src="', 'href="') for part in page.text.split(key)[1:]]
    assert loaded
    for address in loaded:
        response = server.http.get(httpx.URL(server.url).join(address))
        assert response.status_code == 200, address
        assert response.url.port == server.port
