"""A walk through the page: whatever it asks for is there, but for what ComfyUI's own server lacks too."""

from __future__ import annotations

from typing import Any

import pytest

from tests.browser.conftest import EXECUTE, SHOWN, refusals
from tests.cluster.server import Server

SHELVES = (
    "Comfy.ShowSettingsDialog",
    "Workspace.ToggleSidebarTab.assets",
    "Workspace.ToggleSidebarTab.node-library",
    "Workspace.ToggleSidebarTab.model-library",
    "Workspace.ToggleSidebarTab.workflows",
    "Workspace.ToggleBottomPanelTab.logs-terminal",
    "Comfy.Queue.ToggleOverlay",
)
QUIET_MS = 1500


@pytest.fixture
def refused(tab: Any, server: Server) -> list[str]:
    return refusals(tab, server.url)


def test_nothing_that_the_page_asks_for_is_refused(server, tab, refused, keep):
    tab.goto(server.url)
    tab.wait_for_function(SHOWN)
    for command in SHELVES:
        tab.evaluate(EXECUTE, command)
        tab.wait_for_timeout(QUIET_MS)
        keep(f"shelf-{command.split('.')[-1]}")
        tab.keyboard.press("Escape")
    assert refused == []


def test_a_template_opens_from_its_picture(server, tab, refused, keep):
    tab.goto(server.url)
    tab.wait_for_function(SHOWN)
    tab.evaluate(EXECUTE, "Comfy.BrowseTemplates")
    card = tab.locator("[data-testid^='template-workflow-']").filter(has_text="Z-Image-Turbo: Text to Image").first
    card.locator("img").first.wait_for()
    keep("templates")
    card.click()
    tab.wait_for_function("window.comfyAPI.app.app.graph.nodes.some(node => node.type === 'MarkdownNote')")
    tab.wait_for_timeout(QUIET_MS)
    keep("template")
    assert refused == []


def test_a_node_shows_its_help(server, tab, refused, keep):
    tab.goto(server.url)
    tab.wait_for_function(SHOWN)
    tab.evaluate("() => { const app = window.comfyAPI.app.app; app.canvas.selectNode(app.graph.getNodeById(3)); }")
    tab.get_by_test_id("info-button").click()
    tab.get_by_text("The KSampler works like this").wait_for()
    tab.wait_for_timeout(QUIET_MS)
    keep("help")
    assert refused == []
