"""Every route of every dialect, requested without credentials, by a tenant, and by another tenant for the first one's
data.

What another tenant is answered about a thing is what it is answered about one that nobody has. A route without an entry
here fails the test.
"""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import AsyncIterator, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import httpx
import pytest
import websockets
from starlette.routing import Mount, Route, WebSocketRoute

from serve_app.api.app import create_app
from serve_app.api.auth.authentication import LOGOUT
from serve_app.store.tenants.tenants import job_id_of
from tests.unit.api.tenant_world import CLIENT, NOTHING, PICTURE, WORKFLOW, Has, World, world


@dataclass(frozen=True)
class Entry:
    """What a route is.

    open: for everyone. shared: for every tenant, and the same for all. own: of a tenant. admin, metrics: for who has
    that scope. path: with the names of what a tenant has, and a query, where these make a difference; body, files,
    content: likewise. shows: whether its owner is answered something else than who has no such thing.
    """

    kind: Literal["open", "shared", "own", "admin", "metrics"]
    path: str = ""
    body: Any = None
    upload: dict[str, Any] | None = None
    content: bytes | None = None
    shows: bool = True


SHARED, OPEN, ADMIN = Entry("shared"), Entry("open"), Entry("admin", shows=False)


def own(path: str = "", body: Any = None, *, shows: bool = True, **more: Any) -> Entry:
    return Entry("own", path, body, shows=shows, **more)


