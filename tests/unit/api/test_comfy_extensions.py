from __future__ import annotations

from pathlib import Path

import httpx
import pytest

from serve_app.api.app import create_app
from serve_app.service import Service
from serve_app.store.extensions import Extensions
from serve_app.store.volume import Volume
from tests.unit.api.scripted_replica import Reached
from tests.usual_limits import LIMITS


@pytest.fixture
async def client(scheduler: Reached, tmp_path: Path) -> httpx.AsyncClient:
    (tmp_path / "pack" / "js").mkdir(parents=True)
    (tmp_path / "pack" / "__init__.py").write_text('WEB_DIRECTORY = "js"')
    (tmp_path / "pack" / "js" / "a.js").write_text("hello")
    store = Volume(dict.fromkeys(("input", "output", "temp"), tmp_path))  # type: ignore[misc]
    service = Service(scheduler.client, store, lambda folder: [], LIMITS, extensions=Extensions(tmp_path))
    return httpx.AsyncClient(transport=httpx.ASGITransport(create_app(service)), base_url="http://test")


@pytest.mark.parametrize("prefix", ["", "/api"])
async def test_a_packs_scripts_are_listed_and_served(client: httpx.AsyncClient, prefix: str) -> None:
    [script] = (await client.get(f"{prefix}/extensions")).json()
    assert script == "/extensions/pack/a.js"
    answer = await client.get(prefix + script)
    assert (answer.text, answer.headers["Cache-Control"]) == ("hello", "no-cache")
    assert "javascript" in answer.headers["Content-Type"]


@pytest.mark.parametrize("path", ["pack/none.js", "pack/..%2f__init__.py", "other/a.js"])
async def test_nothing_else_of_a_pack_is_served(client: httpx.AsyncClient, path: str) -> None:
    assert (await client.get(f"/extensions/{path}")).status_code == 404
