"""Routes of node packs over HTTP, from a pack's own handlers to what a client reads, without Ray."""

from __future__ import annotations

import asyncio
import json
import logging
import textwrap
from collections.abc import AsyncGenerator, AsyncIterator, Iterator
from contextlib import aclosing
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import pytest
import websockets

from serve_app.api.app import create_app
from serve_app.api.concurrency_limits import ConcurrencyLimits
from serve_app.errors import NotReadyError
from serve_app.packs.loading import Packs, load_packs
from serve_app.packs.route_server import RouteServer
from serve_app.packs.routes import PackCall, PackFrame, PackRoute, Piece
from serve_app.packs.server import PromptServer
from serve_app.service.service import Service
from serve_app.store.files.volume import Volume
from tests.unit.api.http_server import serve
from tests.unit.api.scripted_replica import ScriptedReplica, scripted
from tests.usual_limits import LIMITS

PACK = """
    import os
    import asyncio, pathlib
    from aiohttp import web
    from server import PromptServer

    HERE = pathlib.Path(__file__).parent
    NODE_CLASS_MAPPINGS = {}
    routes = PromptServer.instance.routes

    @routes.get("/mine/things/{name}", name="things")
    async def things(request):
        return web.json_response({
            "name": request.match_info["name"], "q": request.query.get("q"), "path": request.path,
            "header": request.headers.get("X-Mine"), "cookies": dict(request.cookies),
        }, headers={"X-Answer": "yes"})

    @routes.post("/mine/sum")
    async def add(request):
        return web.json_response(sum((await request.json())["terms"]))

    @routes.post("/mine/upload")
    async def upload(request):
        form = await request.post()
        return web.json_response({"text": form["text"], "name": form["file"].filename,
                                  "bytes": len(form["file"].file.read())})

    @routes.get("/mine/file")
    async def file(request):
        return web.FileResponse(HERE / "files" / "picture.bin")

    @routes.get("/mine/raises")
    async def raises(request):
        raise LookupError("a secret of the pack")

    @routes.get("/mine/exits")
    async def exits(request):
        raise SystemExit(3)

    @routes.get("/mine/task-exits")
    async def task_exits(request):
        async def exits():
            raise KeyboardInterrupt
        asyncio.create_task(exits())
        await asyncio.sleep(0)
        return web.json_response("started")

    @routes.get("/mine/nothing")
    async def nothing(request):
        pass

    @routes.get("/mine/refuses")
    async def refuses(request):
        return web.Response(status=400, text="never 7")

    @routes.get("/mine/missing")
    async def missing(request):
        raise web.HTTPNotFound(reason="no such thing")

    @routes.get("/mine/large/{bytes}")
    async def large(request):
        return web.Response(body=b"x" * int(request.match_info["bytes"]))

    @routes.get("/mine/stream")
    async def stream(request):
        response = web.StreamResponse()
        await response.prepare(request)
        for part in (b"one ", b"two"):
            await response.write(part)
        return response

    @routes.get("/mine/login")
    async def login(request):
        response = web.Response(status=302, headers={"Location": "/mine/things/a"})
        response.set_cookie("who", "me")
        response.set_cookie("what", "it")
        return response

    @routes.get("/mine/quits")
    async def quits(request):
        request.transport.abort()

    @routes.get("/queue")
    async def queue(request):
        return web.json_response("the pack's")

    @routes.view("/mine/view")
    class View(web.View):
        async def delete(self):
            return web.json_response("deleted")

    LEFT, ENDED = [], []

    @routes.get("/mine/endless")
    async def endless(request):
        stream = web.StreamResponse()
        await stream.prepare(request)
        try:
            for n in range(10**9):
                await stream.write(f"{n}\\n".encode())
                await asyncio.sleep(0.02)
        finally:
            ENDED.append(1)

    @routes.get("/mine/ended")
    async def ended(request):
        return web.json_response(ENDED)

    @routes.get("/mine/socket")
    async def socket(request):
        ws = web.WebSocketResponse(protocols=["mine"])
        await ws.prepare(request)
        await ws.send_str(f"hello {request.query['name']}")
        async for message in ws:
            if message.data == "bye":
                await ws.close(code=4000)
            elif isinstance(message.data, str):
                await ws.send_str(message.data[::-1])
            else:
                await ws.send_bytes(message.data[::-1])
        LEFT.append(request.query["name"])
        return ws

    @routes.get("/mine/left")
    async def left(request):
        return web.json_response(LEFT)

    def rename(submission):
        for node in submission["prompt"].values():
            node["class_type"] = "Renamed"
        return submission

    PromptServer.instance.add_on_prompt_handler(rename)
    PromptServer.instance.add_on_prompt_handler(lambda submission: 1 / 0)

    async def direct(request):
        return web.json_response("direct")

    PromptServer.instance.app.router.add_put("/mine/direct", direct)
    PromptServer.instance.app.add_routes([web.static("/mine/static", HERE / "files")])
"""