# Routes that the native dialect has under /api and at the root are here once, without the prefix.
ENTRIES: dict[tuple[str, str], Entry] = {
    ("GET", "/"): SHARED,
    ("GET", "/index.html"): SHARED,
    ("MOUNT", "/templates"): SHARED,
    ("GET", "/docs"): SHARED,
    ("GET", "/docs/{name}"): SHARED,
    ("GET", "/docs/{node}/{file}"): SHARED,
    ("GET", "/openapi.json"): SHARED,
    ("GET", "/healthz"): OPEN,
    ("GET", "/readyz"): OPEN,
    ("GET", "/login"): OPEN,
    ("POST", "/login"): OPEN,
    ("POST", "/logout"): SHARED,
    # Jobs
    ("POST", "/prompt"): own(body={"prompt": WORKFLOW, "prompt_id": "{job}"}, shows=False),
    ("GET", "/prompt"): own(),
    ("GET", "/queue"): own(),
    ("POST", "/queue"): own(body={"clear": True, "delete": ["{waiting}"]}, shows=False),
    ("POST", "/interrupt"): own(body={"prompt_id": "{running}"}, shows=False),
    ("GET", "/history"): own(),
    ("POST", "/history"): own(body={"clear": True, "delete": ["{job}"]}, shows=False),
    ("GET", "/history/{prompt_id}"): own("/history/{job}"),
    ("GET", "/jobs"): own(),
    ("GET", "/jobs/{job_id}"): own("/jobs/{job}"),
    ("POST", "/jobs/cancel"): own(body={"job_ids": ["{running}", "{waiting}"]}, shows=False),
    ("POST", "/jobs/{job_id}/cancel"): own("/jobs/{running}/cancel", shows=False),
    ("DELETE", "/jobs/{job_id}"): own("/jobs/{job}", shows=False),
    ("POST", "/pause"): Entry("admin", body={}),
    ("POST", "/resume"): Entry("admin", body={}),
    ("POST", "/drain"): Entry("admin", body={}),
    ("POST", "/undrain"): Entry("admin", body={}),
    ("GET", "/logs"): ADMIN,
    ("POST", "/warm"): Entry("admin", body={}),
    ("PUT", "/models/{folder}/{name:path}"): Entry("admin", content=b"no model"),
    ("DELETE", "/models/{folder}/{name:path}"): ADMIN,
    ("GET", "/jobs/{job_id}/events"): own("/jobs/{job}/events?timeout_s=0"),
    ("GET", "/status/{job_id}"): own("/status/{waiting}"),
    ("WS", "/ws"): own(),
    # Assets
    ("GET", "/assets"): own("/assets?tags_any=output,input"),
    ("GET", "/assets/{asset_id}"): own("/assets/{asset}"),
    ("GET", "/assets/{asset_id}/content"): own("/assets/{asset}/content"),
    ("DELETE", "/assets/{asset_id}"): own("/assets/{asset}", shows=False),
    ("POST", "/assets/{asset_id}/tags"): own("/assets/{asset}/tags", body={"tags": ["theirs"]}, shows=False),
    ("DELETE", "/assets/{asset_id}/tags"): own("/assets/{asset}/tags", body={"tags": ["a"]}, shows=False),
    ("POST", "/assets"): own(
        upload={"files": {"file": ("b.png", PICTURE + b"uploaded", "image/png")}, "data": {"tags": "mine"}}, shows=False
    ),
    ("PUT", "/assets/{asset_id}"): own("/assets/{asset}", body={"name": "theirs.png"}, shows=False),
    ("POST", "/assets/from-hash"): own(body={"hash": "{hash}", "name": "theirs.png"}, shows=False),
    ("HEAD", "/assets/hash/{hash}"): own("/assets/hash/{hash}"),
    ("GET", "/jobs/{job_id}/assets"): own("/jobs/{job}/assets"),
    ("POST", "/assets/seed"): SHARED,
    ("GET", "/assets/seed/status"): SHARED,
    ("POST", "/assets/seed/cancel"): SHARED,
    ("POST", "/assets/prune"): SHARED,
    ("POST", "/assets/export"): own(body={"job_ids": ["{job}"], "asset_ids": ["{asset}"]}, shows=False),
    ("GET", "/tasks/{task_id}"): own("/tasks/{export}"),
    ("GET", "/assets/exports/{name}"): own("/assets/exports/{archive}"),
    ("GET", "/assets/exports/{name}/content"): own("/assets/exports/{archive}/content"),
    # Files
    ("GET", "/view"): own("/view?filename={picture}"),
    ("POST", "/upload/image"): own(
        upload={"files": {"image": ("{upload}", PICTURE + b"other", "image/png")}, "data": {"overwrite": "true"}},
        shows=False,
    ),
    ("POST", "/upload/mask"): own(
        upload={
            "files": {"image": ("mask.png", PICTURE, "image/png")},
            "data": {"original_ref": '{{"filename": "{picture}", "type": "output"}}'},
        },
        shows=False,
    ),
    ("GET", "/internal/files/{area}"): own("/internal/files/output"),
    ("GET", "/users"): own(shows=False),
    ("POST", "/users"): own(body={"username": "x"}, shows=False),
    ("GET", "/settings"): own(),
    ("POST", "/settings"): own(body={"mine": 2}, shows=False),
    ("GET", "/settings/{setting:path}"): own("/settings/{setting}"),
    ("POST", "/settings/{setting:path}"): own("/settings/{setting}", body=2, shows=False),
    ("GET", "/userdata"): own("/userdata?dir=notes"),
    ("GET", "/v2/userdata"): own(),
    ("GET", "/userdata/{name:path}"): own("/userdata/{note}"),
    ("POST", "/userdata/{name:path}"): own("/userdata/{note}", content=b"theirs", shows=False),
    ("POST", "/userdata/{name:path}/move/{to:path}"): own("/userdata/{note}/move/other.txt", shows=False),
    ("DELETE", "/userdata/{name:path}"): own("/userdata/{note}", shows=False),
    # What is everyone's
    ("POST", "/free"): Entry("admin", body={"free_memory": True}),
    ("GET", "/status"): Entry("metrics"),
    ("GET", "/metrics"): Entry("metrics"),
    ("GET", "/object_info"): own(),
    ("GET", "/serve_app/queue"): own(),
    ("GET", "/object_info/{node_class}"): own("/object_info/Load"),
    **{
        ("GET", path): SHARED
        for path in (
            *("/nodes", "/catalog", "/system_stats", "/features", "/node_replacements", "/embeddings", "/models"),
            *("/models/{folder}", "/experiment/models", "/experiment/models/{folder}", "/view_metadata/{folder}"),
            *(
                "/experiment/models/preview/{folder}/{index}/{name:path}",
                "/extensions",
                "/serve_app/missing_classes",
                "/serve_app/templates",
                "/extensions/{pack}/{file:path}",
            ),
            *("/extensions/serve_app/first_workflow.js", "/extensions/serve_app/log_out.js"),
            *(f"/extensions/serve_app/{name}.js" for name in ("missing_classes", "templates", "jobs")),
            *("/global_subgraphs", "/global_subgraphs/{id}", "/i18n"),
            *("/workflow_templates", "/workflow_templates/{pack}/{file}", "/internal/folder_paths"),
            *("/internal/logs", "/internal/logs/raw"),
        )
    },
    ("PATCH", "/internal/logs/subscribe"): own(body={"clientId": CLIENT, "enabled": True}, shows=False),
    # Comfy API v2
    ("POST", "/api/v2/jobs"): own(
        body={
            "workflow": {
                "1": {"class_type": "Load", "inputs": {"image": {"__type": "core/ASSET", "info": {"id": "{asset}"}}}},
                "2": WORKFLOW["2"],
            }
        },
        shows=False,
    ),
    ("GET", "/api/v2/openapi.json"): SHARED,
    ("GET", "/api/v2/jobs"): own(),
    ("GET", "/api/v2/jobs/{job_id}"): own("/api/v2/jobs/{job}"),
    ("GET", "/api/v2/jobs/{job_id}/workflow"): own("/api/v2/jobs/{job}/workflow"),
    ("GET", "/api/v2/jobs/{job_id}/events"): own("/api/v2/jobs/{job}/events"),
    ("POST", "/api/v2/jobs/{job_id}/cancel"): own("/api/v2/jobs/{waiting}/cancel", shows=False),
    ("POST", "/api/v2/assets"): own(upload={"files": {"file": ("b.png", PICTURE + b"new", "image/png")}}, shows=False),
    ("POST", "/api/v2/assets/from-hash"): own(body={"hash": "{hash}"}, shows=False),
    ("HEAD", "/api/v2/assets/by-hash/{hash}"): own("/api/v2/assets/by-hash/{hash}"),
    ("GET", "/api/v2/assets/{asset_id}"): own("/api/v2/assets/{asset}"),
    ("GET", "/api/v2/assets/{asset_id}/content"): own("/api/v2/assets/{asset}/content"),
    ("DELETE", "/api/v2/assets/{asset_id}"): own("/api/v2/assets/{asset}", shows=False),
    ("POST", "/webhooks"): own(body={"url": "https://hooks.example/b", "events": ["job.canceled"]}, shows=False),
    ("GET", "/webhooks"): own(),
    ("GET", "/webhooks/{webhook_id}"): own("/webhooks/{webhook}"),
    ("DELETE", "/webhooks/{webhook_id}"): own("/webhooks/{webhook}", shows=False),
    ("GET", "/webhooks/{webhook_id}/deliveries"): own("/webhooks/{webhook}/deliveries"),
    ("POST", "/webhooks/{webhook_id}/deliveries/{delivery_id}/send"): own(
        "/webhooks/{webhook}/deliveries/{job}/send", shows=False
    ),
    # The operator's
    ("GET", "/tenants"): ADMIN,
    ("GET", "/tenants/keys"): ADMIN,
    ("POST", "/tenants/keys"): Entry("admin", body={"tenant": "c"}),
    ("POST", "/tenants/keys/{key_id}/rotate"): Entry("admin", body={}),
    ("POST", "/tenants/keys/{key_id}/revoke"): Entry("admin", body={}),
    ("GET", "/tenants/audit"): ADMIN,
    ("GET", "/operator"): ADMIN,
    ("GET", "/operator/files/{name}"): ADMIN,
    ("GET", "/operator/jobs"): ADMIN,
    ("GET", "/operator/jobs/{job_id}/preview"): ADMIN,
    ("GET", "/operator/activity"): ADMIN,
    ("GET", "/operator/use"): ADMIN,
    ("GET", "/operator/use.csv"): ADMIN,
}

