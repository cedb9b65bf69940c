"""The short form: every route several times, nothing answered 500, nothing that hangs."""

from __future__ import annotations

from pathlib import Path

import httpx
import pytest
from uvicorn import config

from serve_app.deployments.proxy import http_protocol
from serve_app.store.files.store import AREAS
from tests.fuzz.inputs import Inputs, Request, table
from tests.fuzz.run import CANARY, Outcome, application, fuzz, with_tenants
from tests.unit.api.http_server import listening


@pytest.mark.parametrize("seed", [1, 2, 3])
async def test_no_request_is_answered_by_a_failure_of_the_server(tmp_path: Path, seed: int) -> None:
    async with application(tmp_path) as app:
        outcome = await fuzz(500, seed, app=app)
    assert outcome.wrong == []
    assert outcome.sessions
    assert {200, 400, 404} <= outcome.statuses.keys()


async def test_no_trailer_counts_at_a_server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(config.HTTP_PROTOCOLS, "auto", config.HTTP_PROTOCOLS["auto"])
    http_protocol.install()
    async with application(tmp_path) as app, listening(app) as url:
        outcome = await fuzz(400, 4, url)
    assert outcome.wrong == []
    sent = [one for one, _ in zip(Inputs(4), range(400), strict=False)]
    assert sum(bool(one.trailers) for one in sent if isinstance(one, Request)) > 20


@pytest.mark.parametrize("seed", [4, 5])
async def test_no_request_shows_a_tenant_what_another_has_or_is_let_in_without_a_key(tmp_path: Path, seed: int) -> None:
    async with with_tenants(tmp_path) as (app, key):
        outcome = await fuzz(500, seed, app=app, key=key)
    assert outcome.wrong == []
    assert {200, 400, 401, 403, 404} <= outcome.statuses.keys()


SPELLINGS = (
    *("canary.png", "../canary.png", "..%2Fcanary.png", "%2e%2e/canary.png", "%2e%2e%2fcanary.png", "..%5Ccanary.png"),
    *("..%252Fcanary.png", "a/..%2F..%2Fcanary.png", "//canary.png", "./../canary.png", "..%2Fcanary.png%00.png"),
    *("..%2Fcanary.png%20[output]", "%EF%BC%8E%EF%BC%8E/canary.png", "link.png", "link.png%20[input]", "link"),
)
"""Of a file beside the areas, and of a link to it from inside one."""


FILES = ("}", "view", "userdata")
"""How the paths of routes end that read a file by a name in the path or the query."""


async def test_no_spelling_of_a_name_shows_a_file_beside_the_areas(tmp_path: Path) -> None:
    async with application(tmp_path) as app:
        (tmp_path / "canary.png").write_text(CANARY)
        (tmp_path / "canary.safetensors").write_text(CANARY)
        for area in ("input", "output", "temp", "models", "user"):
            (tmp_path / area / "link.png").symlink_to(tmp_path / "canary.png")
            (tmp_path / area / "link").symlink_to(tmp_path)
        transport = httpx.ASGITransport(app=app)
        outcome, asked = Outcome(), 0
        async with httpx.AsyncClient(transport=transport, base_url="http://test", timeout=None) as client:
            for path in {path for method, path in table() if method == "GET" and path.endswith(FILES)}:
                head = path.partition("{")[0]
                for name in SPELLINGS:
                    queries = [
                        f"filename={name}&type={area}&subfolder={up}" for area in AREAS for up in ("", "..", "link")
                    ]
                    queries += [
                        f"dir={name}&recurse=true&path={name}&file={name}",
                        f"filename=canary.png&subfolder={name}",
                    ]
                    targets = [f"{head}{name}"] if head != path else [f"{path}?{query}" for query in queries]
                    for target in targets:
                        sent = Request("GET", target, (), b"")
                        url = client.base_url.copy_with(raw_path=target.encode())
                        outcome.take(sent, await client.send(client.build_request("GET", url)))
                        asked += 1
    assert outcome.wrong == []
    assert asked > 1000


def test_every_route_is_asked_and_a_seed_gives_the_same_requests_again() -> None:
    sent = [one for one, _ in zip(Inputs(7), range(300), strict=False)]
    assert sent == [one for one, _ in zip(Inputs(7), range(300), strict=False)]
    assert len(table()) > 100
    assert len({one.target.partition("?")[0] for one in sent if isinstance(one, Request)}) > 100
