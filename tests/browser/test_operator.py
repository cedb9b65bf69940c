"""The operator's page: it shows jobs of all tenants, pauses and cancels them, and asks no other host for anything."""

from __future__ import annotations

import csv
from typing import Any

import httpx

from serve_app.models.shipped import CHECKPOINT
from tests.browser.conftest import PHONE, refusals, wait_in
from tests.cluster.server import wait_for
from tests.cluster.tenants import TenantServer

NAP = {
    "1": {"class_type": "EmptyImage", "inputs": {"width": 64, "height": 64, "batch_size": 1, "color": 1}},
    "2": {"class_type": "PreviewImage", "inputs": {"images": ["1", 0]}},
}
MARKUP = "<b>night</b> <img src=x onerror=alert(1)>"
"""The name of a workflow, which its client chooses."""


def column(row: Any, number: int) -> str:
    """Return the text of a row's cell."""
    return str(row.locator(".tabulator-cell").nth(number).inner_text())


def test_an_admin_sees_pauses_and_cancels_every_tenants_jobs(site: TenantServer, tab: Any, keep: Any) -> None:
    url = site.server.url
    asked: list[str] = []
    tab.on("request", lambda request: asked.append(request.url))
    said: list[str] = []
    tab.on("console", lambda line: said.append(line.text) if line.type in ("error", "warning") else None)
    tab.on("pageerror", lambda error: said.append(str(error)))
    tab.goto(f"{url}/login")
    tab.get_by_label("Key or token").fill(site.admin_key)
    tab.get_by_role("button", name="Log in").click()
    tab.wait_for_url(f"{url}/")
    refused, before = refusals(tab, url), len(asked)
    said.clear()
    tab.goto(f"{url}/operator")
    tab.get_by_text("nothing runs and nothing waits").wait_for()

    tab.get_by_role("button", name="Pause the queue").click()
    tab.get_by_role("button", name="Resume the queue").wait_for()
    with site.client("c") as c, site.client("d") as d:
        named = {"workflow_name": MARKUP}
        assert c.http.post("/api/prompt", json={"prompt": NAP, "extra_data": named}).is_success
        assert d.http.post("/api/prompt", json={"prompt": NAP}).is_success
        tab.get_by_text("2 waiting").wait_for()
        rows = tab.locator("#jobs .tabulator-row")
        rows.nth(1).wait_for()
        assert sorted(column(row, 1) for row in rows.all()) == ["c", "d"]
        assert "paused: queue" in rows.first.inner_text()
        # What a client calls its workflow is shown as it is, and nothing of it is made an element.
        assert MARKUP in [column(row, 2) for row in rows.all()]
        assert tab.locator("#jobs img, #jobs b").count() == 0
        keep("operator")
        of_d = rows.filter(has=tab.get_by_role("gridcell", name="d", exact=True))
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
    of_e = tab.locator("#keys .tabulator-row").filter(has=tab.get_by_role("gridcell", name="e", exact=True))
    of_e.get_by_role("button", name="Rotate").click()
    wait_in(tab, lambda: tab.locator("#new-key code").inner_text() != key, "the rotated key")
    wait_in(tab, lambda: of_e.count() == 2, "the row of the rotated key")
    of_e.first.get_by_role("button", name="Revoke").click()
    wait_in(tab, lambda: of_e.count() == 1, "the end of a key")
    of_e.first.get_by_role("button", name="Revoke").click()
    wait_in(tab, lambda: of_e.count() == 0, "the end of the other key")
    headers = {"Authorization": f"Bearer {key}"}
    # Processes learn of it within seconds.
    wait_for(lambda: httpx.get(f"{url}/api/jobs", headers=headers).status_code == 401, "the refusal of a revoked key")

    tab.set_viewport_size(PHONE)
    tab.reload()
    tab.locator("#charts canvas").nth(2).wait_for()
    assert "1 in all" not in tab.locator("figcaption", has_text="errors").inner_text()
    uses = tab.locator("#use .tabulator-row")
    uses.first.wait_for()
    assert {"c", "d"} <= {column(row, 1) for row in uses.all()}
    answer = httpx.get(f"{url}/operator/use.csv", headers={"Authorization": f"Bearer {site.admin_key}"})
    shown = csv.DictReader(answer.text.splitlines())
    assert {row["tenant"]: int(row["jobs"]) for row in shown}["c"] == 1
    assert tab.evaluate("document.documentElement.scrollWidth") <= PHONE["width"]
    keep("operator-on-a-phone")
    assert refused == []
    assert said == []
    # A blob is of the page itself.
    assert [one for one in asked[before:] if not one.removeprefix("blob:").startswith(url)] == []
