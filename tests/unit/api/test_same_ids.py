"""Two tenants whose clients call everything the same, through every door: each has its own, and finds no other's."""

from __future__ import annotations

import asyncio
import json
import uuid
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import websockets

from serve_app.api.files.node_outputs import output_items
from serve_app.store.files.store import FileRef
from serve_app.store.page.assets import Asset, RecordOutputs
from serve_app.store.tenants.tenants import job_id_of, placed
from tests.unit.api.tenant_world import CLIENT, PICTURE, WORKFLOW, World, world

JOB, CANCELLED, WAITING = (str(uuid.UUID(int=number)) for number in (7, 8, 9))
DOORS = ("", "/api")


def shown(tenant: str) -> dict[str, Any]:
    return {"images": [{"filename": f"of_{tenant}.png", "subfolder": "", "type": "output"}], "text": [f"of {tenant}"]}


async def submitted(client: httpx.AsyncClient, job: str, door: str = "") -> None:
    body = {"prompt": WORKFLOW, "prompt_id": job, "client_id": CLIENT, "extra_data": {}}
    answer = await client.post(f"{door}/prompt", content=json.dumps(body))
    assert (answer.status_code, answer.json().get("prompt_id")) == (200, job), answer.text


@asynccontextmanager
async def hearing(made: World, tenant: str) -> AsyncIterator[list[dict[str, Any]]]:
    """Yield the websocket messages of a tenant's client."""
    heard: list[dict[str, Any]] = []
    url = f"{made.url.replace('http', 'ws')}/ws?clientId={CLIENT}&token={made.keys[tenant]}"

    async def listen(connection: websockets.ClientConnection) -> None:
        async for text in connection:
            heard.append(json.loads(text))

    async with websockets.connect(url) as connection:
        listening = asyncio.create_task(listen(connection))
        try:
            yield heard
        finally:
            listening.cancel()
            await asyncio.gather(listening, return_exceptions=True)


async def told(heard: list[dict[str, Any]], kind: str, job: str) -> dict[str, Any]:
    async with asyncio.timeout(60):
        while True:
            if found := [m["data"] for m in heard if m["type"] == kind and m["data"].get("prompt_id") == job]:
                return found[0]
            await asyncio.sleep(0.02)


async def streamed(client: httpx.AsyncClient, path: str) -> list[dict[str, Any]]:
    """Return what a stream of v2 says until it ends."""
    async with client.stream("GET", path) as answer:
        assert answer.status_code == 200
        return [json.loads(line[6:]) async for line in answer.aiter_lines() if line.startswith("data: ")]


async def check_own(made: World, client: httpx.AsyncClient, tenant: str, cancelled: bool) -> None:
    """Check that through every door a tenant finds its jobs under its ids, and what they made."""
    for door in DOORS:
        for path in ("/history", f"/history/{JOB}"):
            history = (await client.get(f"{door}{path}")).json()
            assert set(history) == {JOB}
            assert history[JOB]["prompt"][1] == JOB
            assert history[JOB]["outputs"]["2"] == shown(tenant)
        queue = (await client.get(f"{door}/queue")).json()
        listed = [entry[1] if door else entry[0] for entry in queue["queue_pending"]]
        assert listed == ([WAITING] if cancelled else [CANCELLED, WAITING])
    [ended] = (await client.get("/api/jobs?status=completed")).json()["jobs"]
    assert ended["id"] == JOB
    assert (await client.get(f"/api/jobs/{JOB}")).json()["outputs"]["2"] == shown(tenant)
    stretch = (await client.get(f"/jobs/{JOB}/events?timeout_s=1")).json()
    assert [e["data"]["output"] for e in stretch["events"] if e["kind"] == "executed"] == [shown(tenant)]
    # Comfy API v2
    listed = (await client.get("/api/v2/jobs")).json()["jobs"]
    assert [job["id"] for job in listed] == [WAITING, CANCELLED, JOB]
    job = (await client.get(f"/api/v2/jobs/{JOB}")).json()
    assert (job["id"], job["urls"]["self"]) == (JOB, f"/api/v2/jobs/{JOB}")
    assert {o["name"] for o in job["outputs"] if o["type"] == "image"} == {f"of_{tenant}.png"}
    assert {o["job_id"] for o in job["outputs"]} == {JOB}
    for output in job["outputs"]:
        content = (await client.get(f"/api/v2/assets/{output['id']}/content")).content
        assert content in (PICTURE + tenant.encode(), f"of {tenant}".encode())
        assert (await client.get(f"/api/v2/assets/{output['id']}")).json()["job_id"] == JOB
    said = await streamed(client, f"/api/v2/jobs/{JOB}/events")
    assert {o["id"] for o in said if "job_id" in o} == {o["id"] for o in job["outputs"]}
    # The web page's gallery
    gallery = (await client.get("/api/assets?tags_any=output")).json()["assets"]
    assert {(asset["name"], asset["job_id"]) for asset in gallery} == {(f"of_{tenant}.png", JOB)}
    assert [a["name"] for a in (await client.get(f"/api/jobs/{JOB}/assets")).json()["assets"]] == [f"of_{tenant}.png"]
    export = (await client.post("/api/assets/export", json={"job_ids": [JOB]})).json()["task_id"]
    assert (await client.get(f"/api/tasks/{export}")).json()["result"]["assets_total"] == 1


