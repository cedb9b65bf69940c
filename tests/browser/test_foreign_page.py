"""What a page of another site can do, in its visitor's browser, to a server that only the visitor reaches: nothing."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from fastapi import FastAPI
from starlette.responses import HTMLResponse

from serve_app.api.app import create_app
from serve_app.api.auth.origin import AllowedOrigins
from serve_app.config.ingress import IngressConfig
from serve_app.service.service import Service
from serve_app.store.files.store import FileRef
from serve_app.store.files.volume import Volume
from serve_app.store.models.catalog import Catalog
from serve_app.store.page.userdata import UserData
from tests.unit.api.http_server import Background, serve
from tests.unit.api.scripted_replica import scripted
from tests.usual_limits import LIMITS

ATTACK = """async url => {
    const plain = {method: "POST", mode: "no-cors", headers: {"Content-Type": "text/plain"}};
    const send = (path, body) => fetch(url + path, {...plain, body});
    await send("/api/userdata/pwn.html", "<script>document.title = 'ran'</script>");
    await send("/api/interrupt", "{}");
    await send("/api/settings", '{"a": 1}');
    const told = await new Promise(resolve => {
        const socket = new WebSocket(url.replace("http", "ws") + "/ws?clientId=c");
        socket.onmessage = () => resolve("heard");
        socket.onclose = () => resolve("refused");
    });
    const seen = await fetch(url + "/api/settings").then(() => "read", () => "unread");
    return [told, seen];
}"""


@pytest.fixture
def server(tmp_path: Path, browser: Any) -> Iterator[str]:
    """A server on 127.0.0.1 with one uploaded page."""
    volume = Volume({area: tmp_path / area for area in ("input", "output", "temp")})
    volume.write(FileRef("input", "", "page.html"), b"<script>document.title = 'ran'</script>")
    (tmp_path / "user" / "default").mkdir(parents=True)
    (tmp_path / "user" / "default" / "page.svg").write_text(
        "<svg xmlns='http://www.w3.org/2000/svg'><script>document.title = 'ran'</script></svg>"
    )
    catalog, users = Catalog(tmp_path / "models"), UserData(tmp_path / "user")
    with Background() as background, background.entered(scripted()) as replica:
        service = Service(replica.scheduler.client, volume, lambda folder: [], LIMITS, catalog=catalog, user_data=users)
        yield from serve(create_app(service, allowed=AllowedOrigins.of(IngressConfig())), background)


@pytest.fixture
def elsewhere(server: str) -> Iterator[str]:
    """The URL of a page of another site, which frames the server's page."""
    app = FastAPI()

    @app.get("/")
    async def page() -> HTMLResponse:
        return HTMLResponse(f"<a href='{server}/docs'>in</a><iframe src='{server}/docs'></iframe>")

    for url in serve(app):
        yield url.replace("127.0.0.1", "localhost")


def test_a_foreign_page_changes_hears_reads_and_frames_nothing(server, elsewhere, tab, tmp_path):
    tab.goto(elsewhere)
    assert tab.evaluate(ATTACK, server) == ["refused", "unread"]
    assert [path.name for path in (tmp_path / "user" / "default").iterdir()] == ["page.svg"]
    assert tab.frames[1].url != f"{server}/docs" or "swagger" not in tab.frames[1].content()


def test_its_link_into_the_server_is_followed_and_the_servers_own_page_works(server, elsewhere, tab, tmp_path):
    tab.goto(elsewhere)
    tab.get_by_text("in").click()
    tab.wait_for_url(f"{server}/docs")
    assert tab.evaluate(ATTACK, server) == ["heard", "read"]
    assert {path.name for path in (tmp_path / "user" / "default").iterdir()} >= {"pwn.html", "comfy.settings.json"}


@pytest.mark.parametrize("path", ["/api/view?filename=page.html&type=input", "/api/userdata/page.svg"])
def test_an_uploaded_page_is_downloaded_and_runs_nothing(server, tab, path):
    tab.goto(f"{server}/docs")
    with tab.expect_download() as download:
        tab.evaluate("path => { location.href = path }", path)
    assert download.value.suggested_filename.startswith("page.")
