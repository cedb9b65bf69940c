"""HAProxy itself over ingress replicas that are threads here: what clients see of them, and while there is none."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import json
import os
import socket
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx
import psutil
import pytest
from starlette.types import Receive, Scope, Send
from websockets.exceptions import InvalidStatus
from websockets.sync.client import connect

from serve_app.deployments.proxy import haproxy
from serve_app.deployments.proxy.haproxy import HAProxy, socket_path
from serve_app.deployments.proxy.listener import Listener

BINARY = haproxy.find()
PATIENCE_S = 60.0
BIG = 30 << 20
pytestmark = pytest.mark.skipif(BINARY is None, reason="no HAProxy on this machine")


async def echo(scope: Scope, receive: Receive, send: Send) -> None:
    """Answer with what was asked; `/big` with a large body, `/waits` once the client has gone; a websocket's frames."""
    if scope["type"] == "websocket":
        await receive()
        await send({"type": "websocket.accept"})
        while (message := await receive())["type"] == "websocket.receive":
            await send({"type": "websocket.send", "bytes": message["bytes"]})
        return
    body, more = b"", scope["path"] != "/early"
    while more:
        message = await receive()
        body += message.get("body", b"")
        more = message.get("more_body", False)
    if scope["path"] == "/waits":
        assert (await receive())["type"] == "http.disconnect"
        GONE.set()
        return
    told = {
        "raw_path": scope["raw_path"].decode(),
        "host": dict(scope["headers"])[b"host"].decode(),
        "bytes": len(body),
    }
    answer = b"x" * BIG if scope["path"] == "/big" else json.dumps(told).encode()
    await send({"type": "http.response.start", "status": 200, "headers": [(b"x-rank", scope["rank"])]})
    await send({"type": "http.response.body", "body": answer})


GONE = threading.Event()


class Replica:
    """An ingress replica of a rank, in a thread of its own."""

    def __init__(self, folder: Path, rank: int) -> None:
        async def app(scope: Scope, receive: Receive, send: Send) -> None:
            await echo({**scope, "rank": str(rank).encode()}, receive, send)

        async def listen() -> Listener:
            return Listener(app, socket_path(folder, rank))

        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self._thread.start()
        self._listener = asyncio.run_coroutine_threadsafe(listen(), self._loop).result(PATIENCE_S)

    def close(self) -> None:
        asyncio.run_coroutine_threadsafe(self._listener.close(), self._loop).result(PATIENCE_S)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(PATIENCE_S)


class Site:
    """A HAProxy over two ranks, a client of it, and the replicas that a test has started."""

    def __init__(self, folder: Path) -> None:
        assert BINARY is not None
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = int(probe.getsockname()[1])
        self.haproxy = HAProxy(BINARY, folder / "http", "127.0.0.1", self.port, 2)
        self.haproxy.start(os.environ)
        self.replicas: list[Replica] = []
        self.http = httpx.Client(base_url=f"http://127.0.0.1:{self.port}", timeout=PATIENCE_S)
        wait_for(self.listens)

    def add(self, rank: int) -> Replica:
        self.replicas.append(Replica(self.haproxy.folder, rank))
        wait_for(lambda: self.http.get("/").status_code == 200)
        return self.replicas[-1]

    def listens(self) -> bool:
        try:
            return bool(self.http.get("/").status_code)
        except httpx.TransportError:
            return False

    def raw(self, request: bytes) -> bytes:
        """Return all that is answered to bytes as they are."""
        with socket.create_connection(("127.0.0.1", self.port), PATIENCE_S) as connection:
            connection.sendall(request)
            return b"".join(iter(lambda: connection.recv(1 << 16), b""))

    def close(self) -> None:
        self.http.close()
        self.haproxy.end()
        for replica in self.replicas:
            replica.close()


def wait_for(look: Callable[[], bool]) -> None:
    deadline = time.monotonic() + PATIENCE_S
    while not look():
        assert time.monotonic() < deadline
        time.sleep(0.02)


@pytest.fixture
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    # The paths of sockets must be short.
    site = Site(tmp_path_factory.mktemp("h"))
    yield site
    site.close()


def assert_unavailable(answer: httpx.Response, detail: str) -> None:
    assert (answer.status_code, answer.headers["retry-after"]) == (503, "1")
    assert answer.headers["content-type"] == "application/json"
    if answer.request.method == "HEAD":
        assert answer.content == b""
    else:
        body = answer.json()
        assert body.keys() == {"error", "detail", "status_code"}
        assert body["status_code"] == 503
        assert detail in body["detail"]


def test_while_no_replica_is_there_every_request_is_answered_503_at_once(site: Site):
    began = time.monotonic()
    for method in ("GET", "HEAD", "POST", "PUT", "DELETE", "OPTIONS"):
        assert_unavailable(site.http.request(method, "/prompt", content=b"{}"), "the server is starting")
    # Far less than HAProxy waits for a connection, six times.
    assert time.monotonic() - began < 15.0


@pytest.mark.parametrize("before", [0, 1, 3])
def test_a_replica_that_dies_with_a_request_in_hand_is_503(before: int, site: Site):
    """before: requests of the same connection that it has answered."""
    listening = socket.socket(socket.AF_UNIX)
    listening.bind(str(socket_path(site.haproxy.folder, 0)))
    listening.listen()
    asked = itertools.count()

    def serve(connection: socket.socket) -> None:
        with connection:
            while received := connection.recv(1 << 16):
                if b"POST" not in received:  # the body has come apart from its headers
                    continue
                if next(asked) >= before:
                    listening.close()
                    return
                connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n")

    def accept() -> None:
        with contextlib.suppress(OSError):
            while True:
                threading.Thread(target=serve, args=(listening.accept()[0],), daemon=True).start()

    threading.Thread(target=accept, daemon=True).start()
    for _ in range(before):
        assert site.http.post("/prompt", content=b"{}").status_code == 200
    assert_unavailable(site.http.post("/prompt", content=b"{}"), "process")