MAKES_NO_DIFFERENCE = {
    ("POST", "/webhooks"),
    ("POST", "/prompt"),
    ("POST", "/api/v2/assets"),
    ("POST", "/assets"),
    ("POST", "/users"),
    ("POST", "/upload/image"),
}
"""Routes by which each makes something of its own, whatever the other has: the answers have ids of their own."""


def routes(page: Path) -> list[tuple[str, str]]:
    """Return (method, path) of every route of the application."""
    app = create_app(_none, page_dir=page, authenticator=_Nobody())  # type: ignore[arg-type]
    found: list[tuple[str, str]] = []
    for route in app.routes:
        match route:
            case Route(path=path, methods=methods):
                asked = sorted(methods or ())
                found += [(method, path) for method in asked if method != "HEAD" or "GET" not in asked]
            case WebSocketRoute(path=path):
                found.append(("WS", path))
            case Mount(path=path):
                found.append(("MOUNT", path))
            case _:
                raise AssertionError(f"{route} is of no known kind")
    return found


class _Nobody:
    audit = None


def _none() -> Any:
    raise AssertionError("no request is made")


def entry_of(method: str, path: str) -> Entry:
    """Return a route's entry. Errors: KeyError for one without."""
    if (method, path) in ENTRIES:
        return ENTRIES[method, path]
    return ENTRIES[method, path.removeprefix("/api")]


