"""A replica that is a ComfyUI, the stand-in, whose model files are in a bucket."""

from __future__ import annotations

import asyncio
import uuid
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from serve_app.config.storage import BucketConfig
from serve_app.replica import comfyui_runner
from serve_app.store.database.changes import Submission
from serve_app.store.files.bucket import Bucket
from serve_app.store.models import mirror
from tests.comfyui.pools import standin
from tests.unit.replica.cluster import Cluster, cluster
from tests.unit.replica.test_bucket import place


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(comfyui_runner, "REFRESH_S", 0.05)
    monkeypatch.setattr(mirror, "LISTING_S", 0.0)


def graph(name: str) -> dict[str, Any]:
    """Return a graph that saves an image of the colour that a checkpoint's first bytes are."""
    return {
        "1": {"class_type": "StandInCheckpoint", "inputs": {"ckpt_name": name}},
        "save": {"class_type": "SaveImage", "inputs": {"images": ["1", 0], "filename_prefix": "pool"}},
    }


async def drawn(running: Cluster, root: Path, name: str) -> Any:
    """Return the colour of what the pool makes of a checkpoint."""
    job_id = str(uuid.uuid4())
    await running.scheduler.submit(Submission(job_id, graph(name), ("save",), extra_data={"pool": "comfyui"}))
    job = await running.finish(job_id)
    assert job.state == "success", job.failure
    [image] = job.outputs["save"]["images"]
    return Image.open(root / "output" / image["filename"]).getpixel((0, 0))


async def offered(running: Cluster) -> tuple[Any, ...]:
    return (await running.scheduler.specs("comfyui"))["StandInCheckpoint"].inputs[0].choices or ()


async def test_what_a_graph_names_is_fetched_from_the_bucket_and_nothing_else(tmp_path: Path, bucket: Bucket) -> None:
    for name, colour in (("a.safetensors", (1, 2, 3)), ("sub/b.ckpt", (4, 5, 6))):
        bucket.put(f"checkpoints/{name}", bytes(colour), "application/octet-stream")
    async with cluster(tmp_path, (standin("comfyui"),), models=place(bucket, BucketConfig)) as running:
        try:
            async with asyncio.timeout(60):
                assert await offered(running) == ("a.safetensors", "sub/b.ckpt")
                assert await drawn(running, tmp_path, "sub/b.ckpt") == (4, 5, 6)
                copies = [path.name for path in (tmp_path / "models").rglob("*") if path.is_file()]
                assert [name for name in copies if name[0] != "."] == ["b.ckpt"]

                bucket.put("checkpoints/new.safetensors", bytes((7, 8, 9)), "application/octet-stream")
                bucket.delete("checkpoints/a.safetensors")
                while await offered(running) != ("new.safetensors", "sub/b.ckpt"):
                    await asyncio.sleep(0.02)
                assert await drawn(running, tmp_path, "new.safetensors") == (7, 8, 9)
        finally:
            for runner in running.runners.values():
                await runner.leave()
