"""A real Chromium on the web page. Skipped, saying why, where the browser, its driver or the page is not installed."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from serve_app.api.comfy import page as web_page

CHROMIUM = shutil.which("chromium")
FLAGS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--disable-dev-shm-usage",
]
SCREENSHOTS = "SERVE_APP_SCREENSHOTS"
"""The environment variable that names a directory to keep screenshots in."""
PATIENCE_MS = 120_000
SHOWN = "window.comfyAPI?.app?.app?.graph?.nodes?.length > 0"


@pytest.fixture(scope="package")
def browser() -> Iterator[Any]:
    """One browser for all tests."""
    driver = pytest.importorskip("playwright.sync_api", reason="the playwright package is not installed")
    if CHROMIUM is None:
        pytest.skip("no chromium on this machine")
    if web_page.installed() is None:
        pytest.skip("the comfyui-frontend-package is not installed")
    with driver.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        yield browser
        browser.close()


@pytest.fixture
def tab(browser: Any) -> Iterator[Any]:
    """A tab of a user who was never here."""
    context = browser.new_context(viewport={"width": 1400, "height": 900})
    context.set_default_timeout(PATIENCE_MS)
    yield context.new_page()
    context.close()


@pytest.fixture
def keep(tab: Any) -> Callable[[str], None]:
    """Keep a picture of the tab under a name, if there is a directory for it."""

    def screenshot(name: str) -> None:
        if directory := os.environ.get(SCREENSHOTS):
            tab.screenshot(path=Path(directory) / f"{name}.png")

    return screenshot