@pytest.fixture
def table(tmp_path: Path) -> list[tuple[str, str]]:
    page = tmp_path / "static"
    page.mkdir()
    (page / "index.html").write_text("page")
    return routes(page)


def test_every_route_has_an_entry_and_every_entry_a_route(table):
    without = [
        route for route in table if route not in ENTRIES and (route[0], route[1].removeprefix("/api")) not in ENTRIES
    ]
    assert without == []
    there = {*table, *((method, path.removeprefix("/api")) for method, path in table)}
    assert [entry for entry in ENTRIES if entry not in there] == []


@pytest.fixture
async def two(tmp_path: Path) -> AsyncIterator[tuple[World, Has]]:
    """A server, and what tenant a has; b has nothing."""
    async with world(tmp_path) as made:
        async with made.client(made.keys["a"]) as a:
            has = await made.fill(a, "a")
        yield made, has


def filled(template: Any, has: Has) -> Any:
    """Fill in names of what is had."""
    match template:
        case str():
            return template.format(**asdict(has)) if "{" in template else template
        case dict():
            return {key: filled(value, has) for key, value in template.items()}
        case list() | tuple():
            return type(template)(filled(value, has) for value in template)
    return template


async def asked(client: httpx.AsyncClient, method: str, path: str, entry: Entry, has: Has) -> tuple[int, str]:
    """Make a route's request about what is had; return the status and the text, in which ids stand for themselves."""
    prefix = "/api" if path.startswith("/api/") and not path.startswith("/api/v2") else ""
    target = prefix + filled(entry.path, has) if entry.path else path
    for name in ("name", "node", "file", "folder", "index", "pack", "id", "key_id", "name:path", "file:path", "area"):
        target = target.replace("{" + name + "}", "x")
    more: dict[str, Any] = {}
    if entry.upload is not None:
        more = filled(entry.upload, has)
    elif entry.content is not None:
        more["content"] = entry.content
    elif entry.body is not None:
        more["content"] = json.dumps(filled(entry.body, has))
    answer = await client.request(method, target, **more)
    return answer.status_code, neutral(answer.text, has)


def neutral(text: str, has: Has) -> str:
    """Return a text in which ids are replaced by the names of their kinds."""
    for name, value in asdict(has).items():
        text = text.replace(value, f"<{name}>")
    return re.sub(r'"uptime":[0-9.]+', '"uptime":0', text)


def of_kind(table: list[tuple[str, str]], *kinds: str) -> Iterator[tuple[str, str, Entry]]:
    for method, path in table:
        entry = entry_of(method, path)
        if entry.kind in kinds and method not in ("WS", "MOUNT"):
            yield method, path, entry


async def test_nobody_is_let_in_but_where_it_is_open(two, table):
    made, has = two
    async with made.client(None) as nobody, made.client("sa_000000000000_" + "x" * 43) as stranger:
        for method, path, entry in of_kind(table, "open", "shared", "own", "admin", "metrics"):
            for client in (nobody, stranger):
                status, text = await asked(client, method, path, entry, has)
                if entry.kind == "open":
                    assert (status, path) in ((200, path), (401, "/login")), (method, path, status, text)
                    continue
                assert status == 401, (method, path, status, text)
                if method != "HEAD":
                    assert_refusal(path, text, 401, "unauthorized")
        assert (await nobody.get("/templates/x")).status_code == 401
        assert (await nobody.get("/no/such/route")).status_code == 401
        answer = await nobody.get("/", headers={"Accept": "text/html"})
        assert (answer.status_code, answer.headers["location"]) == (303, "/login")


def assert_refusal(path: str, text: str, status: int, word: str) -> None:
    """Check that a refusal is in its dialect's form."""
    body = json.loads(text)
    if path.startswith("/api/v2"):
        assert body["error"]["code"] == word, (path, body)
    elif path.startswith(("/api/", "/internal/")) and not path.startswith("/api/webhooks"):
        assert (body["error"]["type"], body["node_errors"]) == (word, {}), (path, body)
    else:
        assert (body["error"].lower(), body["status_code"]) == (word, status), (path, body)


