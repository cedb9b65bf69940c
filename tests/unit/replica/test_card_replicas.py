"""Whole replicas of the shipped configurations on a card that only claims to be one: they start, load, draw and save.

Torch's own Python runs over a driver that is not there (`tests.unit.engine.card_driver`), and kernels are a CPU's.
"""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import AsyncIterator, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from PIL import Image

from k8s.generate import files
from serve_app.config import AppConfig
from serve_app.config.pool import PoolConfig
from serve_app.config.resume import ResumeConfig
from serve_app.engine import run_state
from serve_app.engine.runtime import EngineRuntime
from serve_app.replica.assemble import device_of, memory_of
from serve_app.scheduler.protocol.client import JobView
from tests.unit.engine.card import Card
from tests.unit.engine.card_driver import CONTEXT_BYTES, GB, Driver, driven, threads_on
from tests.unit.replica.cluster import Cluster, cluster
from tests.workflows import txt2img

ROOT = Path(__file__).parents[3]
CONFIGS = {path.stem: path.read_text() for path in (ROOT / "configs").glob("*.yaml")}
MANIFESTS = {
    str(path.parent.relative_to(ROOT)): yaml.safe_load(text)["spec"]["serveConfigV2"]
    for path, text in files().items()
    if path.name == "serve-config.yaml"
}


@contextmanager
def a_card(**driver: Any) -> Iterator[tuple[Card, Driver]]:
    """A card for all threads that begin meanwhile, and this one."""
    card = Card(**{"total_bytes": 24 * GB} | driver)
    assert card.driver is not None
    matmul, cudnn = torch.backends.cuda.matmul, torch.backends.cudnn
    before = matmul.allow_fp16_accumulation, cudnn.benchmark, cudnn.deterministic
    try:
        with driven(card.driver), threads_on(card.used):
            yield card, card.driver
    finally:
        matmul.allow_fp16_accumulation, cudnn.benchmark, cudnn.deterministic = before


def pools_of(text: str) -> tuple[PoolConfig, ...]:
    """Return the pools of a configuration on a cluster with one GPU, but those that are a ComfyUI."""
    given = yaml.safe_load(text)["applications"][0]["args"]
    config = AppConfig(pools=given["pools"]).on(1)
    return tuple(pool for pool in config.pools if pool.comfyui is None)


def shipped() -> list[Any]:
    """Return the pools of each shipped configuration and manifest, and of none; equal ones once."""
    names: dict[str, list[str]] = {}
    pools: dict[str, tuple[PoolConfig, ...]] = {}
    for name, found in {"none": AppConfig().on(1).pools, **of_files()}.items():
        pools[repr(found)] = found
        names.setdefault(repr(found), []).append(name)
    return [pytest.param(found, id=", ".join(names[key])) for key, found in pools.items()]


def of_files() -> dict[str, tuple[PoolConfig, ...]]:
    return {name: pools_of(text) for name, text in (CONFIGS | MANIFESTS).items()}


def test_the_image_starts_without_a_configuration_or_with_a_shipped_one() -> None:
    commands = re.findall(r"^CMD (.*)$", (ROOT / "Dockerfile").read_text(), re.MULTILINE)
    assert commands
    for command in commands:
        said = json.loads(command)
        assert said[:2] == ["serve-app", "up"]
        assert "--config" not in said or Path(said[said.index("--config") + 1]).stem in CONFIGS


@asynccontextmanager
async def replicas(root: Path, pools: tuple[PoolConfig, ...], **settings: Any) -> AsyncIterator[Cluster]:
    """Replicas whose threads all begin here, so that they use the card that there is now.

    They draw anew what others of the folder have drawn, unless the settings say otherwise.
    """
    settings.setdefault("results", None)
    asyncio.get_running_loop().set_default_executor(ThreadPoolExecutor())
    async with cluster(root, pools, **settings) as running:
        try:
            yield running
        finally:
            end(running)


def prompt(seed: int, name: str = "tiny", steps: int = 4) -> dict[str, Any]:
    return txt2img(f"{name}.safetensors", seed, steps=steps)


