"""A replica that is a ComfyUI, against the stand-in: what its jobs leave behind, and what its death costs."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import threading
import uuid
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from serve_app.config.pool import PoolConfig
from serve_app.errors import NotReadyError
from serve_app.replica.comfyui_runner import ComfyUIRunner
from serve_app.store.database.changes import Submission
from serve_app.store.files.store import FileRef
from serve_app.store.files.volume import Volume
from serve_app.store.tenants.pauses import Pause
from tests.comfyui.pools import STANDIN, graph, standin
from tests.unit.replica.cluster import Cluster, cluster


@contextlib.asynccontextmanager
async def pool(root: Path, *arguments: str, **settings: Any) -> AsyncIterator[Cluster]:
    """Run one replica that is the stand-in; it is ended with the test."""
    config = {k: settings.pop(k) for k in ("stop_s",) if k in settings}
    async with cluster(root, (standin("comfyui", *arguments, **config),), **settings) as running:
        try:
            yield running
        finally:
            for runner in running.runners.values():
                await runner.leave()


async def submit(running: Cluster, prompt: dict[str, Any], *outputs: str, **extra_data: Any) -> str:
    job_id = str(uuid.uuid4())
    data = {"pool": "comfyui", **extra_data}
    await running.scheduler.submit(Submission(job_id, prompt, outputs or ("save",), extra_data=data))
    return job_id


async def seen(running: Cluster, job_id: str, kind: str) -> list[Any]:
    return [event.data for event in await running.events(job_id) if event.kind == kind]


async def begun(running: Cluster, job_id: str, node: str) -> None:
    """Wait until a node of the job has begun."""
    while node not in [data["node"] for data in await seen(running, job_id, "executing")]:
        await asyncio.sleep(0.02)


async def test_a_graph_runs_there_and_its_image_is_in_our_store(tmp_path: Path) -> None:
    async with pool(tmp_path) as running:
        job_id = await submit(running, graph(seed=5, StandInWork={"seconds": 0.1, "steps": 3}))
        job = await running.finish(job_id)
        assert job.state == "success", job.failure
        assert job.outputs["save"] == {"images": [{"filename": "pool_00001_.png", "subfolder": "", "type": "output"}]}
        image = Image.open(tmp_path / "output" / "pool_00001_.png")
        assert image.getpixel((0, 0)) == (5, 0, 7)
        assert '"StandInDraw"' in image.info["prompt"]
        assert [d["node"] for d in await seen(running, job_id, "executing")] == ["1", "2", "save"]
        assert (await seen(running, job_id, "progress"))[-1] == {"node": "2", "value": 3, "max": 3}
        assert [d["node"] for d in await seen(running, job_id, "finished")] == ["1", "2"]


async def test_a_cached_node_is_reported_and_its_file_saved_again(tmp_path: Path) -> None:
    async with pool(tmp_path) as running:
        await running.finish(await submit(running, graph()))
        job_id = await submit(running, graph())
        job = await running.finish(job_id)
        assert job.outputs["save"]["images"][0]["filename"] == "pool_00002_.png"
        assert {"nodes": ["1", "save"]} in await seen(running, job_id, "cached")
        assert await seen(running, job_id, "executing") == []


async def test_a_cached_file_that_is_gone_is_made_again(tmp_path: Path) -> None:
    async with pool(tmp_path) as running:
        await running.finish(await submit(running, graph()))
        [runner] = running.runners.values()
        for file in (runner.process.folder / "output").iterdir():
            file.unlink()
        assert (await running.finish(await submit(running, graph()))).state == "success"
        assert (tmp_path / "output" / "pool_00002_.png").exists()


async def test_films_text_and_files_with_other_ends_have_names_of_ours(tmp_path: Path) -> None:
    prompt = graph()
    prompt["film"] = {"class_type": "StandInFilm", "inputs": {"image": ["1", 0], "prefix": "clip"}}
    prompt["say"] = {"class_type": "StandInSay", "inputs": {"text": "hello"}}
    async with pool(tmp_path) as running:
        job_id = await submit(running, prompt, "film", "say")
        job = await running.finish(job_id)
        assert job.state == "success", job.failure
        assert job.outputs["say"] == {"text": ["hello"]}
        film, still = job.outputs["film"]["gifs"][0], job.outputs["film"]["images"][0]
        assert film == {"filename": "clip_00001_.mp4", "subfolder": "", "type": "output", "format": "video/h264-mp4"}
        assert (tmp_path / "output" / film["filename"]).read_bytes().startswith(b"film of")
        assert still["filename"] == "clip_png_00001_.png"
        assert (tmp_path / "output" / still["filename"]).exists()
        assert {"node": "say", "type": "progress_text", "data": {"text": "about to say"}} in await seen(
            running, job_id, "message"
        )


async def test_an_uploaded_file_is_there_when_a_node_reads_it_also_after_it_changed(tmp_path: Path) -> None:
    prompt = {
        "load": {"class_type": "LoadImage", "inputs": {"image": "mine.png"}},
        "save": {"class_type": "SaveImage", "inputs": {"images": ["load", 0], "filename_prefix": "copy"}},
    }
    async with pool(tmp_path) as running:
        for number, colour in enumerate([(1, 2, 3), (4, 5, 6)], start=1):
            Image.new("RGB", (8, 8), colour).save(tmp_path / "input" / "mine.png")
            [runner] = running.runners.values()
            await runner.client.free(weights=False, results=True)  # the stand-in's cache knows no files
            assert (await running.finish(await submit(running, prompt))).state == "success"
            assert Image.open(tmp_path / "output" / f"copy_0000{number}_.png").getpixel((0, 0)) == colour


async def test_a_node_that_raises_ends_the_job_with_its_traceback(tmp_path: Path) -> None:
    async with pool(tmp_path) as running:
        job = await running.finish(await submit(running, graph(StandInMisbehave={"how": "raise"})))
        assert job.state == "error"
        assert job.failure.node == "2"
        assert job.failure.class_type == "StandInMisbehave"
        assert job.failure.exception_type == "ValueError"
        assert "standin/main.py" in "".join(job.failure.traceback)
        assert str(STANDIN) not in "".join(job.failure.traceback)


async def test_a_graph_that_comfyui_refuses_ends_with_its_reason(tmp_path: Path) -> None:
    async with pool(tmp_path) as running:
        job = await running.finish(await submit(running, graph(StandInModel={"name": "none.safetensors"})))
        assert job.state == "error"
        assert "Value not in list (name: 'none.safetensors')" in job.failure.message
        assert job.failure.node == "2"


async def test_a_made_node_is_reported_under_its_maker(tmp_path: Path) -> None:
    async with pool(tmp_path) as running:
        job_id = await submit(running, graph(StandInMisbehave={"how": "expand"}))
        job = await running.finish(job_id)
        assert job.outputs["2.0.0.1"] == {"text": ["made by a node"]}
        made = next(d for d in await seen(running, job_id, "executed") if d["node"] == "2.0.0.1")
        assert (made["display_node"], made["real_node"]) == ("2", "2")


async def test_a_node_that_cancels_cancels_the_job(tmp_path: Path) -> None:
    async with pool(tmp_path) as running:
        job = await running.finish(await submit(running, graph(StandInMisbehave={"how": "cancel"})))
        assert job.state == "cancelled"


async def test_a_cancelled_graph_stops_and_the_next_runs_in_the_same_process(tmp_path: Path) -> None:
    async with pool(tmp_path) as running:
        job_id = await submit(running, graph(StandInWork={"seconds": 60.0, "steps": 600}))
        await begun(running, job_id, "2")
        [runner] = running.runners.values()
        process = runner.process
        assert await running.scheduler.cancel(job_id)
        assert (await running.finish(job_id)).state == "cancelled"
        assert (await running.finish(await submit(running, graph()))).state == "success"
        assert runner.process is process


async def test_a_job_that_a_drained_replica_hands_over_starts_again_and_has_lost_no_replica(tmp_path: Path) -> None:
    async with pool(tmp_path) as running:
        job_id = await submit(running, graph(StandInWork={"seconds": 2.0, "steps": 20}))
        await begun(running, job_id, "2")
        [name] = running.runners
        drain = Pause("replica", name)
        await running.scheduler.pause(drain, True)
        await running.scheduler.hand_over(drain)
        while running.scheduler.status.load().moved["handed_over"] == 0:
            await asyncio.sleep(0.02)
        assert (await running.scheduler.job(job_id)).state == "running"
        await running.scheduler.pause(drain, False)
        assert (await running.finish(job_id)).state == "success"
        assert running.scheduler.status.load().moved == {"handed_over": 1, "lost": 0}


async def test_the_next_graph_begins_while_what_the_last_has_made_is_stored(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    go_on, write = threading.Event(), Volume.write

    def held(store: Volume, ref: FileRef, data: bytes, *, replace: bool = True) -> None:
        assert go_on.wait(60)
        write(store, ref, data, replace=replace)

    monkeypatch.setattr(Volume, "write", held)
    async with pool(tmp_path) as running:
        try:
            first = await submit(running, graph(1))
            second = await submit(running, graph(2, StandInWork={"seconds": 0.1, "steps": 2}))
            await begun(running, second, "2")
            assert (await running.scheduler.job(first)).state == "running"
            third = await submit(running, graph(3))
            await begun(running, third, "save")
            assert await running.scheduler.cancel(first)
            assert (await running.finish(first)).state == "cancelled"
        finally:
            go_on.set()
        for job_id, colour in ((second, 2), (third, 3)):
            job = await running.finish(job_id)
            assert job.state == "success", job.failure
            [image] = job.outputs["save"]["images"]
            assert Image.open(tmp_path / "output" / image["filename"]).getpixel((0, 0)) == (colour, 0, 7)


async def test_a_graph_that_does_not_stop_costs_the_process_and_nobody_is_charged(tmp_path: Path) -> None:
    async with pool(tmp_path, stop_s=0.3) as running:
        job_id = await submit(running, graph(StandInMisbehave={"how": "deaf"}))
        await begun(running, job_id, "2")
        [runner] = running.runners.values()
        process = runner.process
        await running.scheduler.cancel(job_id)
        other = await running.finish(await submit(running, graph()))
        assert other.state == "success"
        assert runner.process is not process
        assert not process.running


@pytest.mark.parametrize(("how", "words"), [("kill", "signal 9"), ("exit", "status 3")])
async def test_a_job_that_ends_its_process_is_given_up_with_the_end_of_the_log(
    tmp_path: Path, how: str, words: str
) -> None:
    async with pool(tmp_path, max_attempts=2) as running:
        guilty = await submit(running, graph(StandInMisbehave={"how": how}))
        innocent = await submit(running, graph())
        job = await running.finish(guilty)
        assert job.state == "error"
        assert job.failure.exception_type == "ReplicaLost"
        assert words in job.failure.message
        assert "about to" in job.failure.message
        assert (await running.finish(innocent)).state == "success"


async def test_a_process_that_is_killed_from_outside_costs_no_job(tmp_path: Path) -> None:
    async with pool(tmp_path) as running:
        job_id = await submit(running, graph(StandInWork={"seconds": 0.5, "steps": 5}))
        await begun(running, job_id, "2")
        [runner] = running.runners.values()
        os.kill(runner.process.pid, signal.SIGKILL)
        job = await running.finish(job_id)
        assert job.state == "success"
        assert len(list((tmp_path / "output").iterdir())) == 1


async def test_jobs_go_on_through_restarts_of_the_scheduler(tmp_path: Path) -> None:
    async with pool(tmp_path) as running:
        jobs = [await submit(running, graph(n, StandInWork={"seconds": 0.1, "steps": 2})) for n in range(5)]
        for n in (1, 3):
            await running.finish(jobs[n])
            await running.restart_scheduler()
        ended = [await running.finish(job_id) for job_id in jobs]
        assert [job.state for job in ended] == ["success"] * 5
        assert len(list((tmp_path / "output").iterdir())) == 5


async def test_memory_is_freed_on_request_and_resident_models_are_reported(tmp_path: Path) -> None:
    async with pool(tmp_path) as running:
        await running.finish(await submit(running, graph(StandInModel={"name": "a.safetensors"})))
        [replica] = (await running.scheduler.cluster()).replicas
        assert replica.recipes == ("a.safetensors",)
        from serve_app.scheduler.protocol.messages import Free

        await running.scheduler.free(Free(weights=True, results=True))
        while (await running.scheduler.cluster()).replicas[0].recipes:
            await asyncio.sleep(0.02)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--start", "exit"), "ended with status 1; its log ends:\nthe stand-in starts\n"),
        (("--start", "no-torch"), "has no module torch_that_is_not_there"),
        (("--start", "port"), "is taken; its log ends:"),
        (("--version", "0.2.1"), "0.3.64 or newer is needed"),
        (("--unheard-of",), "unrecognized arguments"),
    ],
)
async def test_the_error_says_what_keeps_it_from_starting(
    tmp_path: Path, arguments: tuple[str, ...], words: str
) -> None:
    assert words in await trouble(tmp_path, standin("comfyui", *arguments))


async def test_a_directory_without_comfyui_is_reported(tmp_path: Path) -> None:
    assert f"{tmp_path} has no main.py" in await trouble(tmp_path, standin(directory=tmp_path))


async def trouble(root: Path, pool: PoolConfig) -> str:
    """Return what the replica of a pool says is wrong with it."""
    healthy = standin("other")
    running = Cluster(await _config(root, (healthy, pool)))
    await running.start()
    try:
        await running.replica("other", healthy)
        broken = asyncio.create_task(running.replica("broken", pool))
        while not (troubles := (await running.scheduler.cluster()).troubles):
            await asyncio.sleep(0.05)
        with pytest.raises(NotReadyError):
            await running.scheduler.specs("comfyui")
        assert (await running.scheduler.specs("other"))["StandInDraw"].described
        broken.cancel()
        return troubles[0].why
    finally:
        for runner in running.runners.values():
            await runner.leave()
        await running.close()


async def _config(root: Path, pools: tuple[PoolConfig, ...]) -> Any:
    from serve_app.config import AppConfig

    folders: dict[str, Any] = {
        name: root / name.removesuffix("_dir") for name in ("models_dir", "input_dir", "output_dir", "temp_dir")
    }
    return AppConfig(**folders, database_url=f"sqlite:///{root}/jobs.sqlite", pools=pools).resolved()


async def test_packs_that_could_not_be_imported_are_noted(tmp_path: Path) -> None:
    async with pool(tmp_path, "--failed-pack", "ComfyUI-Broken") as running:
        [replica] = (await running.scheduler.cluster()).replicas
        assert replica.notes == ("node pack ComfyUI-Broken could not be imported",)


async def test_its_process_and_folders_end_with_it(tmp_path: Path) -> None:
    async with pool(tmp_path) as running:
        [runner] = running.runners.values()
        assert isinstance(runner, ComfyUIRunner)
        process = runner.process
        assert process is not None
        assert process.folder.exists()
    assert not process.running
    assert not process.folder.exists()
