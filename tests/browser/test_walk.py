"""A walk through the page: whatever it asks for is there, but for what ComfyUI's own server lacks too."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from tests.browser.conftest import COMMANDS, EXECUTE, LOG_OUT, SHOWN, new_tab, refusals
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


@pytest.fixture(scope="module")
def tab(browser: Any) -> Iterator[Any]:
    yield from new_tab(browser)


@pytest.fixture(scope="module")
def refused(tab: Any, server: Server) -> list[str]:
    return refusals(tab, server.url)


@pytest.fixture(scope="module")
def opened(tab: Any, server: Server, refused: list[str]) -> Any:
    """The tab with the page in it."""
    tab.goto(server.url)
    tab.wait_for_function(SHOWN)
    return tab


def test_a_node_shows_its_help(opened, refused, keep):
    opened.evaluate("() => { const app = window.comfyAPI.app.app; app.canvas.selectNode(app.graph.getNodeById(3)); }")
    opened.get_by_test_id("info-button").click()
    opened.get_by_text("The KSampler works like this").wait_for()
    opened.wait_for_timeout(QUIET_MS)
    keep("help")
    assert refused == []


def test_nothing_that_the_page_asks_for_is_refused(opened, refused, keep):
    for command in SHELVES:
        opened.evaluate(EXECUTE, command)
        opened.wait_for_timeout(QUIET_MS)
        keep(f"shelf-{command.split('.')[-1]}")
        opened.keyboard.press("Escape")
    assert refused == []


def test_where_nobody_can_log_in_the_menu_says_nothing_of_logging_out(opened):
    assert LOG_OUT not in opened.evaluate(COMMANDS)


def test_a_template_opens_from_its_picture(opened, refused, keep):
    opened.evaluate(EXECUTE, "Comfy.BrowseTemplates")
    card = opened.locator("[data-testid^='template-workflow-']").filter(has_text="Z-Image-Turbo: Text to Image").first
    card.locator("img").first.wait_for()
    keep("templates")
    card.click()
    opened.wait_for_function("window.comfyAPI.app.app.graph.nodes.some(node => node.type === 'MarkdownNote')")
    opened.wait_for_timeout(QUIET_MS)
    keep("template")
    assert refused == []
