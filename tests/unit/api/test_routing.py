"""The router that looks at few routes, beside one that tries them all."""

from __future__ import annotations

from typing import Annotated

import httpx
import pytest
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Mount, Route, Router

from serve_app.api.routing import Depends, PrefixRouter, Routes, prefixed


def routes() -> list[Route | Mount]:
    table = Routes("/a")

    @table.read("/b")
    async def literal(_: Request) -> Response:
        return PlainTextResponse("literal")

    @table.post("/b")
    async def posted(_: Request) -> Response:
        return PlainTextResponse("posted")

    @table.read("/{name:path}")
    async def pattern(request: Request) -> Response:
        return PlainTextResponse(f"pattern {request.path_params['name']}")

    async def mounted(request: Request) -> Response:
        return PlainTextResponse(f"mounted {request.path_params['name']}")

    everything = [*table.routes, *prefixed("/api", table.routes), Route("/", mounted), Route("/api", literal)]
    return [*everything, Mount("/files", routes=[Route("/{name}", mounted)])]  # type: ignore[list-item]


@pytest.mark.parametrize("method", ["GET", "POST", "DELETE"])
@pytest.mark.parametrize("path", ["/a/b", "/a/c/d", "/api/a/b", "/api/a/c", "/api", "/files/x", "/files", "/ab", "/c"])
async def test_the_route_table_finds_what_starlettes_router_finds(method: str, path: str) -> None:
    answers = []
    for router in (PrefixRouter(routes()), Router(routes(), redirect_slashes=False)):
        app = Starlette()
        app.router = router
        async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://test") as client:
            answer = await client.request(method, path)
            answers.append((answer.status_code, answer.text, answer.headers.get("allow")))
    assert answers[0] == answers[1]


@pytest.mark.parametrize(("path", "known"), [("/a/c/d", True), ("/api/a/c", True), ("/files/x", True), ("/c", False)])
def test_the_route_table_knows_the_paths_of_its_routes(path: str, known: bool) -> None:
    assert PrefixRouter(routes()).knows({"type": "http", "method": "GET", "path": path}) == known


async def test_the_route_table_tries_only_routes_with_the_paths_prefix(monkeypatch: pytest.MonkeyPatch) -> None:
    tried: list[str] = []
    matches = Route.matches
    monkeypatch.setattr(Route, "matches", lambda route, scope: tried.append(route.path) or matches(route, scope))
    app = Starlette()
    app.router = PrefixRouter(routes())
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://test") as client:
        assert (await client.get("/api/a/b")).text == "literal"
    assert tried == ["/api/a/b"]


def test_a_parameter_that_nothing_is_given_for_is_an_error() -> None:
    async def handler(request: Request, other: Annotated[int, "how many"]) -> Response:
        return PlainTextResponse(str(other))

    with pytest.raises(TypeError, match="handler: nothing is given"):
        Routes().read("/")(handler)


async def test_a_parameter_is_what_is_given_for_it() -> None:
    table = Routes()

    @table.read("/x")
    async def handler(length: Annotated[int, Depends(lambda request: len(request.url.path))]) -> Response:
        return PlainTextResponse(str(length))

    app = Starlette()
    app.router = PrefixRouter(table.routes)
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://test") as client:
        assert (await client.get("/x")).text == "2"
