"""Whole replicas of the shipped configurations on a card that only claims to be one: they start, load, draw and save.

Torch's own Python runs over a driver that is not there (`tests.unit.engine.card_driver`), and kernels are a CPU's.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from k8s.generate import files
from serve_app.config import AppConfig
from serve_app.config.pool import PoolConfig
from serve_app.engine.loads import _Worker
from tests.unit.engine.card import Card
from tests.unit.engine.card_driver import GB, Driver, driven, threads_on
from tests.unit.models.sample import write_sample_checkpoint
from tests.unit.replica.cluster import Cluster, cluster
from tests.unit.replica.test_runner import txt2img

ROOT = Path(__file__).parents[3]
CONFIGS = {path.stem: path.read_text() for path in (ROOT / "configs").glob("*.yaml")}
MANIFESTS = {
    str(path.parent.relative_to(ROOT)): yaml.safe_load(text)["spec"]["serveConfigV2"]
    for path, text in files().items()
    if path.name == "serve-config.yaml"
}


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models")
    write_sample_checkpoint(folder / "checkpoints" / "tiny.safetensors")
    return folder


@pytest.fixture
def root(tmp_path: Path, models: Path) -> Path:
    (tmp_path / "models").symlink_to(models)
    return tmp_path


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


async def picture(running: Cluster, seed: int, **changes: Any) -> bytes:
    job_id = await running.submit(txt2img(seed, **changes), ("6",))
    view = await running.finish(job_id)
    assert view.state == "success", view.failure
    [image] = view.outputs["6"]["images"]
    return (running.config.output_dir / image["filename"]).read_bytes()


async def drawn(root: Path, pools: tuple[PoolConfig, ...], *prompts: dict[str, Any]) -> tuple[list[bytes], list[Any]]:
    """Return the pictures of jobs, and the replicas' counts of replays."""
    async with cluster(root, pools) as running:
        pictures = [await picture(running, **prompt) for prompt in prompts]
        models = [runner.models for runner in running.runners.values() if runner.models is not None]
        counts = [model.replays for model in models]
    for model in models:
        # They end with their process otherwise.
        model._engine.close()
        for worker in vars(model._loads).values():
            if isinstance(worker, _Worker):
                worker._waiting.put(None)
    return pictures, counts


@pytest.mark.parametrize("name", [*CONFIGS, *MANIFESTS])
async def test_a_replica_of_each_pool_starts_loads_draws_and_saves(root: Path, name: str) -> None:
    pools = pools_of((CONFIGS | MANIFESTS)[name])
    assert sum(pool.gpus for pool in pools) <= 1
    with a_card() as (card, driver):
        _, counts = await drawn(root, pools, *({"seed": seed} for seed in range(3)))
        assert max(count.replays for count in counts) == driver.asked["replay"] > 0
        assert max(count.failures for count in counts) == 0
        assert card.order.early == []
