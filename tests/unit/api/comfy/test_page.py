from __future__ import annotations

import json
from pathlib import Path
from unittest.mock import AsyncMock

import httpx
import pytest

from serve_app.api.app import create_app
from serve_app.api.comfy.page.page import SCRIPTS, policy
from serve_app.cli.convert import own_classes
from serve_app.config.pool import SHARED
from serve_app.graph.parse import parse
from serve_app.graph.saved.convert import convert
from serve_app.graph.validate import validate
from serve_app.models.shipped import CHECKPOINT
from serve_app.nodes.registry import specs
from serve_app.nodes.unsupported import NOT_THERE
from serve_app.service.service import Service, WhereItRuns
from serve_app.service.submissions import SubmissionCheck
from tests.unit.api.conftest import FILES


def asking(service: Service, page: Path | None) -> httpx.AsyncClient:
    app = create_app(service, page_dir=page)
    return httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://test")


@pytest.fixture
def client(service: Service, tmp_path: Path) -> httpx.AsyncClient:
    """A client of a server with a small page."""
    page = tmp_path / "page"
    for name in ("index.html", "style.css", "assets/a-1234.js", "scripts/app.js", "extensions/core/x.js"):
        (page / name).parent.mkdir(parents=True, exist_ok=True)
        (page / name).write_text(f"this is {name}")
    (tmp_path / "secret.txt").write_text("hidden")
    return asking(service, page)


async def test_the_root_is_the_page(client):
    answer = await client.get("/")
    assert (answer.status_code, answer.text) == (200, "this is index.html")
    assert answer.headers["Content-Type"].startswith("text/html")
    assert answer.headers["Cache-Control"] == "no-cache"


@pytest.mark.parametrize(
    ("path", "kept"),
    [
        ("style.css", "no-cache"),
        ("scripts/app.js", "no-cache"),
        ("extensions/core/x.js", "no-cache"),
        ("assets/a-1234.js", "public, max-age=31536000, immutable"),
    ],
)
async def test_its_files_are_served_and_are_immutable_where_their_name_has_a_hash(client, path, kept):
    answer = await client.get(f"/{path}")
    assert (answer.text, answer.headers["Cache-Control"]) == (f"this is {path}", kept)
    assert (await client.head(f"/{path}")).headers["Content-Length"] == str(len(answer.content))


@pytest.mark.parametrize(
    "path",
    [
        "assets/none.js",
        "assets/%2e%2e/%2e%2e/secret.txt",
        "assets/..%2f..%2fsecret.txt",
        "assets/",
        "none",
        "%2fetc%2fpasswd",
    ],
)
async def test_only_the_pages_own_files_are_served(client, path):
    answer = await client.get(f"/{path}")
    assert answer.status_code == 404
    assert "hidden" not in answer.text


async def test_every_other_path_stays_what_it_is(client, service):
    async with asking(service, None) as bare:
        for method, path in [("GET", "/prompt"), ("PUT", "/queue"), ("GET", "/queue"), ("GET", "/api/none")]:
            with_page, without = await client.request(method, path), await bare.request(method, path)
            assert (with_page.status_code, with_page.text) == (without.status_code, without.text), path


async def test_without_the_page_the_root_says_how_to_install_it(service):
    async with asking(service, None) as bare:
        answer = await bare.get("/")
        assert (answer.status_code, "pip install 'serve-app[ui]'" in answer.text) == (404, True)
        assert (await bare.get("/extensions")).json() == []


async def test_the_page_is_given_a_script_that_loads_the_first_workflow(client):
    assert (await client.get("/api/extensions")).json() == [*SCRIPTS]
    script = await client.get(SCRIPTS[0])
    assert "javascript" in script.headers["Content-Type"]
    [[pack, [name]]] = (await client.get("/api/workflow_templates")).json().items()
    assert f"/workflow_templates/{pack}/{name}.json" in script.text
    assert (await client.get(f"/api/workflow_templates/{pack}/{name}.json")).status_code == 200


@pytest.mark.parametrize(
    ("names", "chosen", "side"),
    [(["a.safetensors", "b.safetensors"], "a.safetensors", 512), (["a.safetensors", CHECKPOINT], CHECKPOINT, 96)],
)
async def test_the_first_workflow_runs_with_the_checkpoints_there_are(client, monkeypatch, names, chosen, side):
    monkeypatch.setitem(FILES, "checkpoints", names)
    saved = (await client.get("/api/workflow_templates/serve_app/first_workflow.json")).json()
    prompt = convert(json.loads(json.dumps(saved)), own_classes())
    assert prompt["4"]["inputs"] == {"ckpt_name": chosen}
    assert prompt["5"]["inputs"] == {"width": side, "height": side, "batch_size": 1}
    assert validate(parse(prompt), specs(), lambda folder: names).outputs == ("9",)


