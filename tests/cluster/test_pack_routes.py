"""Routes of node packs on a real cluster: two ingress replicas before a pool that is there and one that is at zero."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import httpx
import pytest
from websockets.sync.client import connect

from tests.cluster.server import Server, configure, wait_for

PACK = """
import os
from pathlib import Path
from aiohttp import web
from server import PromptServer

NODE_CLASS_MAPPINGS = {}
routes = PromptServer.instance.routes

@routes.get("/NAME/things/{name}")
async def things(request):
    return web.json_response({"name": request.match_info["name"], "q": request.query["q"], "pid": os.getpid()})

@routes.post("/NAME/sum")
async def add(request):
    return web.json_response(sum((await request.json())["terms"]))

@routes.post("/NAME/upload")
async def upload(request):
    file = (await request.post())["file"]
    return web.json_response({"name": file.filename, "bytes": len(file.file.read())})

@routes.get("/NAME/file")
async def file(request):
    return web.FileResponse(Path(__file__).with_suffix(".bin"))

@routes.get("/NAME/refuses")
async def refuses(request):
    return web.Response(status=400, text="never 7")

@routes.get("/NAME/raises")
async def raises(request):
    raise LookupError("a secret of the pack")

@routes.get("/NAME/dies")
async def dies(request):
    os._exit(1)

@routes.post("/NAME/tell/{client}")
async def tell(request):
    PromptServer.instance.send_sync("NAME.said", await request.json(), request.match_info["client"])
    return web.Response(status=204)

@routes.get("/NAME/socket")
async def socket(request):
    answer = web.WebSocketResponse()
    await answer.prepare(request)
    async for message in answer:
        await answer.send_str(message.data.upper())
    return answer
"""
LARGE = 8 * 1024 * 1024
POOLS: list[dict[str, Any]] = [
    {"name": "zero", "accepts": ["custom_nodes.asleep"], "min_replicas": 0, "idle_s": 1.0},
    {"name": "cpu"},
]


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    root = tmp_path_factory.mktemp("packs")
    (root / "packs").mkdir()
    for name in ("mine", "asleep"):
        (root / "packs" / f"{name}.py").write_text(PACK.replace("NAME", name))
        (root / "packs" / f"{name}.bin").write_bytes(bytes(range(256)) * (LARGE // 256))
    arguments = {
        "custom_nodes_dir": str(root / "packs"),
        "ingress": {"min_replicas": 2, "max_replicas": 2},
        "pools": [{**pool, "runtime": False, "num_cpus": 1} for pool in POOLS],
    }
    configure(root, arguments)
    server = Server(root)
    try:
        server.wait_until_ready()
        wait_for(lambda: server.http.get("/mine/things/a?q=").status_code == 200, "routes that are known")
        yield server
    finally:
        server.close()


@pytest.mark.parametrize("prefix", ["", "/api"])
def test_requests_reach_the_pack_and_answers_the_client_by_either_ingress(server: Server, prefix: str) -> None:
    pids = set()
    for _ in range(10):
        with httpx.Client(base_url=server.url, timeout=60.0) as client:
            found = client.get(f"{prefix}/mine/things/sub%2Fa?q=%C3%A9").json()
        assert (found["name"], found["q"]) == ("sub/a", "é")
        pids.add(found["pid"])
    assert len(pids) == 1
    assert server.http.post(f"{prefix}/mine/sum", json={"terms": [1, 2, 3]}).json() == 6
    answer = server.http.post(f"{prefix}/mine/upload", files={"file": ("a.bin", b"x" * LARGE)})
    assert answer.json() == {"name": "a.bin", "bytes": LARGE}
    assert server.http.get(f"{prefix}/mine/file").content == bytes(range(256)) * (LARGE // 256)


def test_errors_of_a_pack_are_passed_on(server: Server) -> None:
    refused = server.http.get("/mine/refuses")
    assert (refused.status_code, refused.text) == (400, "never 7")
    raised = server.http.get("/api/mine/raises")
    assert raised.status_code == raised.json()["status_code"] == 500
    assert "secret" not in raised.text
    assert server.http.get("/mine/things").status_code == 404
    assert server.http.post("/mine/things/a").status_code == 405
    assert server.http.get("/api/queue").json() == {"queue_running": [], "queue_pending": []}


def test_a_websocket_reaches_the_pack(server: Server) -> None:
    with connect(f"ws://127.0.0.1:{server.port}/mine/socket", open_timeout=60) as socket:
        socket.send("and back")
        assert socket.recv(timeout=60) == "AND BACK"


def test_a_route_may_send_a_message_to_the_client_it_names(server: Server) -> None:
    with connect(f"ws://127.0.0.1:{server.port}/ws?clientId=me", open_timeout=60) as socket:
        for data in ({"n": 1}, ["a list"], {"n": 2}):
            assert server.http.post("/mine/tell/me", json=data).status_code == 204
        heard: list[dict[str, Any]] = []
        while len(heard) < 3:
            frame = json.loads(socket.recv(timeout=60))
            if frame["type"] == "mine.said":
                heard.append(frame["data"])
    assert heard == [{"n": 1}, ["a list"], {"n": 2}]


def test_a_call_starts_a_replica_of_a_pool_at_zero(server: Server) -> None:
    title = "ray::ServeReplica:serve-app:zero"
    wait_for(lambda: not server.processes.found(title), "the pool at zero")

    def answered() -> httpx.Response | None:
        answer = server.http.get("/asleep/things/a?q=1")
        assert answer.status_code in (200, 503), answer.text
        assert answer.status_code == 200 or answer.headers["retry-after"]
        return answer if answer.status_code == 200 else None

    assert wait_for(answered, "an answer").json()["name"] == "a"


def test_a_replica_that_dies_with_a_call_is_503_and_the_next_one_answers(server: Server) -> None:
    dead = server.http.get("/mine/things/a?q=1").json()["pid"]
    answer = server.http.get("/mine/dies")
    assert (answer.status_code, answer.headers["retry-after"]) == (503, "1")

    def answered() -> httpx.Response | None:
        answer = server.http.get("/mine/things/a?q=1")
        return answer if answer.status_code == 200 else None

    assert wait_for(answered, "another replica").json()["pid"] != dead