BROKEN = """
    from server import PromptServer

    @PromptServer.instance.routes.get("/broken")
    async def broken(request): ...

    raise RuntimeError("not today")
"""

LIMIT_BYTES = 10_000


@pytest.fixture
def packs(tmp_path: Path) -> Packs:
    folder = tmp_path / "packs" / "mine"
    (folder / "files").mkdir(parents=True)
    (folder / "files" / "picture.bin").write_bytes(bytes(range(256)))
    (folder / "__init__.py").write_text(textwrap.dedent(PACK))
    (folder.parent / "broken.py").write_text(textwrap.dedent(BROKEN))
    areas: Any = {area: tmp_path / area for area in ("input", "output", "temp")}
    return load_packs(folder.parent, tmp_path / "models", areas)


@pytest.fixture
async def replica(packs: Packs) -> AsyncIterator[ScriptedReplica]:
    async with scripted(routes={"gpu": (), "cpu": packs.routes["custom_nodes.mine"]}) as replica:
        yield replica


@pytest.fixture
async def service(replica: ScriptedReplica) -> AsyncIterator[Service]:
    served = RouteServer(PromptServer.instance.app)

    async def deliver_pack_frame(replica_id: str, socket: str, frame: PackFrame) -> None:
        assert replica_id == "replica"
        served.deliver_pack_frame(socket, frame)

    async def relay(pool: str, call: PackCall) -> AsyncGenerator[str | Piece]:
        if pool != "cpu":
            raise NotReadyError(f"there is no replica of {pool}", retry_after_s=5)
        yield "replica"
        async with aclosing(served.answer(call)) as pieces:
            async for piece in pieces:
                yield piece

    limits = replace(LIMITS, upload_bytes=LIMIT_BYTES)
    service = Service(replica.scheduler.client, Volume({}), lambda folder: [], limits, relay=relay)
    service.deliver_pack_frame = deliver_pack_frame  # type: ignore[method-assign]
    yield service
    await served.close()


@pytest.fixture
async def client(service: Service) -> AsyncIterator[httpx.AsyncClient]:
    transport = httpx.ASGITransport(app=create_app(service))
    async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
        yield client


@pytest.mark.parametrize("prefix", ["", "/api"])
async def test_a_handler_is_given_the_request_as_it_came(client: httpx.AsyncClient, prefix: str) -> None:
    path = f"{prefix}/mine/things/sub%2Fa%20b"
    answer = await client.get(f"{path}?q=%C3%A9%20x", headers=[(b"X-Mine", "é".encode()), (b"Cookie", b"a=1")])
    assert answer.status_code == 200
    assert answer.headers["x-answer"] == "yes"
    assert answer.json() == {
        "name": "sub/a b",
        "q": "é x",
        "path": f"{prefix}/mine/things/sub/a b",
        "header": "é",
        "cookies": {"a": "1"},
    }


@pytest.mark.parametrize("prefix", ["", "/api"])
async def test_bodies_go_in_as_json_and_as_forms(client: httpx.AsyncClient, prefix: str) -> None:
    assert (await client.post(f"{prefix}/mine/sum", json={"terms": [1, 2, 3]})).json() == 6
    form = {"data": {"text": "words"}, "files": {"file": ("a.png", b"\0" * 5000)}}
    answer = await client.post(f"{prefix}/mine/upload", **form)  # type: ignore[arg-type]
    assert answer.json() == {"text": "words", "name": "a.png", "bytes": 5000}


async def test_files_and_parts_of_them_come_out_whole(client: httpx.AsyncClient) -> None:
    for path in ("/mine/file", "/mine/static/picture.bin"):
        assert (await client.get(path)).content == bytes(range(256))
        assert (await client.head(path)).headers["content-length"] == "256"
    part = await client.get("/mine/file", headers={"Range": "bytes=1-3"})
    assert (part.status_code, part.content) == (206, b"\1\2\3")
    stream = await client.get("/mine/stream")
    assert (stream.content, stream.headers.get("content-length")) == (b"one two", None)


