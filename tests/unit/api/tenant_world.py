"""A server with tenants: one that has something of everything, one that has nothing, and what proves who they are."""

from __future__ import annotations

import json
import uuid
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
from starlette.applications import Starlette

from serve_app.api.app import create_app
from serve_app.api.auth.authentication import Authenticator
from serve_app.api.auth.tokens import TokenVerifier
from serve_app.api.operator.audit import AuditLog
from serve_app.config.limits import ModelChangeLimits
from serve_app.config.quotas import NO_QUOTAS, Quotas
from serve_app.graph.spec import Input, NodeSpec
from serve_app.service.log_query import LogQuery
from serve_app.service.request_limits import Limits
from serve_app.service.service import Service
from serve_app.store.files.store import WholeStore
from serve_app.store.files.volume import Volume
from serve_app.store.models.catalog import Catalog
from serve_app.store.page.userdata import UserData
from serve_app.store.retention.rules import RetentionRules
from serve_app.store.tenants.api_keys import AddKey, minted
from serve_app.store.tenants.tenants import job_id_of
from tests.unit.api.http_server import listening
from tests.unit.api.scripted_replica import ScriptedReplica, scripted

SPECS = {
    spec.class_type: spec
    for spec in (
        NodeSpec("Draw", (Input("seed", "INT"),), ("IMAGE",), ("IMAGE",), (False,)),
        NodeSpec("Load", (Input("image", "COMBO", folder="input"),), ("IMAGE",), ("IMAGE",), (False,)),
        NodeSpec("Save", (Input("images", "IMAGE"),), (), (), (), output_node=True),
    )
}
WORKFLOW = {
    "1": {"class_type": "Draw", "inputs": {"seed": 1}},
    "2": {"class_type": "Save", "inputs": {"images": ["1", 0]}},
}
PICTURE = bytes.fromhex(
    "89504e470d0a1a0a0000000d4948445200000001000000010806000000" + "1f15c4890000000d49444154789c6360606060000000050001"
    "a5f645400000000049454e44ae426082"
)
CLIENT = "the-same-client"
"""As what clients of both tenants call themselves."""


@dataclass(frozen=True)
class Has:
    """Ids and names of what one tenant has."""

    job: str
    running: str
    waiting: str
    asset: str
    hash: str
    picture: str
    upload: str
    note: str
    setting: str
    webhook: str
    archive: str
    export: str


_NO_IDS = [str(uuid.UUID(int=n)) for n in range(1, 7)]
NOTHING = Has(
    job=_NO_IDS[0],
    running=_NO_IDS[1],
    waiting=_NO_IDS[2],
    asset=_NO_IDS[3],
    hash="blake3:" + "0" * 64,
    picture="not_there_00001_.png",
    upload="not-there.png",
    note="none/not-there.txt",
    setting="not.there",
    webhook=_NO_IDS[4],
    archive=f"comfyui-2026-01-01-{_NO_IDS[5]}.zip",
    export=_NO_IDS[5],
)
"""What nobody has."""


