"""A whole cluster whose files and models are in a bucket: what is reported done is stored, what is not fails."""

from __future__ import annotations

import asyncio
import io
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from serve_app.config.pool import PoolConfig
from serve_app.config.storage import BucketConfig, S3Config
from serve_app.store.files import s3
from serve_app.store.files.s3 import S3
from serve_app.store.files.store import FileRef
from serve_app.store.models import mirror
from serve_app.store.models.mirror import Mirror
from tests.unit.models.sample import write_sample_checkpoint
from tests.unit.replica.cluster import cluster
from tests.unit.replica.test_runner import txt2img

CPU = (PoolConfig(name="cpu", runtime=False),)


def place(bucket, section: type[BucketConfig], **more):
    location = bucket.location
    where = {"bucket": location.bucket, "prefix": location.prefix, "endpoint": location.endpoint, "path_style": True}
    return section(**{**where, **more})


def drawing(color: int) -> dict[str, object]:
    return {
        "1": {"class_type": "EmptyImage", "inputs": {"width": 8, "height": 8, "batch_size": 2, "color": color}},
        "2": {"class_type": "SaveImage", "inputs": {"images": ["1", 0], "filename_prefix": "sub/out"}},
    }


def pixel(bucket, image: dict[str, Any]) -> Any:
    with S3(bucket).open(FileRef(image["type"], image["subfolder"], image["filename"])) as file:
        return Image.open(io.BytesIO(file.read())).getpixel((0, 0))


async def test_many_replicas_save_into_a_bucket_and_every_job_has_its_own_pictures(tmp_path: Path, bucket) -> None:
    async with cluster(tmp_path, CPU, store=place(bucket, S3Config, kind="s3")) as running:
        await running.replica("another", CPU[0])
        jobs = {await running.submit(drawing(color), ("2",)): color for color in range(10, 18)}
        names = []
        for job_id, color in jobs.items():
            view = await running.finish(job_id)
            assert view.state == "success"
            images = view.outputs["2"]["images"]
            assert [pixel(bucket, image) for image in images] == [(0, 0, color)] * 2
            names += [image["filename"] for image in images]
        assert sorted(names) == sorted(S3(bucket).names("output", "sub"))
        assert len(set(names)) == 16


async def test_a_job_whose_output_cannot_be_stored_fails_with_the_reason(tmp_path: Path, bucket_of) -> None:
    nowhere = place(bucket_of("no-such-bucket"), S3Config, kind="s3", patience_s=0)
    async with cluster(tmp_path, CPU, store=nowhere) as running:
        view = await running.finish(await running.submit(drawing(1), ("2",)))
        assert view.state == "error"
        assert view.failure.node == "2"
        assert "NoSuchBucket" in view.failure.message
        assert view.outputs == {}


async def test_a_replica_opens_its_model_files_and_its_clients_files_once(
    tmp_path: Path, bucket, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened: list[str] = []

    class NotedS3(S3):
        def __init__(self, *given: Any) -> None:
            super().__init__(*given)
            opened.append("files")

    class NotedMirror(Mirror):
        def __init__(self, *given: Any) -> None:
            super().__init__(*given)
            opened.append("models")

    files, models = place(bucket, S3Config, kind="s3"), place(bucket, BucketConfig)
    async with cluster(tmp_path, CPU, store=files, models=models) as running:
        monkeypatch.setattr(s3, "S3", NotedS3)
        monkeypatch.setattr(mirror, "Mirror", NotedMirror)
        await running.replica("another", CPU[0])
    assert sorted(opened) == ["files", "models"]


async def test_an_uploaded_file_that_cannot_be_looked_up_is_reported_by_its_node(tmp_path: Path, bucket_of) -> None:
    nowhere = place(bucket_of("no-such-bucket"), S3Config, kind="s3", patience_s=0)
    prompt = {
        "1": {"class_type": "LoadImage", "inputs": {"image": "a.png"}},
        "2": {"class_type": "PreviewImage", "inputs": {"images": ["1", 0]}},
    }
    async with cluster(tmp_path, CPU, store=nowhere) as running:
        view = await running.finish(await running.submit(prompt, ("2",)))
        assert (view.state, view.failure.node) == ("error", "1")
        assert "NoSuchBucket" in view.failure.message


async def test_a_model_comes_from_its_bucket_to_the_host_that_runs_it(tmp_path: Path, bucket) -> None:
    file = tmp_path / "tiny.safetensors"
    await asyncio.to_thread(write_sample_checkpoint, file)
    bucket.put("checkpoints/tiny.safetensors", file.read_bytes(), "application/octet-stream")
    pools = (PoolConfig(name="gpu", threads=1),)
    async with cluster(tmp_path, pools, models=place(bucket, BucketConfig)) as running:
        view = await running.finish(await running.submit(txt2img(1, steps=1), ("6",)))
        assert view.state == "success", view.failure
    [copy] = (tmp_path / "models").rglob("tiny.safetensors")
    assert copy.read_bytes() == file.read_bytes()
