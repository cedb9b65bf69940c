"""Models that are loaded before any job asks for them, and where the scheduler then sends the job."""

from __future__ import annotations

import asyncio
from functools import partial
from pathlib import Path

import pytest
from safetensors.torch import save_file

from serve_app.config.pool import PoolConfig
from serve_app.errors import InvalidSubmissionError
from tests import workflows
from tests.parity.text_cases import CASES, tensors
from tests.unit.models.sample import write_sample_checkpoint
from tests.unit.replica.cluster import Cluster, cluster

TINY = "checkpoints/tiny.safetensors"
POOL = PoolConfig(name="gpu", threads=1)
txt2img = partial(workflows.txt2img, "tiny.safetensors", steps=1, prefix="out")


@pytest.fixture
def root(tmp_path: Path) -> Path:
    write_sample_checkpoint(tmp_path / "models" / "checkpoints" / "tiny.safetensors")
    return tmp_path


async def held(running: Cluster, name: str, parts: int) -> None:
    """Return once the scheduler knows that a replica holds so many parts."""
    async with asyncio.timeout(60):
        while True:
            views = {view.replica_id: view.recipes for view in (await running.scheduler.cluster()).replicas}
            if len(views[name]) == parts:
                return
            await asyncio.sleep(0.02)


async def test_a_replica_holds_what_its_pool_names_before_any_job(root: Path) -> None:
    pool = POOL.model_copy(update={"warm": ("checkpoints/none.safetensors", TINY)})
    async with cluster(root, (pool,)) as running:
        await held(running, "gpu", 3)
        loads = running.runners["gpu"].models.loads.loads
        assert (await running.finish(await running.submit(txt2img(1), ("6",)))).state == "success"
        assert running.runners["gpu"].models.loads.loads == loads == 3


async def test_text_encoders_are_loaded_ahead_as_the_loader_of_a_job_asks_for_them(root: Path) -> None:
    (root / "models" / "text_encoders").mkdir()
    for name, family in CASES["sd3_clips"].files.items():
        save_file(tensors(family), root / "models" / "text_encoders" / f"{name}.safetensors")
    files = {"clip_name1": "l.safetensors", "clip_name2": "g.safetensors"}
    prompt = {
        "1": {"class_type": "DualCLIPLoader", "inputs": {**files, "type": "sdxl"}},
        "2": {"class_type": "CLIPTextEncode", "inputs": {"text": "a fox", "clip": ["1", 0]}},
        "3": {"class_type": "PreviewAny", "inputs": {"source": ["2", 0]}},
    }
    async with cluster(root, (POOL,)) as running:
        assert await running.scheduler.warm(["text_encoders/l.safetensors + g.safetensors as sdxl"], None) == ("gpu",)
        await held(running, "gpu", 1)
        loads = running.runners["gpu"].models.loads.loads
        assert (await running.finish(await running.submit(prompt, ("3",)))).state == "success"
        assert running.runners["gpu"].models.loads.loads == loads


async def test_a_job_goes_to_the_replica_that_was_warmed_for_it(root: Path) -> None:
    async with cluster(root, (POOL,)) as running:
        assert await running.scheduler.warm([TINY], "gpu") == ("gpu",)
        await held(running, "gpu", 3)
        await running.replica("cold", POOL)
        view = await running.finish(await running.submit(txt2img(2), ("6",)))
        assert view.state == "success"
        assert (await running.models("cold")).loads.loads == 0
        with pytest.raises(InvalidSubmissionError, match="no pool is named 'gpx'; there are gpu; did you mean 'gpu'"):
            await running.scheduler.warm([TINY], "gpx")