async def test_two_tenants_may_choose_the_same_ids_and_each_finds_its_own(tmp_path: Path, database_url: str) -> None:
    async with (
        world(tmp_path, database_url=database_url) as made,
        made.client(made.keys["a"]) as a,
        made.client(made.keys["b"]) as b,
        made.client(made.keys["root"]) as root,
        hearing(made, "a") as heard_by_a,
        hearing(made, "b") as heard_by_b,
    ):
        of = {"a": a, "b": b}
        heard = {"a": heard_by_a, "b": heard_by_b}
        hooks = {}
        for tenant in of:
            made.store.write(placed(FileRef("output", "", f"of_{tenant}.png"), tenant), PICTURE + tenant.encode())
        for name, client in {**of, "root": root}.items():
            asked = {"url": "https://hooks.example", "events": ["job.succeeded"]}
            hooks[name] = (await client.post("/api/webhooks", json=asked)).json()["id"]
        for tenant, client in of.items():
            await submitted(client, JOB)
            await submitted(client, JOB, "/api")  # again, as after a lost answer: it is the same job
            await made.replica.succeed(job_id_of(JOB, tenant), {"2": shown(tenant)})
            assert (await told(heard[tenant], "executed", JOB))["output"] == shown(tenant)
            await told(heard[tenant], "execution_success", JOB)
        for client in of.values():
            await submitted(client, CANCELLED)
            await submitted(client, WAITING)
        assert [m for m in heard_by_a if m["type"] == "executed"] != [m for m in heard_by_b if m["type"] == "executed"]
        for tenant, client in of.items():
            assert len([m for m in heard[tenant] if m["type"] == "executed"]) == 1
            await check_own(made, client, tenant, cancelled=False)
            [delivery] = (await client.get(f"/api/webhooks/{hooks[tenant]}/deliveries")).json()["deliveries"]
            assert (delivery["job_id"], delivery["payload"]["data"]["id"]) == (JOB, JOB)
        ids = [{o["id"] for o in (await c.get(f"/api/v2/jobs/{JOB}")).json()["outputs"]} for c in of.values()]
        assert not ids[0] & ids[1]
        # The operator can distinguish them.
        whole = {job_id_of(JOB, tenant) for tenant in of}
        assert set((await root.get("/history")).json()) == whole
        for tenant in of:
            job_id = job_id_of(JOB, tenant)
            assert (await root.get(f"/api/jobs/{job_id}")).json()["outputs"]["2"] == shown(tenant)
            assert (await root.get(f"/api/v2/jobs/{job_id}")).json()["id"] == job_id
            as_it = {"X-Tenant": tenant}
            assert (await root.get(f"/api/jobs/{JOB}", headers=as_it)).json()["outputs"]["2"] == shown(tenant)
        told_root = (await root.get(f"/api/webhooks/{hooks['root']}/deliveries")).json()["deliveries"]
        assert {delivery["payload"]["data"]["id"] for delivery in told_root} == whole
        # What one does to its own is done to none of the other's.
        assert (await a.post(f"/api/v2/jobs/{CANCELLED}/cancel")).json()["status"] == "canceled"
        assert (await a.post("/api/queue", json={"delete": [WAITING]})).status_code == 200
        await a.post("/api/interrupt", json={"prompt_id": WAITING})
        assert (await a.delete(f"/api/jobs/{JOB}")).status_code == 200
        assert (await a.get("/history")).json() == {}
        assert (await a.get(f"/api/v2/jobs/{JOB}")).status_code == 404
        await check_own(made, b, "b", cancelled=False)
        assert (await b.post("/api/jobs/cancel", json={"job_ids": [CANCELLED]})).json() == {"cancelled": True}
        await check_own(made, b, "b", cancelled=True)


async def test_an_output_that_was_kept_before_ids_were_tenants_own_keeps_its_asset(tmp_path: Path) -> None:
    async with world(tmp_path) as made, made.client(made.keys["a"]) as a:
        await submitted(a, JOB)
        await made.replica.succeed(job_id_of(JOB, "a"), {"2": shown("a")})
        former = [item.former_id for item in output_items(JOB, "a", "2", shown("a"))]
        kept = [
            Asset(each, None, "output", "of_a.png", 1, "image/png", None, (), 1.0, job_id=JOB, node_id="2")
            for each in former
        ]
        await made.service.for_tenant("a").query(RecordOutputs(tuple(kept)))
        assert [o["id"] for o in (await a.get(f"/api/v2/jobs/{JOB}")).json()["outputs"]] == former
