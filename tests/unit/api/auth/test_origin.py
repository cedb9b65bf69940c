"""Which browsers' requests are let in: this server's own pages and named origins, by HTTP and by websocket."""

from __future__ import annotations

import httpx
import pytest

from serve_app.api.app import create_app
from serve_app.api.auth.origin import AllowedOrigins
from serve_app.config.ingress import IngressConfig
from serve_app.deployments.process.up import UpOptions, settings_of
from serve_app.packs.routes import PackRoute

HERE = "http://127.0.0.1:8188"
ELSEWHERE = "http://localhost:18999"
LOOPBACK = AllowedOrigins.of(IngressConfig())


async def ask(service, method, path, headers=None, allowed=LOOPBACK, base=HERE, dialect="contract"):
    app = create_app(service, dialect, allowed=allowed)
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app=app), base_url=base) as client:
        return await client.request(method, path, headers=headers or {}, content=b"{}" if method == "POST" else None)


async def handshake(service, headers, allowed=LOOPBACK):
    """Return the first message that a websocket handshake is answered with."""
    sent = []
    received = [{"type": "websocket.connect"}]

    async def receive():
        return received.pop() if received else {"type": "websocket.disconnect", "code": 1000}

    async def send(message):
        sent.append(message)

    raw = [(name.lower().encode(), value.encode()) for name, value in {"Host": "127.0.0.1:8188", **headers}.items()]
    scope = {"type": "websocket", "path": "/ws", "query_string": b"", "headers": raw, "subprotocols": []}
    await create_app(service, allowed=allowed)(scope, receive, send)
    return sent[0]


@pytest.mark.parametrize("path", ["/prompt", "/api/prompt", "/api/userdata/a.html", "/interrupt", "/api/settings"])
@pytest.mark.parametrize(
    "headers",
    [
        {"Origin": ELSEWHERE},
        {"Origin": "http://127.0.0.1:8189"},
        {"Origin": "null"},
        {"Origin": "http://[half"},
        {"Sec-Fetch-Site": "cross-site", "Sec-Fetch-Mode": "no-cors"},
        {"Sec-Fetch-Site": "cross-site", "Sec-Fetch-Mode": "navigate", "Sec-Fetch-Dest": "document"},
        {"Host": "evil.example"},
        {"Host": "127.0.0.1.evil.example:8188"},
    ],
)
async def test_what_a_page_of_another_site_sends_is_refused_in_the_dialects_words(service, replica, path, headers):
    answer = await ask(service, "POST", path, headers)
    assert answer.status_code == 403
    body = answer.json()
    assert body["error"]["type"] == "foreign_page" if path.startswith("/api") else body["status_code"] == 403
    assert not (await replica.jobs())


@pytest.mark.parametrize(
    "headers",
    [
        {},
        {"Origin": HERE},
        {"Origin": HERE, "Sec-Fetch-Site": "same-origin"},
        {"Sec-Fetch-Site": "none"},
        {"Host": "localhost:8188"},
        {"Host": "LOCALHOST.:8188", "Origin": "http://localhost.:8188"},
        {"Host": "[::1]:8188", "Origin": "http://[::1]:8188"},
        {"Host": "localhost", "Origin": "https://localhost"},
    ],
)
async def test_programs_and_the_servers_own_pages_are_let_in(service, headers):
    assert (await ask(service, "POST", "/api/queue", headers)).status_code == 200


@pytest.mark.parametrize("path", ["/", "/docs", "/healthz"])
async def test_a_link_from_another_site_leads_into_a_page(service, path):
    headers = {"Sec-Fetch-Site": "cross-site", "Sec-Fetch-Mode": "navigate"}
    assert (await ask(service, "GET", path, {**headers, "Sec-Fetch-Dest": "document"})).status_code != 403
    assert (await ask(service, "GET", path, {**headers, "Sec-Fetch-Dest": "iframe"})).status_code == 403


async def test_a_link_from_another_site_leads_to_no_route_of_a_pack(service, replica):
    async def relay(pool, call):
        raise AssertionError("passed on")

    service.relay = relay
    await replica.announce(routes=(PackRoute("GET", "/manager/reboot"),))
    link = {"Sec-Fetch-Site": "cross-site", "Sec-Fetch-Mode": "navigate", "Sec-Fetch-Dest": "document"}
    assert (await ask(service, "GET", "/manager/reboot", link)).status_code == 403
    assert (await ask(service, "GET", "/manager/reboot", {"Sec-Fetch-Site": "same-site"})).status_code == 403


