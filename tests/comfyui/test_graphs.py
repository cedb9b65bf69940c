"""Random graphs against the answers of ComfyUI 0.33.0 that are kept in graphs.jsonl.

`python -m tests.comfyui.graph_fuzz … --keep` made that: graphs of many classes without models, right and slightly wrong
ones. A whole cluster in this process answers them, over HTTP.
"""

from __future__ import annotations

import asyncio
import json
from functools import partial
from pathlib import Path
from typing import Any

import httpx

from serve_app.api.app import create_app
from serve_app.config.pool import PoolConfig
from serve_app.graph.plan import Pool
from serve_app.replica.files import open_catalog, open_store
from serve_app.service.request_limits import Limits
from serve_app.service.service import Service
from serve_app.store.files.input_folders import choices
from serve_app.store.page.userdata import UserData
from tests.comfyui.graph_answers import Answer, differences, unexplained
from tests.comfyui.graph_folders import prepare
from tests.unit.api.scripted_replica import Reached
from tests.unit.replica.cluster import Cluster, cluster

KEPT = [json.loads(line) for line in (Path(__file__).parent / "graphs.jsonl").read_text().splitlines()]


def service_of(running: Cluster) -> Service:
    """Return a service over a cluster in this process."""
    config = running.config
    store, catalog = open_store(config), open_catalog(config)
    return Service(
        Reached(running.scheduler).client,
        store,
        partial(choices, store, catalog),
        Limits.of(config),
        catalog=catalog,
        user_data=UserData(config.user_dir),
        pools=[Pool.of(pool) for pool in config.pools],
    )


async def answer(client: httpx.AsyncClient, graph: dict[str, Any]) -> Answer:
    """Return the answer to a workflow, once it has ended."""
    response = await client.post("/api/prompt", content=json.dumps({"prompt": graph}))
    answered = Answer(response.status_code, response.json())
    while answered.status == 200 and not answered.entry:
        await asyncio.sleep(0.01)
        job_id = answered.body["prompt_id"]
        answered.entry = (await client.get(f"/api/history/{job_id}")).json().get(job_id, {})
    return answered


async def test_random_graphs_are_answered_as_by_comfyui(tmp_path: Path) -> None:
    home = prepare(tmp_path / "home", models=False)
    async with cluster(home, (PoolConfig(name="cpu", threads=1),), custom_nodes_dir=home / "custom_nodes") as running:
        transport = httpx.ASGITransport(app=create_app(service_of(running)))
        async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
            found = []
            for number, kept in enumerate(KEPT):
                theirs = Answer(kept["status"], kept["body"], kept["entry"])
                ours = await answer(client, kept["graph"])
                _, rest = unexplained(list(differences(theirs, ours, kept["graph"])), kept["graph"])
                found += [(number, difference) for difference in rest]
    assert found == []
