"""What a user makes on the page is kept by the server and is there again: masks, workflows, subgraphs, settings."""

from __future__ import annotations

import contextlib
import io
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from serve_app.api.app import create_app
from serve_app.api.comfy.page import page
from serve_app.nodes.registry import specs
from serve_app.service.service import Service
from serve_app.store.files.store import FileRef
from serve_app.store.files.volume import Volume
from serve_app.store.page.userdata import UserData
from tests.browser.conftest import EXECUTE, SHOWN, new_tab, refusals, wait_in
from tests.unit.api.http_server import Background, serve
from tests.unit.api.scripted_replica import scripted
from tests.usual_limits import LIMITS

PICTURE = "picture.png"
LOAD_PICTURE = """name => {
    const node = window.LiteGraph.createNode("LoadImage");
    window.comfyAPI.app.app.graph.add(node);
    const widget = node.widgets.find(widget => widget.name === "image");
    widget.value = name;
    widget.callback(name);
    window.comfyAPI.app.app.canvas.selectNode(node);
}"""
LOADER = "window.comfyAPI.app.app.graph.nodes.find(node => node.type === 'LoadImage')"
FOLD = """ids => {
    const app = window.comfyAPI.app.app;
    const {node} = app.graph.convertToSubgraph(new Set(ids.map(id => app.graph.getNodeById(id))));
    app.canvas.selectNode(node);
}"""
TYPES = "window.comfyAPI.app.app.graph.nodes.map(node => node.type).sort()"
NAME = "[role=dialog] input[type=text]"


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the server keeps files."""
    root: Path = tmp_path_factory.mktemp("server")
    return root


@pytest.fixture(scope="module")
def url(browser: Any, root: Path) -> Iterator[str]:
    """A server that runs nothing, with one picture."""
    store = Volume({area: root / area for area in ("input", "output", "temp")})
    picture = io.BytesIO()
    Image.new("RGB", (256, 256), "navy").save(picture, "PNG")
    store.write(FileRef("input", "", PICTURE), picture.getvalue())
    with Background() as background, background.entered(scripted(specs())) as replica:

        def choices(folder: str) -> list[str]:
            return sorted(store.names("input")) if folder == "input" else ["model.safetensors"]

        users = UserData(root / "user")
        service = Service(replica.scheduler.client, store, choices, LIMITS, user_data=users)
        yield from serve(create_app(service, page_dir=page.installed()), background)


@pytest.fixture(scope="module")
def tab(browser: Any) -> Iterator[Any]:
    yield from new_tab(browser)


@pytest.fixture(scope="module")
def refused(tab: Any, url: str) -> list[str]:
    return refusals(tab, url)


@pytest.fixture(scope="module")
def opened(tab: Any, url: str, refused: list[str]) -> Any:
    """The tab with the page in it."""
    tab.goto(url)
    tab.wait_for_function(SHOWN)
    return tab


def kept(tab: Any, path: Path, *keys: str) -> dict[str, Any]:
    """Return what a file of JSON holds, once it is there and has these keys; fail if that does not come."""

    def held() -> dict[str, Any] | None:
        with contextlib.suppress(FileNotFoundError, json.JSONDecodeError):
            found: dict[str, Any] = json.loads(path.read_text())
            return found if set(keys) <= found.keys() else None
        return None

    return wait_in(tab, held, f"{path} with {keys}")


def test_what_is_painted_in_the_mask_editor_is_the_images_mask(opened, refused, keep, root):
    opened.evaluate(LOAD_PICTURE, PICTURE)
    opened.wait_for_function(f"{LOADER}.imgs?.[0]?.naturalWidth > 0")
    opened.evaluate(EXECUTE, "Comfy.MaskEditor.OpenMaskEditor")
    save = opened.get_by_role("button", name="Save").last
    save.wait_for()
    opened.wait_for_timeout(1500)
    opened.mouse.move(500, 400)
    opened.mouse.down()
    opened.mouse.move(700, 500, steps=8)
    opened.mouse.up()
    keep("mask-editor")
    save.click()
    shown = f"{LOADER}.widgets[0].value"
    opened.wait_for_function(f"{shown} !== '{PICTURE}'")
    name = opened.evaluate(shown).removesuffix(" [input]")
    masked = Image.open(root / "input" / name)
    assert masked.size == (256, 256)
    opacity = np.asarray(masked)[..., 3]
    assert opacity.min() < 64, "nothing is masked"
    assert opacity.max() == 255, "all of it is masked"
    assert refused == []


def test_a_workflow_is_saved_and_opened_again(opened, refused, keep, root):
    types = opened.evaluate(TYPES)
    opened.evaluate(EXECUTE, "Comfy.SaveWorkflow")
    opened.locator(NAME).fill("mine")
    opened.keyboard.press("Enter")
    saved = kept(opened, root / "user" / "default" / "workflows" / "mine.json")
    assert sorted(node["type"] for node in saved["nodes"]) == types
    opened.evaluate(EXECUTE, "Comfy.NewBlankWorkflow")
    opened.wait_for_function("window.comfyAPI.app.app.graph.nodes.length === 0")
    opened.evaluate(EXECUTE, "Workspace.ToggleSidebarTab.workflows")
    opened.locator(".comfyui-workflows-browse").get_by_text("mine").first.click()
    opened.wait_for_function(SHOWN)
    keep("workflow-opened")
    assert opened.evaluate(TYPES) == types
    assert refused == []


def test_a_subgraph_is_published_and_put_into_another_workflow(opened, refused, keep, root):
    opened.evaluate(FOLD, [3, 8])
    opened.evaluate(EXECUTE, "Comfy.PublishSubgraph")
    opened.locator(NAME).fill("folded")
    opened.keyboard.press("Enter")
    published = kept(opened, root / "user" / "default" / "subgraphs" / "folded.json")
    [definition] = published["definitions"]["subgraphs"]
    assert sorted(node["type"] for node in definition["nodes"]) == ["KSampler", "VAEDecode"]
    opened.reload()
    opened.wait_for_function(SHOWN)
    opened.evaluate(EXECUTE, "Comfy.NewBlankWorkflow")
    opened.wait_for_function("window.comfyAPI.app.app.graph.nodes.length === 0")
    opened.evaluate(EXECUTE, "Workspace.SearchBox.Toggle")
    opened.get_by_placeholder("Add a node").fill("folded")
    opened.locator("[role=option]").filter(has_text="User generated subgraph blueprint").click()
    opened.wait_for_function("window.comfyAPI.app.app.graph.nodes.some(node => node.isSubgraphNode?.())")
    keep("subgraph")
    assert refused == []


def test_a_setting_stays_as_it_was_set(opened, refused, keep, root):
    opened.evaluate(EXECUTE, "Comfy.ShowSettingsDialog")
    switch = opened.locator("[id='Comfy.DevMode'][role=switch]")
    assert switch.get_attribute("aria-checked") == "false"
    switch.click()
    keep("settings")
    settings = kept(opened, root / "user" / "default" / "comfy.settings.json", "Comfy.DevMode")
    assert settings["Comfy.DevMode"] is True
    opened.reload()
    opened.wait_for_function(SHOWN)
    opened.evaluate(EXECUTE, "Comfy.ShowSettingsDialog")
    opened.locator("[id='Comfy.DevMode'][role=switch][aria-checked=true]").wait_for()
    assert refused == []