class World:
    """A server and its tenants. keys: by who has it: a and b are tenants, root is the operator."""

    def __init__(self, url: str, app: Starlette, service: Service, replica: ScriptedReplica, store: WholeStore) -> None:
        self.url, self.app, self.service, self.replica, self.store = url, app, service, replica, store
        self.keys: dict[str, str] = {}

    async def key(self, tenant: str, *scopes: str, ends_s: float | None = None) -> str:
        """Make a key."""
        key, text = minted(tenant, "test", scopes or ("submit", "read"), ends_s)
        await self.service.query(AddKey(key))
        return text

    def client(self, key: str | None) -> httpx.AsyncClient:
        """Return a client that has a key, or none."""
        headers = {} if key is None else {"Authorization": f"Bearer {key}"}
        return httpx.AsyncClient(
            base_url=self.url, headers=headers, timeout=60, limits=httpx.Limits(max_keepalive_connections=0)
        )

    async def fill(self, client: httpx.AsyncClient, tenant: str) -> Has:
        """Give a tenant one of everything: jobs that ended, run and wait, files, an asset, settings."""
        body = {"prompt": WORKFLOW, "client_id": CLIENT, "extra_data": {}}
        job, running, waiting = [str((await _posted(client, "/prompt", body))["prompt_id"]) for _ in range(3)]
        picture = "drawn_00001_.png"
        self.store.write(_placed(tenant, "output", picture), PICTURE)
        shown = {"images": [{"filename": picture, "subfolder": "", "type": "output"}]}
        await self.replica.succeed(job_id_of(job, tenant), {"2": shown})
        await self.replica.start(job_id_of(running, tenant))
        asset = await client.post("/api/v2/assets", files={"file": ("a.png", PICTURE + b"asset", "image/png")})
        assert asset.status_code == 201, asset.text
        upload = await client.post("/upload/image", files={"image": ("mine.png", PICTURE, "image/png")})
        assert upload.json()["name"] == "mine.png"
        assert (await client.post("/userdata/notes%2Fnote.txt", content=b"mine")).status_code == 200
        assert (await client.post("/settings", json={"mine": 1})).status_code == 200
        hook = await client.post("/api/webhooks", json={"url": "https://hooks.example/a", "events": ["job.canceled"]})
        assert hook.status_code == 201, hook.text
        made = asset.json()
        export = (await client.post("/api/assets/export", json={"job_ids": [job]})).json()["task_id"]
        task = (await client.get(f"/api/tasks/{export}")).json()
        return Has(
            job,
            running,
            waiting,
            made["id"],
            made["hash"],
            picture,
            "mine.png",
            "notes/note.txt",
            "mine",
            hook.json()["id"],
            task["result"]["export_name"],
            export,
        )

    async def seen(self, client: httpx.AsyncClient) -> dict[str, Any]:
        """Return all that a tenant sees of what it has."""
        jobs = ("/queue", "/api/queue", "/history", "/api/jobs", "/api/v2/jobs", "/api/prompt", "/api/assets")
        files = (
            "/userdata?dir=notes",
            "/v2/userdata",
            "/api/webhooks",
            "/internal/files/input",
            "/internal/files/output",
            "/settings",
        )
        found = {}
        for path in (*jobs, *files, "/object_info/Load"):
            answer = await client.get(path)
            found[path] = (answer.status_code, answer.text)
        return found


def _placed(tenant: str, area: Any, name: str) -> Any:
    from serve_app.store.files.store import FileRef
    from serve_app.store.tenants.tenants import placed

    return placed(FileRef(area, "", name), tenant)


async def _posted(client: httpx.AsyncClient, path: str, body: Any) -> Any:
    answer = await client.post(path, content=json.dumps(body))
    assert answer.status_code == 200, answer.text
    return answer.json()


async def _logs(query: LogQuery) -> AsyncIterator[str]:
    yield "{}\n"


async def _metrics() -> str:
    return "ray_serve_app_jobs 0.0\n"


@asynccontextmanager
async def world(
    folder: Path,
    tokens: TokenVerifier | None = None,
    quotas: Quotas = NO_QUOTAS,
    database_url: str | None = None,
    store: WholeStore | None = None,
    retention: RetentionRules | None = None,
    **options: Any,
) -> AsyncIterator[World]:
    """Run a server with tenants over a folder, its database and a volume there if no others are named.

    options: of the service.
    """
    volume = Volume({"input": folder / "input", "output": folder / "output", "temp": folder / "temp"})
    files: WholeStore = store or volume
    page = folder / "page"
    page.mkdir(exist_ok=True)
    (page / "index.html").write_text("the page")
    user_data = UserData(folder / "user")
    running = scripted(SPECS, quotas=quotas, files=(files, user_data), database_url=database_url, retention=retention)
    async with running as replica:
        limits = Limits(
            body_bytes=10_000, upload_bytes=200_000, poll_s=1.0, quotas=quotas, model_changes=ModelChangeLimits()
        )
        service = Service(
            replica.scheduler.client,
            files,
            lambda folder: [],
            limits,
            catalog=Catalog(folder / "models"),
            user_data=user_data,
            metrics=_metrics,
            logs=_logs,
            **options,
        )
        authenticator = Authenticator(lambda: service, AuditLog(lambda: service, 1.0), tokens)
        app = create_app(service, page_dir=page, authenticator=authenticator)
        async with listening(app) as url:
            made = World(url, app, service, replica, files)
            made.keys = {"a": await made.key("a"), "b": await made.key("b"), "root": await made.key("", "admin")}
            try:
                yield made
            finally:
                await authenticator.close()
