from __future__ import annotations

from pathlib import Path

import httpx
import pytest

from serve_app.api.app import create_app
from serve_app.service.service import Service
from serve_app.store.files.volume import Volume
from serve_app.store.page.extensions import Extensions
from serve_app.store.page.pack_content import PackContent
from tests.unit.api.scripted_replica import Reached
from tests.usual_limits import LIMITS


@pytest.fixture
async def client(scheduler: Reached, tmp_path: Path) -> httpx.AsyncClient:
    (tmp_path / "pack" / "js").mkdir(parents=True)
    (tmp_path / "pack" / "__init__.py").write_text('WEB_DIRECTORY = "js"')
    (tmp_path / "pack" / "js" / "a.js").write_text("hello")
    for file, text in {
        "workflows/mine.json": "{}",
        "subgraphs/blend.json": "[1]",
        "locales/de/main.json": '{"a": 1}',
    }.items():
        (tmp_path / "pack" / file).parent.mkdir(parents=True)
        (tmp_path / "pack" / file).write_text(text)
    store = Volume(dict.fromkeys(("input", "output", "temp"), tmp_path))  # type: ignore[misc]
    packs = {"extensions": Extensions(tmp_path), "pack_content": PackContent(tmp_path)}
    service = Service(scheduler.client, store, lambda folder: [], LIMITS, **packs)  # type: ignore[arg-type]
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


async def test_a_packs_workflows_blueprints_and_translations_are_served(client: httpx.AsyncClient) -> None:
    assert (await client.get("/api/workflow_templates")).json()["pack"] == ["mine"]
    assert (await client.get("/api/workflow_templates/pack/mine.json")).json() == {}
    assert (await client.get("/api/workflow_templates/pack/other.json")).status_code == 404
    blueprints = (await client.get("/api/global_subgraphs")).json()
    [key] = [key for key, entry in blueprints.items() if entry["info"] == {"node_pack": "custom_nodes.pack"}]
    read = (await client.get(f"/api/global_subgraphs/{key}")).json()
    assert (read["source"], read["name"], read["data"]) == ("custom_node", "blend", "[1]")
    assert (await client.get("/api/i18n")).json() == {"de": {"a": 1}}
