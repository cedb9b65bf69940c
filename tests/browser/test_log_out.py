"""The page's menu logs out where there are tenants, and says nothing of it where there are none."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from serve_app.api.app import create_app
from serve_app.api.auth.identity import COOKIE, Identity
from serve_app.api.comfy.page import page
from serve_app.api.operator.audit import AuditLog
from serve_app.nodes.registry import specs
from serve_app.service.service import Service
from serve_app.store.files.volume import Volume
from serve_app.store.page.userdata import UserData
from serve_app.store.tenants.api_keys import AddKey, minted
from tests.browser.conftest import EXECUTE, SHOWN
from tests.unit.api.http_server import Background, serve
from tests.unit.api.scripted_replica import scripted
from tests.usual_limits import LIMITS

LABELS = "window.comfyAPI.app.app.extensionManager.command.commands.map(command => command.id)"


@pytest.fixture(params=[True, False], ids=["tenants", "no tenants"])
def opened(request: pytest.FixtureRequest, tab: Any, tmp_path: Path) -> Iterator[Any]:
    """The page of a server that runs nothing, logged in if there are tenants."""
    store = Volume({area: tmp_path / area for area in ("input", "output", "temp")})
    with Background() as background, background.entered(scripted(specs())) as replica:
        users = UserData(tmp_path / "user")
        service = Service(replica.scheduler.client, store, lambda folder: [], LIMITS, user_data=users)
        identity = Identity(lambda: service, AuditLog(lambda: service, 1.0)) if request.param else None
        key, text = minted("a", "", ("submit", "read"), None)
        background.run(service.inquire(AddKey(key)))
        for url in serve(create_app(service, page_dir=page.installed(), identity=identity), background):
            tab.goto(url)
            if request.param:
                tab.get_by_label("Key or token").fill(text)
                tab.get_by_role("button", name="Log in").click()
            tab.wait_for_function(SHOWN)
            yield tab
        if identity is not None:
            background.run(identity.close())


def test_the_menu_logs_out_where_somebody_can_be_logged_in(opened, keep):
    logged_in = COOKIE in {cookie["name"] for cookie in opened.context.cookies()}
    assert ("serve_app.LogOut" in opened.evaluate(LABELS)) == logged_in
    if logged_in:
        opened.on("dialog", lambda dialog: dialog.accept())
        opened.evaluate(EXECUTE, "serve_app.LogOut")
        opened.wait_for_url("**/login")
        keep("logged-out")
        assert opened.context.cookies() == []