@pytest.fixture
def server(service: Service) -> Iterator[str]:
    """The URL of a real server, whose answers come as they are sent."""
    served = serve(create_app(service))
    yield next(served)
    next(served, None)


async def test_an_answer_without_end_comes_as_it_is_made_and_ends_with_its_reader(server: str, packs: Packs) -> None:
    async with httpx.AsyncClient() as client:
        async with client.stream("GET", f"{server}/mine/endless") as answer:
            pieces = answer.aiter_raw()
            assert [await anext(pieces) for _ in range(3)] == [b"0\n", b"1\n", b"2\n"]
        async with asyncio.timeout(60):
            while not (await client.get(f"{server}/mine/ended")).json():
                await asyncio.sleep(0.05)


async def test_messages_go_both_ways_on_a_websocket(server: str) -> None:
    address = server.replace("http", "ws")
    async with websockets.connect(f"{address}/api/mine/socket?name=a", subprotocols=["mine"]) as socket:  # type: ignore[list-item]
        assert socket.subprotocol == "mine"
        assert await socket.recv() == "hello a"
        await socket.send("text")
        assert await socket.recv() == "txet"
        await socket.send(b"\1\2")
        assert await socket.recv() == b"\2\1"
        await socket.send("bye")
        with pytest.raises(websockets.ConnectionClosed) as closed:
            await socket.recv()
        assert closed.value.rcvd is not None
        assert closed.value.rcvd.code == 4000


async def test_a_client_that_goes_ends_its_websocket(server: str) -> None:
    async with websockets.connect(f"{server.replace('http', 'ws')}/mine/socket?name=b") as socket:
        await socket.recv()
    async with httpx.AsyncClient() as client:
        async with asyncio.timeout(60):
            while "b" not in (await client.get(f"{server}/mine/left")).json():
                await asyncio.sleep(0.05)


async def test_a_prompt_handler_changes_a_submission_before_it_is_checked(
    client: httpx.AsyncClient, replica: ScriptedReplica
) -> None:
    prompt = {"1": {"class_type": "OfTheHandler", "inputs": {}}}
    refused = await client.post("/api/prompt", json={"prompt": prompt})
    assert refused.json()["error"]["extra_info"] == {"node_id": "1", "class_type": "Renamed", "node_title": "Renamed"}
    assert (await client.post("/-/on-prompt", json={"prompt": prompt})).status_code == 404, "it is not for clients"


async def test_every_way_to_register_a_route_is_there(client: httpx.AsyncClient, packs: Packs) -> None:
    assert (await client.delete("/api/mine/view")).json() == "deleted"
    assert (await client.put("/mine/direct")).json() == "direct"
    assert PackRoute("PUT", "/mine/direct") in packs.routes["custom_nodes.mine"]
    assert (await client.put("/api/mine/direct")).status_code == 404, "ComfyUI has these once"


async def test_a_cookie_is_for_the_client_that_was_given_it(client: httpx.AsyncClient) -> None:
    login = await client.get("/mine/login")
    assert (login.status_code, login.headers["location"]) == (302, "/mine/things/a")
    assert len(login.headers.get_list("set-cookie")) == 2
    client.cookies.clear()
    assert (await client.get("/mine/things/a")).json()["cookies"] == {}


async def test_a_handler_that_raises_is_a_500_and_its_traceback_is_in_the_log(
    client: httpx.AsyncClient, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.ERROR):
        answer = await client.get("/mine/raises")
    assert answer.status_code == 500
    assert answer.json()["status_code"] == 500
    assert "LookupError" in answer.json()["detail"]
    assert "secret" not in answer.text
    assert "a secret of the pack" in caplog.text
    assert "no response" not in caplog.text
    assert (await client.get("/mine/nothing")).status_code == 500
    assert (await client.get("/mine/quits")).status_code == 502


async def test_what_a_handler_refuses_comes_as_it_says_it(client: httpx.AsyncClient) -> None:
    refused, missing = await client.get("/mine/refuses"), await client.get("/mine/missing")
    assert (refused.status_code, refused.text) == (400, "never 7")
    assert (missing.status_code, missing.text) == (404, "404: no such thing")