async def test_without_a_checkpoint_the_first_workflow_says_where_to_put_one(client, monkeypatch):
    monkeypatch.setitem(FILES, "checkpoints", [])
    saved = (await client.get("/api/workflow_templates/serve_app/first_workflow.json")).json()
    [note] = [node for node in saved["nodes"] if node["type"] == "MarkdownNote"]
    assert "models/checkpoints" in note["widgets_values"][0]
    assert convert(saved, own_classes()).keys() == {"3", "4", "5", "6", "7", "8", "9"}


async def test_templates_come_with_their_index_and_pictures(client):
    index = (await client.get("/templates/index.json")).json()
    templates = [template for group in index for template in group["templates"]]
    assert len(templates) > 100
    local = next(one for one in templates if one["name"] == "image_z_image_turbo")
    workflow = await client.get(f"/templates/{local['name']}.json")
    assert workflow.json()["nodes"]
    picture = await client.get(f"/templates/{local['name']}-1.{local['mediaSubtype']}")
    assert (picture.status_code, picture.headers["Content-Type"]) == (200, "image/webp")
    for outside in ("none.json", "..%2f__init__.py", "../__init__.py"):
        assert (await client.get(f"/templates/{outside}")).status_code == 404


async def test_help_on_nodes_stands_beside_the_contracts_own_document(client):
    assert "# KSampler" in (await client.get("/docs/KSampler/en.md")).text
    assert (await client.get("/docs/NoSuchNode/en.md")).status_code == 404
    assert (await client.get("/docs/..%2f/__init__.py")).status_code == 404
    assert "swagger-ui" in (await client.get("/docs")).text
    assert (await client.get("/docs/swagger-ui.css")).status_code == 200


async def test_blueprints_are_listed_with_their_names_and_read_one_by_one(client):
    listed = (await client.get("/api/global_subgraphs")).json()
    [(key, entry)] = [
        (key, entry) for key, entry in listed.items() if entry["name"] == "Canny to Image (Z-Image-Turbo)"
    ]
    assert entry == {"source": "templates", "name": entry["name"], "info": {"node_pack": "comfyui"}}
    read = (await client.get(f"/api/global_subgraphs/{key}")).json()
    assert json.loads(read.pop("data"))["definitions"]["subgraphs"][0]["name"] == entry["name"]
    assert read == entry
    assert (await client.get("/api/global_subgraphs/none")).status_code == 404


async def test_a_class_that_is_missing_is_explained_and_one_that_is_there_is_not(client):
    names = ["EmptyLatentHunyuan3Dv2", "OfSomePack", "KSampler"]
    found = (await client.get("/api/serve_app/missing_classes", params={"name": names})).json()
    assert found.keys() == {"EmptyLatentHunyuan3Dv2", "OfSomePack"}
    assert NOT_THERE["EmptyLatentHunyuan3Dv2"] in found["EmptyLatentHunyuan3Dv2"]
    assert found["OfSomePack"].startswith("Here it is of no node pack that is installed here. A pool that is a ComfyUI")


async def test_templates_say_where_they_run_and_what_they_lack(client, service, monkeypatch):
    known = {SHARED: specs(), "comfyui": {**specs(), "OfThePool": specs()["KSampler"]}}
    monkeypatch.setattr(SubmissionCheck, "known", AsyncMock(side_effect=lambda: (dict(known), {})))
    found = (await client.get("/api/serve_app/templates")).json()
    assert found["image_z_image_turbo"] == {"place": "here", "lacks": []}
    assert found["3d_hunyuan3d-v2.1"]["place"] == "nowhere"
    assert "EmptyLatentHunyuan3Dv2" in found["3d_hunyuan3d-v2.1"]["lacks"]
    places = await service.where_workflows_run(
        {"one": frozenset({"OfThePool"}), "other": frozenset({"Of", "KSampler"})}
    )
    assert places == {"one": WhereItRuns("pool", ("OfThePool",)), "other": WhereItRuns("nowhere", ("Of",))}


def test_the_pages_policy_names_this_server_and_the_configured_hosts_alone():
    assert policy(()) == "default-src 'self' 'unsafe-inline' 'unsafe-eval' data: blob:; object-src 'none'"
    assert " https://api.comfy.org;" in policy(("https://api.comfy.org",))