async def test_a_foreign_pages_websocket_is_refused_before_it_is_accepted(service):
    for headers in ({"Origin": ELSEWHERE}, {"Host": "evil.example"}, {"Sec-Fetch-Site": "cross-site"}):
        assert (await handshake(service, headers))["type"] == "websocket.close"
    for headers in ({}, {"Origin": HERE}, {"Origin": "http://LOCALHOST", "Host": "localhost"}):
        assert (await handshake(service, headers))["type"] == "websocket.accept"


async def test_a_named_origin_may_use_the_server_and_is_answered_the_headers_that_browsers_want(service):
    allowed = AllowedOrigins(("127.0.0.1",), (ELSEWHERE,))
    cross = {"Origin": ELSEWHERE, "Sec-Fetch-Site": "cross-site"}
    answer = await ask(service, "GET", "/api/queue", cross, allowed)
    assert (answer.status_code, answer.headers["access-control-allow-origin"]) == (200, ELSEWHERE)
    asking = {"Access-Control-Request-Method": "DELETE", "Access-Control-Request-Headers": "comfy-user"}
    answer = await ask(service, "OPTIONS", "/api/userdata/a", {**cross, **asking}, allowed)
    assert (answer.status_code, answer.headers["access-control-allow-origin"]) == (200, ELSEWHERE)
    assert "DELETE" in answer.headers["access-control-allow-methods"]
    assert "comfy-user" in answer.headers["access-control-allow-headers"]
    assert (await ask(service, "GET", "/api/queue", {"Origin": "http://third.example"}, allowed)).status_code == 403
    assert (await handshake(service, cross, allowed))["type"] == "websocket.accept"


async def test_without_named_origins_no_answer_has_headers_for_other_origins(service):
    answer = await ask(service, "GET", "/api/queue", {"Origin": HERE})
    assert not [name for name in answer.headers if name.startswith("access-control")]


async def test_any_origin_is_let_in_if_the_configuration_says_so(service):
    answer = await ask(service, "POST", "/api/queue", {"Origin": ELSEWHERE}, AllowedOrigins(("*",), ("*",)))
    assert (answer.status_code, answer.headers["access-control-allow-origin"]) == (200, "*")


@pytest.mark.parametrize(
    ("hosts", "given", "known"),
    [
        (("*.example",), "a.b.example:80", True),
        (("*.example",), "example", False),
        (("*.example",), "evilexample", False),
        (("images.example",), "images.example.", True),
        (("images.example",), "x.images.example", False),
    ],
)
def test_hosts_are_names_or_all_below_one(hosts, given, known):
    assert AllowedOrigins(hosts).host(given) is known


async def test_pages_may_be_framed_by_the_servers_own_pages_only(service):
    answer = await ask(service, "GET", "/docs")
    assert answer.headers["content-security-policy"] == "frame-ancestors 'self'"
    assert answer.headers["x-frame-options"] == "SAMEORIGIN"


@pytest.mark.parametrize(
    ("host", "file", "given", "names"),
    [
        ("127.0.0.1", "", (), {"localhost", "127.0.0.1", "::1"}),
        ("127.0.0.2", "", (), {"localhost", "127.0.0.1", "::1", "127.0.0.2"}),
        ("0.0.0.0", "", (), {"*"}),
        ("0.0.0.0", "", ("a", "b"), {"a", "b"}),
        ("0.0.0.0", "ingress: {allowed_hosts: [images.example]}", (), {"images.example"}),
        ("0.0.0.0", "ingress: {allowed_hosts: [images.example]}", ("a",), {"a"}),
    ],
)
def test_what_up_listens_on_decides_the_names_that_the_file_leaves_out(tmp_path, monkeypatch, host, file, given, names):
    monkeypatch.chdir(tmp_path)
    config = tmp_path / "config.yaml"
    config.write_text(f"applications:\n  - args:\n      {file or 'max_queue: 5'}\n")
    arguments = UpOptions(host, config=config, allowed_hosts=given, allowed_origins=("https://app.example",))
    assert set(settings_of(arguments).ingress.allowed_hosts) == names
    assert settings_of(arguments).ingress.allowed_origins == ("https://app.example",)
