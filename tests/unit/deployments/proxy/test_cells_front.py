"""The front of several cells sends a tenant to its cell by host name or by key, and its map can change meanwhile."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import httpx
import pytest

from serve_app.deployments.proxy.haproxy import find
from serve_app.store.tenants.api_keys import minted
from tests.cells_front import CellsFront
from tests.cluster.server import free_port, wait_for

pytestmark = pytest.mark.skipif(find() is None, reason="no HAProxy on this machine")


@contextlib.contextmanager
def cell(name: str) -> Iterator[str]:
    """A server that answers with its name; its address."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.send_header("content-length", str(len(name)))
            self.end_headers()
            self.wfile.write(name.encode())

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", port := free_port()), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"127.0.0.1:{port}"
    server.shutdown()
    server.server_close()


def test_a_tenant_is_sent_to_its_cell_by_host_name_or_key_and_to_another_once_it_has_moved(tmp_path: Path) -> None:
    key, text = minted("studio", "", ("read",), None)
    routes = {"studio.example": "north", key.key_id: "north", "other.example": "south"}
    with cell("north") as north, cell("south") as south, contextlib.ExitStack() as undo:
        front = CellsFront(tmp_path, {"north": north, "south": south}, routes)
        undo.callback(front.close)
        http = undo.enter_context(httpx.Client(base_url=front.url))

        def ask(host: str = "", path: str = "/", **headers: str) -> httpx.Response:
            return http.get(path, headers={"host": host or "any.example", **headers})

        ways = [
            ("studio.example", "/", {}),
            ("Studio.example:443", "/", {}),
            ("", "/", {"authorization": f"Bearer {text}"}),
            ("", "/", {"x-api-key": text}),
            ("", f"/?token={text}", {}),
        ]

        def heard() -> list[str]:
            with contextlib.suppress(httpx.ConnectError):
                return [ask(host, path, **headers).text for host, path, headers in ways]
            return []

        wait_for(lambda: heard() == ["north"] * len(ways), "the first cell", 20.0)
        assert ask("other.example").text == "south"
        assert ask("nobody.example").status_code == 401
        assert "no cell" in ask("nobody.example").json()["detail"]
        for name in ("studio.example", key.key_id):
            front.route(name, "moving")
        for host, path, headers in ways:
            answer = ask(host, path, **headers)
            assert (answer.status_code, answer.headers["retry-after"]) == (503, "2")
            assert "being moved" in answer.json()["detail"]
        for name in ("studio.example", key.key_id):
            front.route(name, "south")
        assert heard() == ["south"] * len(ways)
