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
import time
from pathlib import Path
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
        self.film, self.calls, self.closed = iter(range(5)), iter(range(99)), False
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
        here = Path(__file__)
        if next(manager.calls) and here.with_name("hold").exists():
            here.with_name("held").touch()
            while here.with_name("hold").exists():
                time.sleep(0.01)
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


async def test_a_job_that_loses_its_replica_between_rounds_begins_again_and_gives_the_whole(tmp_path: Path) -> None:
    async with film(tmp_path, ONE) as running:
        job = await held_in_its_second_round(running, tmp_path / "packs")
        await running.lose("cpu")
        (tmp_path / "packs" / "hold").unlink()
        await running.replica("another")
        view = await running.finish(job)
        assert (view.state, view.outputs) == ("success", WHOLE)


async def test_cancelling_a_job_ends_all_that_is_left_of_its_rounds(tmp_path: Path) -> None:
    async with film(tmp_path, ONE) as running:
        job = await held_in_its_second_round(running, tmp_path / "packs")
        await running.scheduler.cancel(job)
        (tmp_path / "packs" / "hold").unlink()
        assert (await running.finish(job)).state == "cancelled"
        assert (await run(running)).outputs == WHOLE
        count = await running.scheduler.count()
        assert (count.running, count.pending) == (0, 0)


async def held_in_its_second_round(running: Cluster, packs: Path) -> str:
    """Submit a job and return its id once it waits in its second round, as long as the file `hold` is there."""
    (packs / "hold").touch()
    service = Service(running.scheduler, Volume(running.config.directories), lambda folder: [], LIMITS)
    job = (await service.submit({"prompt": PROMPT})).job_id
    while not (packs / "held").exists():
        await asyncio.sleep(0.01)
    return job
