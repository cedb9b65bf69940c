"""`convert` beside the page's own rules: what the page would queue is the oracle."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from serve_app.api.app import create_app
from serve_app.api.comfy.page import page
from serve_app.cli.convert import own_classes
from serve_app.graph.saved.convert import convert
from serve_app.nodes.registry import specs
from serve_app.service.service import Service
from serve_app.store.files.volume import Volume
from serve_app.store.page.userdata import UserData
from tests.browser.conftest import SHOWN, new_tab
from tests.unit.api.http_server import Background, serve
from tests.unit.api.scripted_replica import scripted
from tests.usual_limits import LIMITS

LOAD_AND_ASK = """async saved => {
    const app = window.comfyAPI.app.app;
    await app.loadGraphData(saved);
    return (await app.graphToPrompt()).output;
}"""

FOLD_AND_ASK = """async ids => {
    const app = window.comfyAPI.app.app;
    await app.loadGraphData();
    app.graph.convertToSubgraph(new Set(ids.map(id => app.graph.getNodeById(id))));
    return {queued: (await app.graphToPrompt()).output, saved: app.graph.serialize()};
}"""


@pytest.fixture(scope="module")
def url(browser: Any, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A server that runs nothing."""
    root: Path = tmp_path_factory.mktemp("server")
    store = Volume(dict.fromkeys(("input", "output", "temp"), root))  # type: ignore[misc]
    users = UserData(root / "user")
    with Background() as background, background.entered(scripted(specs())) as replica:
        service = Service(
            replica.scheduler.client, store, lambda folder: ["model.safetensors"], LIMITS, user_data=users
        )
        yield from serve(create_app(service, page_dir=page.installed()), background)


@pytest.fixture(scope="module")
def opened(browser: Any, url: str) -> Iterator[Any]:
    """A tab with the page in it."""
    for tab in new_tab(browser):
        tab.goto(url)
        tab.wait_for_function(SHOWN)
        yield tab


def saved_node(
    node_id: int, kind: str, inputs: list[tuple[str, str, int | None]], makes: list[str], **keys: Any
) -> dict[str, Any]:
    slots = [{"name": name, "type": slot, "link": link} for name, slot, link in inputs]
    made = [{"name": name, "type": name, "links": []} for name in makes]
    place = {"pos": [0, 0], "size": [200, 100], "flags": {}, "order": 0, "mode": 0, "properties": {}}
    return {"id": node_id, "type": kind, "inputs": slots, "outputs": made, **place, **keys}


def test_convert_makes_of_a_workflow_what_the_page_would_queue(opened: Any) -> None:
    plain = opened.evaluate("() => window.comfyAPI.app.app.graph.serialize()")
    for name, workflow in {"plain": plain, **varied(plain)}.items():
        queued = opened.evaluate(LOAD_AND_ASK, workflow)
        assert convert(workflow, own_classes()) == queued, name


def test_convert_unfolds_the_subgraphs_that_the_page_makes(opened: Any) -> None:
    for inside in ([8], [3, 8], [3, 6]):
        made = opened.evaluate(FOLD_AND_ASK, inside)
        assert "definitions" in made["saved"]
        converted = convert(made["saved"], own_classes())
        assert converted == made["queued"], inside
        assert [node_id for node_id in converted if ":" in node_id]


def varied(plain: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """Return what a user may have made of the first workflow, by what it is about."""
    kinds = ("muted", "bypassed", "primitive and reroute", "damaged links", "group node")
    found = {name: copy.deepcopy(plain) for name in kinds}
    nodes = {name: {str(node["id"]): node for node in workflow["nodes"]} for name, workflow in found.items()}

    nodes["muted"]["5"]["mode"] = 2

    lora: list[tuple[str, str, int | None]] = [("model", "MODEL", 1), ("clip", "CLIP", 3)]
    between = saved_node(
        20, "LoraLoader", lora, ["MODEL", "CLIP"], mode=4, widgets_values=["model.safetensors", 0.5, 1]
    )
    bypassed = found["bypassed"]
    bypassed["nodes"].append(between)
    bypassed["links"] = [_moved(link, {1: (20, 0), 3: (20, 1)}) for link in bypassed["links"]]
    bypassed["links"] += [[21, 20, 0, 3, 0, "MODEL"], [22, 20, 1, 6, 0, "CLIP"]]
    between["outputs"][0]["links"], between["outputs"][1]["links"] = [21], [22]
    _input(nodes["bypassed"]["3"], "model")["link"] = 21
    _input(nodes["bypassed"]["6"], "clip")["link"] = 22

    mixed = found["primitive and reroute"]
    number = saved_node(20, "PrimitiveNode", [], ["INT"], widgets_values=[11, "fixed"])
    number["outputs"][0] |= {"links": [21], "widget": {"name": "steps"}}
    passing = saved_node(22, "Reroute", [("", "*", 2)], ["LATENT"])
    passing["outputs"][0] |= {"name": "", "links": [23]}
    mixed["nodes"] += [number, passing]
    mixed["links"] = [_moved(link, {2: (22, 0)}) for link in mixed["links"]]
    sampler = nodes["primitive and reroute"]["3"]
    steps = next((slot for slot in sampler["inputs"] if slot["name"] == "steps"), None)
    if steps is None:
        steps = {"name": "steps", "type": "INT", "widget": {"name": "steps"}}
        sampler["inputs"].append(steps)
    steps["link"] = 21
    mixed["links"] += [[21, 20, 0, 3, sampler["inputs"].index(steps), "INT"], [23, 22, 0, 3, 3, "LATENT"]]
    _input(sampler, "latent_image")["link"] = 23

    damaged = found["damaged links"]
    damaged["links"] = [link for link in damaged["links"] if link[0] != 1]
    damaged["links"].append([24, 5, 0, 3, 3, "LATENT"])

    group = found["group node"]
    inside = [{**nodes["group node"][name], "id": -1} for name in ("8", "9")]
    host = saved_node(
        30, "workflow>Saves", [("samples", "LATENT", 7), ("vae", "VAE", 8)], [], widgets_values=["grouped"]
    )
    group["nodes"] = [node for node in group["nodes"] if node["id"] not in (8, 9)] + [host]
    group["links"] = [[*link[:3], 30, link[4], link[5]] if link[3] == 8 else link for link in group["links"]]
    group["links"] = [link for link in group["links"] if link[3] != 9]
    group["extra"] = {"groupNodes": {"Saves": {"nodes": inside, "links": [[0, 0, 1, 0, 8, "IMAGE"]], "external": []}}}
    group["last_node_id"] = 30
    return found


def _input(node: dict[str, Any], name: str) -> dict[str, Any]:
    return next(slot for slot in node["inputs"] if slot["name"] == name)


def _moved(link: list[Any], targets: dict[int, tuple[int, int]]) -> list[Any]:
    """Return a saved link, with another end if it is among `targets`."""
    return [*link[:3], *targets[link[0]], link[5]] if link[0] in targets else link
