"""The page of a server with tenants: it asks for a key, works with it as ever, and is closed after logging out."""

from __future__ import annotations

from typing import Any

from serve_app.api.auth.authentication import COOKIE
from tests.browser.conftest import COMMANDS, EXECUTE, LOG_OUT, PHONE, SHOWN, refusals
from tests.cluster.server import wait_for
from tests.cluster.tenants import TenantServer

PICTURE = "window.comfyAPI.app.app.graph.getNodeById(9).imgs?.[0]?.naturalWidth > 0"


def log_in(tab: Any, site: TenantServer, tenant: str) -> None:
    tab.goto(site.server.url)
    tab.wait_for_url("**/login")
    tab.get_by_label("Key or token").fill(site.keys[tenant])
    tab.get_by_role("button", name="Log in").click()
    tab.wait_for_function(SHOWN)


def test_a_visitor_logs_in_by_key_draws_a_picture_of_its_own_and_logs_out(site, tab, keep):
    refused = refusals(tab, site.server.url)
    log_in(tab, site, "a")
    keep("logged-in")
    [cookie] = [cookie for cookie in tab.context.cookies() if cookie["name"] == COOKIE]
    assert (cookie["httpOnly"], cookie["sameSite"]) == (True, "Lax")
    assert cookie["value"] not in ("", site.keys["a"])
    assert COOKIE not in tab.evaluate("document.cookie")

    tab.evaluate("window.comfyAPI.app.app.graph.getNodeById(3).widgets.find(w => w.name === 'steps').value = 2")
    tab.get_by_test_id("queue-button").click()
    tab.wait_for_function(PICTURE)
    keep("own-picture")
    source = tab.evaluate("window.comfyAPI.app.app.graph.getNodeById(9).imgs[0].src")
    with site.client("a") as a, site.client("b") as b:
        [job] = wait_for(lambda: a.get("/api/jobs", status="completed")["jobs"], "a job that has ended")
        assert job["preview_output"]["filename"] in source
        assert b.get("/api/jobs")["jobs"] == []
    assert refused == []

    assert LOG_OUT in tab.evaluate(COMMANDS)
    tab.on("dialog", lambda dialog: dialog.accept())
    tab.evaluate(EXECUTE, LOG_OUT)
    tab.wait_for_url("**/login")
    keep("logged-out")
    wait_for(lambda: COOKIE not in {cookie["name"] for cookie in tab.context.cookies()}, "the end of the cookie")
    assert tab.context.request.get(source).status == 401
    log_in(tab, site, "b")
    assert tab.context.request.get(source).status == 404


def test_the_page_says_that_a_key_is_wrong(site, tab, keep):
    tab.set_viewport_size(PHONE)
    tab.goto(f"{site.server.url}/login")
    assert tab.evaluate("document.documentElement.scrollWidth") <= PHONE["width"]
    keep("login-on-a-phone")
    tab.get_by_label("Key or token").fill(site.keys["a"][:-3] + "xyz")
    tab.get_by_role("button", name="Log in").click()
    tab.get_by_role("alert").filter(has_text="is wrong").wait_for()
    keep("wrong-key")
    assert tab.context.cookies() == []
