"""Jobs whose nodes queue their own workflow again, as VideoHelperSuite's do, through scheduler and replicas."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

from serve_app.config.pool import PoolConfig
from serve_app.scheduler.protocol.client import JobView
from serve_app.service.service import Service
from serve_app.store.files.volume import Volume
from tests.unit.replica.cluster import Cluster, cluster
from tests.usual_limits import LIMITS

PACK = """
from server import PromptServer

queue = PromptServer.instance.prompt_queue
counted = [None, 0]

class Manager:
    RETURN_TYPES = ("MANAGER",)
    FUNCTION = "go"
    @classmethod
    def INPUT_TYPES(cls):
        return {"required": {"frames": ("INT",)}, "hidden": {"prompt": "PROMPT", "own": "UNIQUE_ID"}}
    def __init__(self):
        self.film, self.closed = iter(range(5)), False
    def go(self, frames, prompt, own):
        self.frames = frames
        return (self,)

class Read:
    RETURN_TYPES = ("LIST",)
    FUNCTION = "go"
    @classmethod
    def INPUT_TYPES(cls):
        return {"required": {"manager": ("MANAGER",)}}
    def go(self, manager):
        found = [frame for _, frame in zip(range(manager.frames), manager.film)]
        manager.closed = len(found) < manager.frames
        return (found,)

class Combine:
    RETURN_TYPES = ()
    FUNCTION = "go"
    OUTPUT_NODE = True
    @classmethod
    def INPUT_TYPES(cls):
        return {"required": {"frames": ("LIST",), "manager": ("MANAGER",)}, "hidden": {"own": "UNIQUE_ID"}}
    def go(self, frames, manager, own):
        [(number, _, prompt, extra_data, outputs, _)] = queue.currently_running.values()
        if counted[0] != number:
            counted[:] = number, 0
        counted[1] += 1
        if counted[1] == 2 and not manager.closed:
            prompt["m"]["inputs"]["requeue"] = prompt["m"]["inputs"].get("requeue", 0) + 1
            queue.put((number, "", prompt, extra_data, outputs))
        return {"ui": {"frames": frames}}

NODE_CLASS_MAPPINGS = {c.__name__: c for c in (Manager, Read, Combine)}
"""
PROMPT = {
    "m": {"class_type": "Manager", "inputs": {"frames": 2}},
    "r": {"class_type": "Read", "inputs": {"manager": ["m", 0]}},
    "a": {"class_type": "Combine", "inputs": {"frames": ["r", 0], "manager": ["m", 0]}},
    "b": {"class_type": "Combine", "inputs": {"frames": ["r", 0], "manager": ["m", 0]}},
}
WHOLE = {"a": {"frames": [0, 1, 2, 3, 4]}, "b": {"frames": [0, 1, 2, 3, 4]}}
ONE = (PoolConfig(name="cpu", runtime=False, threads=1, tasks_per_replica=4),)
SPLIT = (
    PoolConfig(name="films", runtime=False, threads=1, accepts=("Manager", "Combine")),
    PoolConfig(name="rest", runtime=False, threads=1, accepts=("Read",)),
)


def film(root: Path, pools: tuple[PoolConfig, ...]) -> Any:
    packs = root / "packs"
    packs.mkdir()
    (packs / "film.py").write_text(PACK)
    return cluster(root, pools, custom_nodes_dir=packs)


async def run(running: Cluster) -> JobView:
    service = Service(running.scheduler, Volume(running.config.directories), lambda folder: [], LIMITS)
    return await running.finish((await service.submit({"prompt": PROMPT})).job_id)


async def test_jobs_that_run_in_rounds_do_not_mix_and_each_reads_its_film_to_the_end(tmp_path: Path) -> None:
    async with film(tmp_path, ONE) as running:
        views = await asyncio.gather(*(run(running) for _ in range(3)))
        again = await run(running)
        assert [(view.state, view.outputs) for view in (*views, again)] == [("success", WHOLE)] * 4


async def test_a_job_of_several_pools_cannot_run_in_rounds_and_says_why(tmp_path: Path) -> None:
    async with film(tmp_path, SPLIT) as running:
        view = await run(running)
        assert view.state == "error"
        assert view.failure.message == "Manager gives others its own object, so one pool has to run all that needs it"
