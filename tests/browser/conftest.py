"""A real Chromium on the web page. Skipped, saying why, where the browser, its driver or the page is not installed."""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar

import pytest

from serve_app.api.comfy.page import page as web_page
from serve_app.models.shipped import provide
from tests.cluster.tenants import TenantServer, running

T = TypeVar("T")
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
PHONE = {"width": 390, "height": 900}
"""The size of a phone's window."""
PATIENCE_MS = 120_000
LOOK_MS = 100
SHOWN = "window.comfyAPI?.app?.app?.graph?.nodes?.length > 0"

ABSENT = re.compile(
    r"/user\.css|/api/userdata/(user\.css|comfy\.templates\.json|workflows%2F\.index\.json)"
    r"|/api/userdata\?dir=(workflows|subgraphs)&.*"
)
"""What ComfyUI answers 404 to as well until its user has saved something."""
COMMANDS = "window.comfyAPI.app.app.extensionManager.command.commands.map(command => command.id)"
LOG_OUT = "serve_app.LogOut"
EXECUTE = "id => { window.comfyAPI.app.app.extensionManager.command.execute(id) }"
"""Begins a command of the page: some of them wait for what their dialog is told."""


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


@pytest.fixture(scope="package")
def site(tmp_path_factory: pytest.TempPathFactory, browser: Any) -> Iterator[TenantServer]:
    """A server with four tenants and the checkpoint that ships. Without a browser none is started."""
    root = tmp_path_factory.mktemp("server")
    provide(root / "models")
    with running(root, "a", "b", "c", "d", pools=[{"name": "gpu", "threads": 1}]) as site:
        yield site


@pytest.fixture
def tab(browser: Any) -> Iterator[Any]:
    """A tab of a user who was never here."""
    yield from new_tab(browser)


def new_tab(browser: Any) -> Iterator[Any]:
    """Yield such a tab; close it afterwards. To load the page takes seconds, so a module's tests may share one."""
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


def wait_in(tab: Any, look: Callable[[], T | None], what: str) -> T:
    """Return the first truthy answer of `look`, while the tab's events are taken in; fail if there is none in time."""
    for _ in range(PATIENCE_MS // LOOK_MS):
        if found := look():
            return found
        tab.wait_for_timeout(LOOK_MS)
    raise AssertionError(f"waited {PATIENCE_MS} ms for {what}")


def refusals(tab: Any, url: str) -> list[str]:
    """Return what a server will have answered the tab with an error, beside what ComfyUI has not either."""
    found: list[str] = []

    def note(response: Any) -> None:
        path = response.url.removeprefix(url)
        if response.status >= 400 and path != response.url and not ABSENT.fullmatch(path):
            found.append(f"{response.status} {response.request.method} {path}")

    tab.on("response", note)
    return found
