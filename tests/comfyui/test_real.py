"""The pool over a real ComfyUI: `COMFYUI_HOME=/opt/ComfyUI pytest -m comfyui tests/comfyui`.

COMFYUI_PYTHON names its Python, venv/bin/python of the directory otherwise; COMFYUI_ARGUMENTS is "--cpu" otherwise.
"""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import AsyncIterator, Mapping
from pathlib import Path
from typing import Any

import aiohttp
import pytest
import pytest_asyncio
from PIL import Image

from serve_app.comfyui.client import Client
from serve_app.config.comfyui import ComfyUIConfig
from serve_app.config.pool import PoolConfig
from serve_app.scheduler.protocol.client import JobView
from serve_app.store.database.changes import Submission
from serve_app.store.files.store import FileRef
from tests.comfyui.pools import ARGUMENTS, HOME, PYTHON
from tests.parity.checkpoints import models_dir
from tests.unit.replica.cluster import Cluster, cluster

pytestmark = [
    pytest.mark.comfyui,
    pytest.mark.skipif(HOME is None, reason="COMFYUI_HOME names no ComfyUI"),
    pytest.mark.asyncio(loop_scope="module"),
]


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def pool(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Cluster]:
    """One replica, whose process all tests share."""
    assert HOME is not None
    comfyui = ComfyUIConfig(directory=Path(HOME), python=Path(PYTHON), arguments=ARGUMENTS)
    root = tmp_path_factory.mktemp("pool")
    (root / "models").symlink_to(models_dir("mini15"))
    async with cluster(root, (PoolConfig(name="comfyui", comfyui=comfyui.absolute(), stop_s=300),)) as running:
        yield running
        for runner in running.runners.values():
            await runner.leave()


def txt2img(seed: int, steps: int = 4, sampler: str = "euler") -> dict[str, Any]:
    """Return a text-to-image graph; node 7 saves."""
    return {
        "1": {"class_type": "CheckpointLoaderSimple", "inputs": {"ckpt_name": "mini15.safetensors"}},
        "2": {"class_type": "CLIPTextEncode", "inputs": {"text": "a red fox", "clip": ["1", 1]}},
        "3": {"class_type": "CLIPTextEncode", "inputs": {"text": "blurry", "clip": ["1", 1]}},
        "4": {"class_type": "EmptyLatentImage", "inputs": {"width": 64, "height": 64, "batch_size": 2}},
        "5": {
            "class_type": "KSampler",
            "inputs": {
                "seed": seed,
                "steps": steps,
                "cfg": 7.0,
                "sampler_name": sampler,
                "scheduler": "normal",
                "denoise": 1.0,
                "model": ["1", 0],
                "positive": ["2", 0],
                "negative": ["3", 0],
                "latent_image": ["4", 0],
            },
        },
        "6": {"class_type": "VAEDecode", "inputs": {"samples": ["5", 0], "vae": ["1", 2]}},
        "7": {"class_type": "SaveImage", "inputs": {"images": ["6", 0], "filename_prefix": "real/fox"}},
    }


async def through(pool: Cluster, prompt: Mapping[str, Any], *outputs: str, **extra_data: Any) -> JobView:
    job_id = str(uuid.uuid4())
    data = {"pool": "comfyui", **extra_data}
    await pool.scheduler.submit(Submission(job_id, prompt, outputs, extra_data=data))
    return await asyncio.wait_for(pool.finish(job_id), 300)


def client(pool: Cluster) -> Client:
    [runner] = pool.runners.values()
    found: Client = runner.client
    return found


async def direct(pool: Cluster, prompt: Mapping[str, Any], *outputs: str, **extra_data: Any) -> Mapping[str, Any]:
    """Return what the replica's own process shows for a graph, its caches emptied before."""
    asked, prompt_id = client(pool), str(uuid.uuid4())
    await asked.free(weights=False, results=True)
    await asyncio.sleep(1.0)  # it empties them when it next looks at its queue, and does not say when
    await asked.submit(prompt, prompt_id, "", extra_data, outputs)
    while (history := await asked.outputs(prompt_id)) is None:
        await asyncio.sleep(0.05)
    shown: Mapping[str, Any] = history["outputs"]
    return shown


def stored(pool: Cluster, item: Mapping[str, Any]) -> bytes:
    return (pool.config.directories[item["type"]] / item["subfolder"] / item["filename"]).read_bytes()


async def test_its_classes_are_known(pool: Cluster) -> None:
    specs = await pool.scheduler.specs("comfyui")
    assert len(specs) > 400
    assert "mini15.safetensors" in (specs["CheckpointLoaderSimple"].inputs[0].choices or ())


