"""The page's assets: the gallery shows outputs, deletes one and downloads others as a ZIP; the library shows models."""

from __future__ import annotations

import io
import json
import zipfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import httpx
import pytest
from PIL import Image

from serve_app.api.app import create_app
from serve_app.api.comfy.page import page
from serve_app.nodes.registry import specs
from serve_app.service.service import Service
from serve_app.store.files.input_folders import choices
from serve_app.store.files.store import FileRef
from serve_app.store.files.volume import Volume
from serve_app.store.models.catalog import Catalog
from serve_app.store.page.userdata import UserData
from tests.browser.conftest import EXECUTE, SHOWN, refusals, wait_in
from tests.unit.api.http_server import Background, serve
from tests.unit.api.scripted_replica import ScriptedReplica, scripted
from tests.usual_limits import LIMITS

COLOURS = ("navy", "maroon", "olive")
WORKFLOW = {
    "1": {"class_type": "EmptyImage", "inputs": {"width": 64, "height": 64, "batch_size": 1, "color": 0}},
    "2": {"class_type": "SaveImage", "inputs": {"images": ["1", 0], "filename_prefix": "x"}},
}
CARDS = "[data-asset-id]"
QUIET_MS = 1500


def picture(colour: str) -> bytes:
    kept = io.BytesIO()
    Image.new("RGB", (64, 64), colour).save(kept, "PNG")
    return kept.getvalue()


@pytest.fixture
def store(tmp_path: Path) -> Volume:
    return Volume({area: tmp_path / area for area in ("input", "output", "temp")})


@pytest.fixture
def url(browser: Any, tmp_path: Path, store: Volume) -> Iterator[str]:
    """A server with a job for each colour, which has ended and shown its picture, and two models."""
    for name in ("checkpoints/one.safetensors", "loras/style/two.safetensors"):
        file = tmp_path / "models" / name
        file.parent.mkdir(parents=True)
        header = json.dumps({"__metadata__": {"modelspec.title": "a model"}}).encode()
        file.write_bytes(len(header).to_bytes(8, "little") + header)
        file.with_suffix(".png").write_bytes(picture("navy"))
    with Background() as background, background.entered(scripted(specs())) as replica:
        catalog, users = Catalog(tmp_path / "models"), UserData(tmp_path / "user")

        def offered(folder: str) -> Sequence[str]:
            return choices(store, catalog, folder)

        service = Service(replica.scheduler.client, store, offered, LIMITS, catalog=catalog, user_data=users)
        for url in serve(create_app(service, page_dir=page.installed()), background):
            for colour in COLOURS:
                background.run(draw(url, replica, store, colour))
            yield url


async def draw(url: str, replica: ScriptedReplica, store: Volume, colour: str) -> None:
    async with httpx.AsyncClient(base_url=url) as client:
        answer = await client.post("/api/prompt", json={"prompt": WORKFLOW})
    assert answer.status_code == 200, answer.text
    store.write(FileRef("output", "", f"{colour}.png"), picture(colour))
    shown = {"filename": f"{colour}.png", "subfolder": "", "type": "output"}
    await replica.succeed(answer.json()["prompt_id"], {"2": {"images": [shown]}})


@pytest.fixture
def opened(tab: Any, url: str) -> tuple[Any, list[str]]:
    """The tab with the page in it, and what the server has refused it."""
    refused = refusals(tab, url)
    tab.goto(url)
    tab.wait_for_function(SHOWN)
    return tab, refused


def shown(tab: Any, *colours: str) -> None:
    """Wait until the gallery shows these pictures alone."""
    tab.wait_for_function(
        """names => {
            const shown = [...document.querySelectorAll("[data-asset-id] img")];
            return shown.map(image => image.alt).join() === names && shown.every(image => image.naturalWidth > 0);
        }""",
        arg=",".join(f"{colour}.png" for colour in colours),
    )


def test_the_gallery_deletes_a_picture_and_downloads_the_others_as_one_file(opened, store, keep):
    tab, refused = opened
    tab.evaluate(EXECUTE, "Workspace.ToggleSidebarTab.assets")
    shown(tab, "olive", "maroon", "navy")
    keep("gallery")
    tab.locator(CARDS).nth(0).click()
    tab.get_by_test_id("assets-delete-selected").click()
    keep("gallery-delete")
    tab.get_by_role("dialog").get_by_role("button", name="Delete").click()
    shown(tab, "maroon", "navy")
    assert store.stat(FileRef("output", "", "olive.png")).size, "an output's file is its job's"
    tab.locator(CARDS).nth(0).click()
    tab.locator(CARDS).nth(1).click(modifiers=["Control"])
    with tab.expect_download() as download:
        tab.get_by_test_id("assets-download-selected").click()
    archive = zipfile.ZipFile(download.value.path())
    keep("gallery-downloaded")
    assert archive.testzip() is None
    found = {Path(name).name: archive.read(name) for name in archive.namelist()}
    assert found == {f"{colour}.png": picture(colour) for colour in ("maroon", "navy")}
    assert refused == []


def test_the_library_shows_models_by_their_folders(opened, keep):
    tab, refused = opened
    asked: list[str] = []
    tab.on("request", lambda request: asked.append(request.url))
    tab.evaluate(EXECUTE, "Workspace.ToggleSidebarTab.model-library")
    for folder in ("checkpoints", "loras", "loras/style"):
        tab.get_by_test_id(f"tree-node-root/{folder}").click()
    for model in ("checkpoints/one", "loras/style/two"):
        tab.get_by_test_id(f"tree-node-root/{model}.safetensors").wait_for()
    tab.get_by_test_id("tree-node-root/checkpoints/one.safetensors").hover()
    wait_in(tab, lambda: any("/api/assets?include_tags=models" in url for url in asked), "a request for the models")
    tab.wait_for_timeout(QUIET_MS)
    keep("models")
    assert refused == []
