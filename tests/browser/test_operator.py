"""The operator's page: it shows jobs of all tenants, pauses and cancels them, and asks no other host for anything."""

from __future__ import annotations

from typing import Any

import httpx

from serve_app.models.shipped import CHECKPOINT
from tests.browser.conftest import PHONE, refusals
from tests.cluster.server import wait_for
from tests.cluster.tenants import TenantServer

NAP = {
    "1": {"class_type": "EmptyImage", "inputs": {"width": 64, "height": 64, "batch_size": 1, "color": 1}},
    "2": {"class_type": "PreviewImage", "inputs": {"images": ["1", 0]}},
}


def test_an_admin_sees_pauses_and_cancels_every_tenants_jobs(site: TenantServer, tab: Any, keep: Any) -> None:
    url = site.server.url
    asked: list[str] = []
    tab.on("request", lambda request: asked.append(request.url))
    tab.goto(f"{url}/login")
    tab.get_by_label("Key or token").fill(site.admin_key)
    tab.get_by_role("button", name="Log in").click()
    tab.wait_for_url(f"{url}/")
    refused, before = refusals(tab, url), len(asked)
    tab.goto(f"{url}/operator")
    tab.get_by_text("nothing runs and nothing waits").wait_for()

    tab.get_by_role("button", name="Pause the queue").click()
    tab.get_by_role("button", name="Resume the queue").wait_for()
    with site.client("c") as c, site.client("d") as d:
        assert c.http.post("/api/prompt", json={"prompt": NAP}).is_success
        assert d.http.post("/api/prompt", json={"prompt": NAP}).is_success
        tab.get_by_text("2 waiting").wait_for()
        rows = tab.locator("#jobs tbody tr")
        assert sorted(row.split("\t")[1] for row in rows.all_inner_texts()) == ["c", "d"]
        assert "paused: queue" in rows.first.inner_text()
        keep("operator")
        of_d = rows.filter(has=tab.get_by_role("cell", name="d", exact=True))
        of_d.get_by_role("button", name="Cancel").click()
        tab.get_by_text("1 waiting").wait_for()
        tab.get_by_role("button", name="Resume the queue").click()
        wait_for(lambda: c.get("/api/jobs", status="completed")["jobs"], "the other job's end")

    tab.get_by_label("Load a model ahead of jobs").fill(f"checkpoints/{CHECKPOINT}")
    tab.get_by_role("button", name="Warm").click()
    tab.get_by_text("loads in ").wait_for()
    tab.get_by_label("Make a key for tenant").fill("e")
    tab.get_by_role("button", name="Make a key").click()
    key = tab.locator("#new-key code").inner_text()
    assert httpx.get(f"{url}/api/jobs", headers={"Authorization": f"Bearer {key}"}).is_success
    tab.on("dialog", lambda dialog: dialog.accept())
    of_e = tab.locator("#keys tbody tr").filter(has=tab.get_by_role("cell", name="e", exact=True))
    of_e.get_by_role("button", name="Revoke").click()
    of_e.wait_for(state="detached")

    tab.set_viewport_size(PHONE)
    tab.reload()
    tab.locator("#charts rect.success").first.wait_for()
    assert tab.evaluate("document.documentElement.scrollWidth") <= PHONE["width"]
    keep("operator-on-a-phone")
    assert refused == []
    # A blob is of the page itself.
    assert [one for one in asked[before:] if not one.removeprefix("blob:").startswith(url)] == []