async def test_what_is_shared_is_the_same_for_all(two, table):
    made, has = two
    async with made.client(made.keys["a"]) as a, made.client(made.keys["b"]) as b:
        for method, path, entry in of_kind(table, "shared"):
            first, second = await asked(a, method, path, entry, has), await asked(b, method, path, entry, has)
            assert first == second, (method, path)
            assert first[0] not in (401, 403), (method, path)


async def test_what_is_an_admins_is_refused_to_tenants(two, table):
    made, has = two
    metered = await made.key("a", "metrics")
    async with made.client(made.keys["a"]) as a, made.client(made.keys["root"]) as root, made.client(metered) as meter:
        for method, path, entry in of_kind(table, "admin", "metrics"):
            status, text = await asked(a, method, path, entry, has)
            assert status == 403, (method, path, status)
            assert_refusal(path, text, 403, "forbidden")
            assert (await asked(root, method, path, entry, has))[0] in (200, 201, 400, 404), (method, path)
            assert (await asked(meter, method, path, entry, has))[0] == (200 if entry.kind == "metrics" else 403)


async def test_anothers_things_are_as_if_they_were_not_there(two, table):
    made, has = two
    async with made.client(made.keys["a"]) as a:
        before = await made.seen(a)
        for place, (method, path, entry) in enumerate(of_kind(table, "own")):
            # Two that have nothing: a route may make something for who asks.
            others = [await made.key(f"{letter}{place}") for letter in "bc"]
            async with made.client(others[0]) as b, made.client(others[1]) as c:
                foreign = await asked(b, method, path, entry, has)
                canonical = path if path.startswith("/api/v2") else path.removeprefix("/api")
                if (method, canonical) not in MAKES_NO_DIFFERENCE:
                    assert foreign == await asked(c, method, path, entry, NOTHING), (method, path)
            assert foreign[0] < 500, (method, path, foreign)
            assert await made.seen(a) == before, (method, path, "changed what another tenant sees")
            if entry.shows:
                assert await asked(a, method, path, entry, has) != foreign, (method, path, "shows its owner nothing")
        assert made.store.stat(_placed("input", has.upload)).size == len(PICTURE)


def _placed(area: Any, name: str) -> Any:
    from serve_app.store.files.store import FileRef

    return FileRef(area, "@a", name)


async def test_a_read_only_key_changes_nothing_and_a_submitting_one_reads_nothing(two, table):
    made, has = two
    reader, submitter = await made.key("a", "read"), await made.key("a", "submit")
    async with made.client(reader) as reads, made.client(submitter) as submits:
        for method, path, entry in of_kind(table, "shared", "own"):
            client = submits if method in ("GET", "HEAD") else reads
            status, text = await asked(client, method, path, entry, has)
            if path == LOGOUT:
                assert status == 303, "whoever has logged in may log out"
                continue
            assert status == 403, (method, path)
            if method != "HEAD":
                assert_refusal(path, text, 403, "forbidden")


async def test_websockets_are_a_tenants_own(two):
    made, has = two
    socket = made.url.replace("http", "ws")
    for path in ("/ws", "/api/ws"):
        with pytest.raises(websockets.exceptions.InvalidStatus) as refused:
            async with websockets.connect(f"{socket}{path}?clientId={CLIENT}"):
                pass
        assert refused.value.response.status_code == 401
    heard: dict[str, list[Any]] = {"a": [], "b": []}

    async def listen(tenant: str, joined: asyncio.Event) -> None:
        url = f"{socket}/ws?clientId={CLIENT}&token={made.keys[tenant]}"
        async with websockets.connect(url) as connection:
            async for text in connection:
                message = json.loads(text)
                heard[tenant].append(message)
                joined.set()

    joined = {tenant: asyncio.Event() for tenant in heard}
    listening = [asyncio.create_task(listen(tenant, joined[tenant])) for tenant in heard]
    try:
        async with asyncio.timeout(60):
            for event in joined.values():
                await event.wait()
        await made.replica.succeed(job_id_of(has.running, "a"), {})
        async with asyncio.timeout(60):
            while not any(m["type"] == "execution_success" for m in heard["a"]):
                await asyncio.sleep(0.05)
        await asyncio.sleep(0.5)
    finally:
        for task in listening:
            task.cancel()
        await asyncio.gather(*listening, return_exceptions=True)
    assert {message["type"] for message in heard["b"]} == {"status"}
    left = [m["data"]["status"]["exec_info"]["queue_remaining"] for m in heard["b"]]
    assert set(left) == {0}
    assert heard["a"][0]["data"]["sid"] == CLIENT
