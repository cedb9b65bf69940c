"""A replica that works loads the model of the job behind, so that it is there as that job begins."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from serve_app.config.pool import PoolConfig
from serve_app.recipe.warm import warm_recipes
from serve_app.scheduler.protocol.messages import Prefetch
from tests import workflows
from tests.unit.models.sample import write_sample_checkpoint
from tests.unit.replica.cluster import Cluster, cluster

POOL = PoolConfig(name="gpu", threads=1, tasks_per_replica=1)
NAMES = ("first", "second", "third")


def job(name: str, seed: int, steps: int = 1) -> dict[str, Any]:
    made: dict[str, Any] = workflows.txt2img(f"{name}.safetensors", seed, steps=steps, prefix="out")
    return made


async def until(condition: Any) -> None:
    async with asyncio.timeout(120):
        while not condition():
            await asyncio.sleep(0.02)


def names(running: Cluster) -> set[str]:
    return {name.rpartition("/")[2] for name in running.runners["gpu"].models.resident()}


async def test_the_model_of_the_job_behind_is_loaded_while_one_runs(tmp_path: Path) -> None:
    for name in NAMES:
        write_sample_checkpoint(tmp_path / "models" / "checkpoints" / f"{name}.safetensors")
    async with cluster(tmp_path, (POOL,)) as running:
        # What loading takes is known by then.
        assert (await running.finish(await running.submit(job("first", 1), ("6",)))).state == "success"
        models = running.runners["gpu"].models
        endless = await running.submit(job("first", 2, steps=5000), ("6",))
        behind = await running.submit(job("second", 3), ("6",))
        await until(lambda: len(models.resident()) == 6)
        assert names(running) == {"first.safetensors", "second.safetensors"}
        loads = models.loads.loads
        await running.scheduler.cancel(endless)
        assert (await running.finish(behind)).state == "success"
        assert models.loads.loads == loads
        assert (models.prefetched.used, models.prefetched.dropped) == (3, 0)


async def test_the_lora_of_the_job_behind_is_loaded_while_one_runs(tmp_path: Path) -> None:
    write_sample_checkpoint(tmp_path / "models" / "checkpoints" / "first.safetensors")
    (tmp_path / "models" / "loras").mkdir()
    query = "lora_unet_input_blocks_1_1_transformer_blocks_0_attn1_to_q"
    style = {f"{query}.lora_up.weight": torch.ones(32, 4), f"{query}.lora_down.weight": torch.ones(4, 32)}
    save_file(style, tmp_path / "models" / "loras" / "style.safetensors")
    styled = job("first", 3)
    lora = {"model": ["1", 0], "clip": ["1", 1], "lora_name": "style.safetensors"}
    strengths = {"strength_model": 0.5, "strength_clip": 0.0}
    styled["7"] = {"class_type": "LoraLoader", "inputs": lora | strengths}
    styled["3"]["inputs"]["model"], styled["2"]["inputs"]["clip"] = ["7", 0], ["7", 1]
    async with cluster(tmp_path, (POOL,)) as running:
        assert (await running.finish(await running.submit(job("first", 1), ("6",)))).state == "success"
        models = running.runners["gpu"].models
        endless = await running.submit(job("first", 2, steps=5000), ("6",))
        behind = await running.submit(styled, ("6",))
        await until(lambda: any("style.safetensors" in name for name in models.resident()))
        loads = models.loads.loads
        await running.scheduler.cancel(endless)
        assert (await running.finish(behind)).state == "success"
        assert models.loads.loads == loads
        assert (models.prefetched.used, models.prefetched.dropped) == (1, 0)


async def test_a_plan_takes_the_place_of_the_one_before(tmp_path: Path) -> None:
    for name in NAMES:
        write_sample_checkpoint(tmp_path / "models" / "checkpoints" / f"{name}.safetensors")
    async with cluster(tmp_path, (POOL,)) as running:
        runner = running.runners["gpu"]
        await running.models("gpu")
        runner.take(Prefetch(warm_recipes("checkpoints/second.safetensors")))
        third = warm_recipes("checkpoints/third.safetensors")
        runner.take(Prefetch((*warm_recipes("checkpoints/none.safetensors"), third[0].with_lora("none", 1.0), *third)))
        await until(lambda: runner.models.prefetched.begun == 3)
        assert names(running) == {"third.safetensors"}
        runner.take(Prefetch())
        await asyncio.sleep(0)
        assert runner.models.prefetched.begun == 3
