"""The page as a user has it: it loads, shows a workflow that runs, runs it, shows the picture, cancels, lists jobs."""

from __future__ import annotations

import json
import re
from typing import Any

import pytest

from serve_app.models.shipped import CHECKPOINT
from tests.browser.conftest import EXECUTE, SHOWN, refusals, wait_in
from tests.cluster.server import Server, wait_for

NAP = {
    "1": {"class_type": "EmptyImage", "inputs": {"width": 64, "height": 64, "batch_size": 1, "color": 1}},
    "2": {"class_type": "PreviewImage", "inputs": {"images": ["1", 0]}},
}
"""A workflow that takes no time."""
PICTURE = "window.comfyAPI.app.app.graph.getNodeById(9).imgs?.[0]?.naturalWidth > 0"


@pytest.fixture
def told(tab: Any) -> list[dict[str, Any]]:
    """The messages that the tab's websocket brings."""
    found: list[dict[str, Any]] = []

    def note(payload: str | bytes) -> None:
        if isinstance(payload, str):
            found.append(json.loads(payload))

    tab.on("websocket", lambda socket: socket.on("framereceived", note))
    return found


@pytest.fixture
def refused(tab: Any, server: Server) -> list[str]:
    return refusals(tab, server.url)


@pytest.fixture
def earlier(server: Server) -> set[str]:
    """The jobs that other tests have submitted."""
    return {job["id"] for job in server.get("/api/jobs")["jobs"]}


def jobs(server: Server, status: str, earlier: set[str]) -> list[dict[str, Any]]:
    """Return the jobs of this test that are in a state."""
    return [job for job in server.get("/api/jobs", status=status)["jobs"] if job["id"] not in earlier]


def test_a_first_visit_runs_the_default_workflow_and_shows_the_picture(server, earlier, tab, told, refused, keep):
    tab.goto(server.url)
    tab.wait_for_function(SHOWN)
    keep("1-first-workflow")
    shown = tab.evaluate("window.comfyAPI.app.app.graph.nodes.map(node => [node.type, node.widgets?.[0]?.value])")
    assert ["CheckpointLoaderSimple", CHECKPOINT] in shown

    tab.get_by_test_id("queue-button").click()
    tab.wait_for_function(PICTURE)
    keep("2-picture")
    [job] = wait_for(lambda: jobs(server, "completed", earlier), "a job that has ended")
    steps = {message["data"]["value"] for message in told if message["type"] == "progress"}
    assert steps & set(range(1, 20)), "no step between was told"
    source = tab.evaluate("window.comfyAPI.app.app.graph.getNodeById(9).imgs[0].src")
    picture = job["preview_output"]["filename"]
    assert picture in source

    tab.reload()
    tab.wait_for_function(SHOWN)
    tab.get_by_test_id("queue-overlay-toggle").click()
    keep("3-jobs")
    tab.locator(f"img[src*='{picture}']").first.wait_for()
    keep("3-jobs")
    assert refused == []


def test_a_visitor_cancels_the_job_that_runs(server, earlier, tab, told, refused, keep):
    tab.goto(server.url)
    tab.wait_for_function(SHOWN)
    tab.evaluate("window.comfyAPI.app.app.graph.getNodeById(3).widgets.find(w => w.name === 'steps').value = 9999")
    tab.get_by_test_id("queue-button").click()
    [job] = wait_for(lambda: jobs(server, "in_progress", earlier), "the job")
    tab.get_by_role("button", name="Cancel current run").click()
    assert wait_for(lambda: jobs(server, "cancelled", earlier), "its end")[0]["id"] == job["id"]
    wait_in(tab, lambda: "execution_interrupted" in [message["type"] for message in told], "word of it")
    keep("4-cancelled")
    assert refused == []


def test_the_page_asks_no_other_host_for_anything(server, tab, keep):
    answered: list[str] = []
    failed: dict[str, str] = {}
    tab.on("response", lambda response: answered.append(response.url))
    tab.on("requestfailed", lambda request: failed.update({request.url: request.failure}))
    tab.goto(server.url)
    tab.wait_for_function(SHOWN)
    tab.wait_for_timeout(3000)
    elsewhere = {url for url in (*answered, *failed) if url.startswith("http") and not url.startswith(server.url)}
    # What its policy forbids is reported as a request that failed for that, and never leaves the browser.
    assert {url: failed.get(url, "was answered") for url in elsewhere if failed.get(url) != "csp"} == {}


def in_a_pool(route: Any) -> None:
    """Answer where the templates run as a server with a ComfyUI pool does: this one has none."""
    response = route.fetch()
    found = response.json()
    lacking = [name for name, one in found.items() if one["lacks"]]
    route.fulfill(response=response, json=found | {name: found[name] | {"place": "pool"} for name in lacking[::2]})


def test_templates_say_where_they_run_and_the_servers_queue_whose_each_job_is_and_its_place(server, tab, keep):
    tab.route("**/serve_app/templates", in_a_pool)
    tab.goto(server.url)
    tab.wait_for_function(SHOWN)
    tab.evaluate(EXECUTE, "Comfy.BrowseTemplates")
    for mark in (
        re.compile("^runs here$"),
        re.compile("^runs in a ComfyUI pool$"),
        re.compile(r"^lacks \d+ class(es)?$"),
    ):
        tab.get_by_text(mark).first.wait_for()
    keep("templates")
    tab.keyboard.press("Escape")
    server.http.post("/pause", json={})
    try:
        tab.get_by_test_id("queue-button").click()
        wait_for(lambda: server.get("/api/queue")["queue_pending"], "the page's job")
        other = server.submit(NAP, client_id="another")
        tab.get_by_test_id("serve-app-queue-tab-button").click()
        rows = tab.locator(".serve-app-queue li")
        rows.nth(1).wait_for()
        assert ["yours" in text for text in rows.all_inner_texts()] == [True, False]
        assert ["first" in text for text in rows.all_inner_texts()] == [True, False]
        tab.get_by_text("An operator has paused: queue").wait_for()
        keep("servers-queue")
        server.http.post(f"/jobs/{other}/cancel")
    finally:
        server.http.post("/resume", json={})
    tab.get_by_text("Nothing runs and nothing waits").wait_for()


def test_a_missing_class_is_explained_with_the_reason_and_where_it_would_run(server, tab, keep):
    tab.goto(server.url)
    tab.wait_for_function(SHOWN)
    node = {"id": 1, "type": "EmptyLatentHunyuan3Dv2", "pos": [0, 0], "size": [200, 80], "flags": {}, "order": 0}
    graph = {"nodes": [{**node, "mode": 0}], "links": [], "last_node_id": 1, "last_link_id": 0, "version": 0.4}
    tab.evaluate("graph => { window.comfyAPI.app.app.loadGraphData(graph) }", graph)
    shown = tab.get_by_text("EmptyLatentHunyuan3Dv2 does not run on this server")
    shown.first.wait_for()
    tab.get_by_text("A pool that is a ComfyUI would run it").first.wait_for()
    keep("missing-class")
