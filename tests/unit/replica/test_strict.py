"""Strict jobs through scheduler, replica and engine: their bits, and whose results they use."""

from __future__ import annotations

import json
import uuid
from pathlib import Path

import pytest
from PIL import Image

from serve_app.config.pool import PoolConfig
from serve_app.errors import InvalidGraphError
from serve_app.scheduler.protocol.client import JobView
from serve_app.store.database.changes import Submission
from tests.unit.replica.cluster import Cluster, cluster
from tests.unit.replica.test_runner import ONE, txt2img


async def submit(running: Cluster, seed: int, **extra_data: object) -> str:
    job_id = str(uuid.uuid4())
    prompt = txt2img(seed, text=f"a fox {'and a hen ' * seed}", steps=3)
    await running.scheduler.submit(Submission(job_id, prompt, ("6",), extra_data=extra_data))
    return job_id


async def finish(running: Cluster, job_id: str) -> tuple[JobView, bytes, set[str]]:
    """Return an ended job, its picture, and the nodes that ran for it."""
    view = await running.finish(job_id)
    assert view.state == "success", view.failure
    [image] = view.outputs["6"]["images"]
    ran = {e.data["node"] for e in await running.events(job_id) if e.kind == "executing"}
    return view, (running.config.output_dir / image["filename"]).read_bytes(), ran


async def test_a_strict_job_among_others_has_the_bits_it_has_alone_and_uses_strict_results_only(
    root: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    elsewhere = tmp_path_factory.mktemp("elsewhere")
    (elsewhere / "models").symlink_to(root / "models")
    async with cluster(elsewhere, ONE) as running:
        _, alone, _ = await finish(running, await submit(running, 1, strict=True))
    async with cluster(root, ONE) as running:
        await finish(running, await submit(running, 1))
        others = [await submit(running, seed) for seed in (2, 3, 4)]
        strict = await submit(running, 1, strict=True)
        _, among, ran = await finish(running, strict)
        assert ran == {"1", "2", "3", "4", "5", "6"}, "what was computed otherwise must not stand in"
        assert among == alone
        assert (await finish(running, await submit(running, 1, strict=True)))[2] == set()
        for job_id in others:
            await finish(running, job_id)


async def test_jobs_are_strict_by_configuration_unless_they_say(root: Path) -> None:
    async with cluster(root, ONE, strict=True) as running:
        usual, _, _ = await finish(running, await submit(running, 1, strict=False))
        strict, _, ran = await finish(running, await submit(running, 1))
        assert (usual.extra_data["strict"], strict.extra_data["strict"]) == (False, True)
        assert len(ran) == 6


async def test_a_job_and_its_pictures_name_their_pools_settings_and_a_strict_one_is_refused(root: Path) -> None:
    pools = (PoolConfig(name="gpu", threads=1, step_cache=0.4),)
    async with cluster(root, pools) as running:
        view, _, _ = await finish(running, await submit(running, 1))
        assert view.extra_data == {"optimizations": {"gpu": {"step_cache": 0.4}}}
        [image] = view.outputs["6"]["images"]
        with Image.open(running.config.output_dir / image["filename"]) as picture:
            assert json.loads(picture.info["optimizations"]) == {"gpu": {"step_cache": 0.4}}
        with pytest.raises(InvalidGraphError, match="pool gpu has step_cache"):
            await submit(running, 1, strict=True)
