"""Equal workflows after a restart of everything: answered from stored results, as before it from memory."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest

from serve_app.config.pool import PoolConfig
from serve_app.config.results import ResultsConfig
from serve_app.events import Event
from tests import workflows
from tests.unit.replica.cluster import Cluster, cluster

ONE = PoolConfig(name="gpu", threads=1)


async def run(running: Cluster, graph: dict[str, Any]) -> tuple[Any, list[Event]]:
    job_id = await running.submit(graph, ("6",))
    view = await running.finish(job_id)
    assert view.state == "success", view.failure
    return view.outputs, await running.events(job_id)


def nodes(events: list[Event], kind: str) -> set[str]:
    found = (event.data for event in events if event.kind == kind)
    return {node for data in found for node in (data["nodes"] if kind == "cached" else [data["node"]])}


async def kept(running: Cluster, results: int) -> None:
    counters = running.runners["gpu"].stored.counters
    while counters.kept < results:
        await asyncio.sleep(0.002)


@pytest.mark.parametrize("shows", ["SaveImage", "PreviewImage"])
async def test_an_equal_workflow_is_cached_after_a_restart_and_another_goes_on_from_what_they_share(
    root: Path, shows: str
) -> None:
    graph = workflows.txt2img("tiny.safetensors", 3, steps=4)
    if shows == "PreviewImage":
        graph["6"] = {"class_type": shows, "inputs": {"images": graph["6"]["inputs"]["images"]}}
    settings: dict[str, Any] = {"results": ResultsConfig(after_s=0.0)}
    async with cluster(root, (ONE,), **settings) as running:
        before, _ = await run(running, graph)
        await kept(running, 3)
    async with cluster(root, (ONE,), **settings) as running:
        again, events = await run(running, graph)
        assert again == before
        assert nodes(events, "cached") == set(graph)
        assert nodes(events, "executing") == set()
        # Only what it does not share is computed.
        other = {"class_type": "SaveImage", "inputs": {"images": ["5", 0], "filename_prefix": "other"}}
        _, events = await run(running, graph | {"6": other})
        assert "3" in nodes(events, "cached")
        assert nodes(events, "executing").isdisjoint({"1", "2", "3"})


async def test_nothing_outlives_a_restart_where_that_is_configured_or_the_picture_was_deleted(root: Path) -> None:
    graph = workflows.txt2img("tiny.safetensors", 4, steps=2)
    for settings in ({"results": None}, {"results": ResultsConfig(after_s=0.0)}):
        async with cluster(root, (ONE,), **settings) as running:
            _, events = await run(running, graph)
            assert {"3", "6"} <= nodes(events, "executing")
            if settings["results"] is not None:
                await kept(running, 3)
                for picture in running.config.output_dir.iterdir():
                    picture.unlink()
    async with cluster(root, (ONE,), results=ResultsConfig(after_s=0.0)) as running:
        _, events = await run(running, graph)
        assert "6" in nodes(events, "executing")
        assert "3" not in nodes(events, "executing")