async def picture(running: Cluster, seed: int, name: str = "tiny", steps: int = 4) -> bytes:
    """Return the pixels that a job saves."""
    view = await running.finish(await running.submit(prompt(seed, name, steps), ("6",)))
    assert view.state == "success", view.failure
    return pixels(running, view)


def pixels(running: Cluster, view: JobView) -> bytes:
    """Return the pixels that a job has saved."""
    [image] = view.outputs["6"]["images"]
    return Image.open(running.config.output_dir / image["filename"]).tobytes()


async def drawn(root: Path, pools: tuple[PoolConfig, ...], *jobs: dict[str, Any]) -> tuple[list[bytes], list[Any]]:
    """Return the pictures of jobs, and the replicas' counts of replays."""
    async with replicas(root, pools) as running:
        pictures = [await picture(running, **job) for job in jobs]
        counts = [runner.models.replays for runner in running.runners.values() if runner.models is not None]
    return pictures, counts


def end(running: Cluster) -> None:
    """End the threads of replicas that have no more work; otherwise they end with their process."""
    for runner in running.runners.values():
        if (models := runner.models) is not None:
            assert isinstance(models, EngineRuntime)
            models.close()


@pytest.mark.parametrize("pools", shipped())
async def test_a_replica_of_each_pool_starts_loads_draws_and_saves(root: Path, pools: tuple[PoolConfig, ...]) -> None:
    assert sum(pool.gpus for pool in pools) <= 1
    with a_card() as (card, driver):
        _, counts = await drawn(root, pools, *({"seed": seed} for seed in range(3)))
        assert max(count.replays for count in counts) == driver.asked["replay"] > 0
        assert max(count.failures for count in counts) == 0
        assert card.order.early == []


GPU = PoolConfig(name="gpu", num_gpus=1, threads=1)
NAMES = ("tiny", "other")
SEEDS = 1000
"""More than there are jobs, for those after one that failed."""


async def test_pictures_by_graphs_are_those_without_to_the_bit(root: Path) -> None:
    found = []
    for graphs in (True, False):
        with a_card() as (_, driver):
            pool = GPU.model_copy(update={"graphs": graphs})
            pictures, [counts] = await drawn(root, (pool,), *({"seed": seed, "steps": 6} for seed in range(2)))
            assert (counts.recordings > 0) is (counts.replays > 0) is (driver.asked["replay"] > 0) is graphs
        found.append(pictures)
    assert found[0] == found[1]


async def test_graphs_are_made_dropped_and_made_again_as_models_take_turns(root: Path, models: Path) -> None:
    (models / "checkpoints" / "other.safetensors").write_bytes(
        (models / "checkpoints" / "tiny.safetensors").read_bytes()
    )
    # One of the two fits.
    pool = GPU.model_copy(update={"weights_bytes": 20_000_000})
    with a_card() as (card, _):
        jobs = [{"seed": seed, "steps": 4, "name": name} for seed in (1, 2) for name in NAMES]
        pictures, [counts] = await drawn(root, (pool,), *jobs)
        assert (counts.failures, counts.dropped) == (0, 0)
        assert counts.recordings == len(jobs)
        assert pictures[0] == pictures[1] != pictures[2] == pictures[3]
        assert card.order.early == []