async def test_images_are_the_processs_own_byte_for_byte_metadata_too(pool: Cluster) -> None:
    workflow = {"extra_pnginfo": {"workflow": {"nodes": [], "version": 0.4}}}
    job = await through(pool, txt2img(7), "7", **workflow)
    assert job.state == "success", job.failure
    ours = [stored(pool, item) for item in job.outputs["7"]["images"]]
    shown = await direct(pool, txt2img(7), "7", **workflow)
    theirs = [await client(pool).read(FileRef("output", i["subfolder"], i["filename"])) for i in shown["7"]["images"]]
    assert len(ours) == 2
    assert ours == theirs
    assert ours[0] != ours[1]
    names = [item["filename"] for item in job.outputs["7"]["images"]]
    assert names == ["fox_00001_.png", "fox_00002_.png"]


async def test_steps_are_reported_and_a_second_run_is_cached(pool: Cluster) -> None:
    job = await through(pool, txt2img(8, steps=3), "7")
    events = await pool.events(job.job_id)
    assert {"node": "5", "value": 3, "max": 3} in [e.data for e in events if e.kind == "progress"]
    again = await through(pool, txt2img(8, steps=3), "7")
    told = [e.data["nodes"] for e in await pool.events(again.job_id) if e.kind == "cached"]
    assert "5" in told[-1]
    assert [stored(pool, i) for i in again.outputs["7"]["images"]] == [
        stored(pool, i) for i in job.outputs["7"]["images"]
    ]


async def test_an_uploaded_image_is_found(pool: Cluster) -> None:
    folder = pool.config.input_dir / "sub"
    folder.mkdir()
    Image.new("RGB", (16, 16), (10, 20, 30)).save(folder / "mine.png")
    prompt = {
        "1": {"class_type": "LoadImage", "inputs": {"image": "sub/mine.png"}},
        "2": {"class_type": "PreviewImage", "inputs": {"images": ["1", 0]}},
    }
    job = await through(pool, prompt, "2")
    assert job.state == "success", job.failure
    [item] = job.outputs["2"]["images"]
    assert item["type"] == "temp"
    assert Image.open(pool.config.temp_dir / item["filename"]).getpixel((3, 3)) == (10, 20, 30)


async def test_films_and_sound_are_kept(pool: Cluster) -> None:
    prompt = {
        "1": {"class_type": "EmptyImage", "inputs": {"width": 64, "height": 64, "batch_size": 8, "color": 255}},
        "2": {"class_type": "CreateVideo", "inputs": {"images": ["1", 0], "fps": 8.0}},
        "3": {
            "class_type": "SaveVideo",
            "inputs": {"video": ["2", 0], "filename_prefix": "video/film", "format": "auto", "codec": "auto"},
        },
        "4": {"class_type": "EmptyAudio", "inputs": {"duration": 0.5, "sample_rate": 44100, "channels": 2}},
        "5": {"class_type": "SaveAudio", "inputs": {"audio": ["4", 0], "filename_prefix": "audio/silence"}},
    }
    job = await through(pool, prompt, "3", "5")
    assert job.state == "success", job.failure
    [film], [sound] = job.outputs["3"]["images"], job.outputs["5"]["audio"]
    assert stored(pool, film)[4:8] == b"ftyp"
    assert stored(pool, sound)[:4] == b"fLaC"


async def test_refusals_and_failures_are_reported(pool: Cluster) -> None:
    refused = await through(pool, txt2img(1, sampler="no such sampler"), "7")
    assert refused.state == "error"
    assert "sampler_name" in refused.failure.message
    missing = txt2img(1)
    missing["4"]["inputs"]["width"] = 16
    missing["8"] = {"class_type": "ImageCrop", "inputs": {"image": ["6", 0], "width": 1, "height": 1, "x": 0, "y": 0}}
    missing["9"] = {"class_type": "ImageBatch", "inputs": {"image1": ["8", 0], "image2": ["4", 0]}}
    missing["7"]["inputs"]["images"] = ["9", 0]
    assert (await through(pool, missing, "7")).state == "error"


async def test_a_cancelled_job_stops_and_the_process_goes_on(pool: Cluster) -> None:
    [runner] = pool.runners.values()
    process = runner.process
    job_id = str(uuid.uuid4())
    await pool.scheduler.submit(Submission(job_id, txt2img(9, steps=2000), ("7",), extra_data={"pool": "comfyui"}))
    while not any(e.kind == "progress" for e in await pool.events(job_id)):
        await asyncio.sleep(0.05)
    assert await pool.scheduler.cancel(job_id)
    assert (await pool.finish(job_id)).state == "cancelled"
    assert (await through(pool, txt2img(10), "7")).state == "success"
    assert runner.process is process


async def test_its_own_pages_are_passed_on(pool: Cluster) -> None:
    [runner] = pool.runners.values()
    async with aiohttp.ClientSession() as session, session.get(f"{runner.client.url}/object_info/KSampler") as response:
        assert response.status == 200