def test_what_was_asked_comes_as_it_was_sent(site: Site):
    site.add(0)
    path = "/userdata/workflows%2Fa%20b.json?x=%2f;y&z"
    assert site.http.get(path, headers={"Host": "some.example:81"}).json() == {
        "raw_path": "/userdata/workflows%2Fa%20b.json",
        "host": "some.example:81",
        "bytes": 0,
    }
    assert site.http.post("/", content=b"y" * BIG).json()["bytes"] == BIG
    assert site.http.post("/", content=iter([b"chunk"] * 1000)).json()["bytes"] == 5000
    assert site.http.get("/big").content == b"x" * BIG
    head = site.http.head("/big")
    assert (head.status_code, head.content) == (200, b"")


def test_an_answer_that_does_not_wait_for_the_body_arrives(site: Site):
    site.add(0)
    assert site.http.post("/early", content=b"y" * BIG).json()["bytes"] == 0


def test_frames_of_a_websocket_pass_both_ways_while_another_replica_comes_and_goes(site: Site):
    site.add(0)
    with connect(f"ws://127.0.0.1:{site.port}/ws", max_size=None) as websocket:
        for replica in (None, site.add(1)):
            if replica is not None:
                site.replicas.remove(replica)
                replica.close()
            for size in (1, 1 << 20):
                websocket.send(b"z" * size)
                assert websocket.recv(PATIENCE_S) == b"z" * size


def test_the_replica_learns_that_a_client_has_left(site: Site):
    site.add(0)
    GONE.clear()
    with socket.create_connection(("127.0.0.1", site.port), PATIENCE_S) as connection:
        connection.sendall(b"GET /waits HTTP/1.1\r\nHost: x\r\n\r\n")
        time.sleep(0.2)
        assert not GONE.is_set()
    assert GONE.wait(PATIENCE_S)


def test_of_two_replicas_the_one_that_is_there_answers_all(site: Site):
    site.add(0)
    site.add(1).close()
    site.replicas.pop()
    for _ in range(20):
        answer = site.http.get("/", headers={"Connection": "close"})
        assert (answer.status_code, answer.headers["x-rank"]) == (200, "0")


def test_both_of_two_replicas_answer_and_one_that_comes_back_does_again(site: Site):
    site.add(0)
    site.add(1).close()
    site.replicas.pop()
    site.add(1)
    ranks = {site.http.get("/", headers={"Connection": "close"}).headers["x-rank"] for _ in range(40)}
    assert ranks == {"0", "1"}


@pytest.mark.parametrize(
    "request_",
    [
        b"nonsense\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: x\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: x\r\nX: " + b"y" * (2 * haproxy.HEAD_BYTES) + b"\r\n\r\n",
    ],
)
def test_what_is_no_request_is_refused(site: Site, request_: bytes):
    site.add(0)
    assert site.raw(request_).startswith(b"HTTP/1.1 400 ")


def test_a_head_of_48_kib_passes(site: Site):
    site.add(0)
    assert site.http.get("/", headers={"X": "y" * 48_000}).status_code == 200


def test_haproxy_listens_on_the_given_address_and_nowhere_else(site: Site):
    found = psutil.Process(site.haproxy.pid).net_connections("inet")
    found = [c for c in found if c.status == psutil.CONN_LISTEN or c.type.name != "SOCK_STREAM"]
    assert [tuple(c.laddr) for c in found] == [("127.0.0.1", site.port)]


def test_a_haproxy_that_has_died_is_started_again(site: Site, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(haproxy, "AGAIN_S", 0.0)
    site.add(0)
    before = site.haproxy.pid
    site.haproxy.keep()
    assert site.haproxy.pid == before
    assert before is not None
    psutil.Process(before).kill()
    wait_for(lambda: site.haproxy.keep() is None and site.haproxy.pid != before)
    wait_for(site.listens)
    assert site.http.get("/").status_code == 200


def test_where_few_files_may_be_open_websockets_are_refused_and_probes_are_answered(
    monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory
):
    monkeypatch.setattr(haproxy, "DESCRIPTORS", 256)
    site = Site(tmp_path_factory.mktemp("h"))
    site.add(0)
    with contextlib.ExitStack() as held:
        held.callback(site.close)
        url = f"ws://127.0.0.1:{site.port}/ws"
        sockets = [held.enter_context(connect(url)) for _ in range(haproxy.connection_limits().sockets)]
        with pytest.raises(InvalidStatus) as refused:
            connect(url)
        assert refused.value.response.status_code == 503
        assert refused.value.response.headers["Retry-After"] == "5"
        assert "Too many websockets" in refused.value.response.body.decode()
        for _ in range(2 * haproxy.connection_limits().clients):
            assert httpx.get(f"http://127.0.0.1:{site.port}/readyz", timeout=PATIENCE_S).status_code == 200
        sockets.pop().close()
        wait_for(lambda: held.enter_context(connect(url)).id is not None)


def test_why_it_would_not_start_is_said(tmp_path: Path):
    assert BINARY is not None
    assert HAProxy(BINARY, tmp_path / "http", "127.0.0.1", 1, 1).refusal() is None
    refusal = HAProxy(BINARY, tmp_path / ("long" * 40), "127.0.0.1", 1, 1).refusal()
    assert refusal is not None
    assert "too long" in refusal
    assert HAProxy(str(tmp_path / "none"), tmp_path / "http", "127.0.0.1", 1, 1).refusal() is not None