async def test_requests_beyond_the_limit_are_refused_and_answers_have_none(client: httpx.AsyncClient) -> None:
    assert (await client.get(f"/mine/large/{3_000_000}")).content == b"x" * 3_000_000
    assert (await client.post("/mine/sum", content=b" " * (LIMIT_BYTES + 1))).status_code == 413


async def test_own_routes_win_and_what_nobody_has_is_not_there(client: httpx.AsyncClient, packs: Packs) -> None:
    assert PackRoute("GET", "/queue") in packs.routes["custom_nodes.mine"]
    for path, ours in (("/queue", "running"), ("/api/queue", "queue_running")):
        assert ours in (await client.get(path)).json()
    for path in ("/mine", "/mine/file/", "/mine/things/a/b", "/api/mine", "/broken"):
        assert (await client.get(path)).status_code == 404, path
    wrong = await client.post("/mine/file")
    assert (wrong.status_code, wrong.headers["allow"]) == (405, "GET, HEAD")


async def test_a_pack_that_fails_has_no_routes(packs: Packs) -> None:
    assert set(packs.failures) == {"broken"}
    assert set(packs.routes) == {"custom_nodes.mine"}


async def test_the_first_pool_with_a_route_answers_and_503_has_retry_after(
    client: httpx.AsyncClient, replica: ScriptedReplica
) -> None:
    await replica.announce("gpu", (PackRoute("GET", "/mine/file"),))
    answer = await client.get("/mine/file")
    assert (answer.status_code, answer.headers["retry-after"]) == (503, "5")
    assert answer.json()["detail"] == "there is no replica of gpu"


async def test_a_handler_that_tries_to_end_the_process_fails_alone(client: httpx.AsyncClient) -> None:
    for path, status in (("exits", 500), ("task-exits", 200), ("things/a", 200)):
        assert (await asyncio.wait_for(client.get(f"/mine/{path}"), 60)).status_code == status


async def test_a_caller_that_goes_while_the_handlers_start_takes_nothing_from_the_next(service: Service) -> None:
    assert service.relay is not None
    call = PackCall("GET", "/mine/things/a", (), b"")
    relay = service.relay

    async def asked() -> list[Any]:
        return [piece async for piece in relay("cpu", call)]

    gone = asyncio.ensure_future(asked())
    await asyncio.sleep(0)
    gone.cancel()
    assert (await asked())[1].status == 200


async def test_without_packs_no_replica_is_asked_for_routes(
    service: Service, client: httpx.AsyncClient, replica: ScriptedReplica
) -> None:
    service.relay = None
    replica.scheduler.refusal = NotReadyError("not asked")
    answer = await client.get("/mine/file")
    assert answer.status_code == 404
    assert json.loads(answer.content)["error"] == "Not found"


async def test_a_websocket_that_no_pack_takes_is_refused(server: str) -> None:
    upgrade = {
        "Connection": "Upgrade",
        "Upgrade": "websocket",
        "Sec-WebSocket-Version": "13",
        "Sec-WebSocket-Key": "dGhlIHNhbXBsZSBub25jZQ==",
    }
    async with httpx.AsyncClient() as client:
        answer = await client.get(f"{server}/mine/nowhere", headers=upgrade)
        assert answer.status_code == 404
        assert "no websocket is at /mine/nowhere" in answer.json()["detail"]
        plain = await client.get(f"{server}/mine/raises", headers=upgrade)
        assert "takes no websocket" in plain.json()["detail"]


async def test_long_answers_and_websockets_have_a_room_and_leave_it_with_their_readers(service: Service) -> None:
    served = serve(create_app(service, concurrency=ConcurrencyLimits(pack_streams=1)))
    server = next(served)
    async with httpx.AsyncClient() as client:
        async with client.stream("GET", f"{server}/mine/endless") as first:
            pieces = first.aiter_raw()
            await anext(pieces)
            refused = await client.get(f"{server}/mine/endless")
            assert refused.status_code == 503
            assert "ingress.max_pack_streams" in refused.text
            with pytest.raises(websockets.InvalidStatus):
                await websockets.connect(f"{server.replace('http', 'ws')}/mine/socket?name=a")
            assert (await client.post(f"{server}/mine/sum", json={"terms": [1]})).json() == 1
        async with asyncio.timeout(60):
            while (await _status(client, f"{server}/mine/endless")) != 200:
                await asyncio.sleep(0.05)
    next(served, None)


async def _status(client: httpx.AsyncClient, url: str) -> int:
    async with client.stream("GET", url) as answer:
        return answer.status_code