@pytest.mark.parametrize("tried", [4, pytest.param(500, marks=pytest.mark.long)])
async def test_a_job_that_finds_no_memory_somewhere_ends_and_the_next_is_as_any_other(root: Path, tried: int) -> None:
    """Weights are loaded anew for each job, so that allocations of one from its first to its last are tried."""
    pictures: dict[int, bytes] = {}
    failed = 0
    with a_card() as (_, driver):
        async with replicas(root, (GPU,)) as running:
            await picture(running, 0)
            release, before = running.runners["gpu"].models.release, driver.allocations
            await release()
            await picture(running, 1)
            of_a_job = driver.allocations - before
            for seed, place in enumerate(sorted({part * of_a_job // tried for part in range(tried)}), 2):
                await release()
                driver.fails_at = driver.allocations + 1 + place
                view = await running.finish(await running.submit(prompt(seed), ("6",)))
                # Of some jobs fewer allocations are needed than of the one that was counted.
                failed += driver.allocations >= driver.fails_at
                driver.fails_at = None
                if view.state == "success":
                    pictures[seed] = pixels(running, view)
                else:
                    # Nothing else is there that could make way for it.
                    assert "memory" in str(view.failure)
                    pictures[-seed] = await picture(running, SEEDS + seed)
            assert running.exits == []
    assert failed > len(pictures) / 2
    with a_card():
        seeds = [seed if seed > 0 else SEEDS - seed for seed in pictures]
        wanted, _ = await drawn(root, (GPU,), *({"seed": seed} for seed in seeds))
    assert max(map(difference, pictures.values(), wanted)) <= 4


def difference(one: bytes, other: bytes) -> int:
    """Return by how much two pictures differ at most: rows that were split have other roundings."""
    return max(abs(a - b) for a, b in zip(one, other, strict=True))


async def test_a_lost_card_ends_its_replica_and_no_job(root: Path) -> None:
    with a_card() as (_, driver):
        async with replicas(root, (GPU,)) as running:
            await picture(running, 1)
            job_id = await running.submit(prompt(2, steps=40), ("6",))
            await running.until(job_id, "executing")
            driver.fault = torch.AcceleratorError("CUDA error: an illegal memory access was encountered")
            models = running.runners["gpu"].models
            while models.alive:
                await asyncio.sleep(0.01)
            driver.fault = None
            end(running)
            # Serve starts another, as this one's health is gone.
            await running.lose("gpu")
            await running.replica("gpu", GPU)
            assert (await running.finish(job_id)).state == "success"


def test_the_shares_of_one_card_and_their_contexts_fit_it() -> None:
    taken = 0
    for pool in pools_of(CONFIGS["cluster"]):
        if not pool.gpus:
            continue
        with a_card(taken_bytes=taken) as (_, driver):
            memory_of(pool, device_of(pool))
            taken += CONTEXT_BYTES + int(driver.fraction * driver.total_bytes)
    assert 23 * GB < taken <= 24 * GB


@asynccontextmanager
async def a_replica(root: Path, kind: str) -> AsyncIterator[Cluster]:
    """A replica of the card or of a CPU, which keeps the state of its runs at each step."""
    settings: dict[str, Any] = {"resume": ResumeConfig(after_s=0.0), "cache": "none"}
    if kind == "cpu":
        async with cluster(root, (PoolConfig(name="gpu", device="cpu", threads=1),), **settings) as running:
            yield running
    else:
        with a_card():
            async with replicas(root, (GPU,), **settings) as running:
                yield running


@pytest.mark.parametrize("kinds", [("gpu", "cpu"), pytest.param(("cpu", "gpu"), marks=pytest.mark.long)])
async def test_a_run_goes_on_on_another_kind_of_device(
    root: Path, kinds: tuple[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(run_state, "SHARE", 1e9)
    first, second = kinds
    async with a_replica(root, first) as running:
        job_id = await running.submit(prompt(5, steps=60), ("6",))
        async with asyncio.timeout(120):
            while (models := running.runners["gpu"].models) is None or models.counters.evaluations < 15:
                await asyncio.sleep(0.002)
        await running.runners["gpu"].leave()
    async with a_replica(root, second) as running:
        view = await running.finish(job_id)
        assert view.state == "success", view.failure
        models = running.runners["gpu"].models
        assert models.weights.device.type == ("cuda" if second == "gpu" else "cpu")
        assert (models.run_states.resumed, models.run_states.steps >= 14) == (1, True)
        undisturbed = await picture(running, 5, steps=60)
        # Their dtypes differ, so rounding does.
        one, other = (np.frombuffer(each, np.uint8).astype(int) for each in (pixels(running, view), undisturbed))
        assert np.abs(one - other).mean() < 2
