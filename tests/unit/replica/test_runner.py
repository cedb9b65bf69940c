"""Scheduler, replicas, nodes, engine and store together, without Ray."""

from __future__ import annotations

import asyncio
import json
import threading
import uuid
from collections import Counter
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from serve_app.config import AppConfig
from serve_app.config.limits import SizeLimits
from serve_app.config.pool import PoolConfig
from serve_app.errors import NotReadyError, QueueFullError, StaleEpochError, UnavailableError
from serve_app.images import to_png
from serve_app.replica import assemble as assembling
from serve_app.replica import membership
from serve_app.scheduler.protocol.client import Reader
from serve_app.scheduler.protocol.messages import Free
from serve_app.scheduler.replicas import registry as replica_registry
from serve_app.store.database.changes import Submission
from tests import workflows
from tests.unit.replica.cluster import Cluster, cluster

# One thread count for all: sums in another order may round a pixel the other way.
ONE = (PoolConfig(name="gpu", threads=1),)
SPLIT = (
    PoolConfig(name="encode", accepts=("CLIPTextEncode", "CLIPSetLastLayer"), threads=1),
    PoolConfig(name="denoise", accepts=("KSampler*",), threads=1),
    PoolConfig(name="decode", accepts=("VAE*",), threads=1),
    PoolConfig(name="cpu", runtime=False, threads=1),
)

txt2img = partial(workflows.txt2img, "tiny.safetensors", steps=4, prefix="out")


def preview(color: int) -> dict[str, object]:
    return {
        "1": {"class_type": "EmptyImage", "inputs": {"width": 32, "height": 32, "batch_size": 1, "color": color}},
        "2": {"class_type": "PreviewImage", "inputs": {"images": ["1", 0]}},
    }


def files(running: Cluster) -> list[str]:
    return sorted(p.name for p in running.config.output_dir.glob("*.png"))


async def test_a_job_ends_with_its_image_in_the_output_folder(root):
    async with cluster(root, ONE) as running:
        view = await running.finish(await running.submit(txt2img(1), ("6",)))
        assert (view.state, view.percent) == ("success", 100)
        [image] = view.outputs["6"]["images"]
        assert image == {"filename": "out_00001_.png", "subfolder": "", "type": "output"}
        with Image.open(running.config.output_dir / image["filename"]) as picture:
            assert picture.size == (64, 64)


@pytest.mark.parametrize(
    ("shown", "calls"),
    [
        ("PreviewImage", {"poll": 1, "report": 1, "write": 2}),
        ("SaveImage", {"poll": 1, "reserve": 1, "report": 1, "write": 3}),
    ],
)
async def test_a_job_of_quick_nodes_takes_few_calls_of_its_replica_and_few_transactions(
    root, monkeypatch, shown, calls
):
    # Nothing leaves because it has waited: what is counted is what does not gather at all.
    monkeypatch.setattr(membership, "GATHER_S", 3600.0)
    monkeypatch.setattr(membership, "HOST_S", 3600.0)
    monkeypatch.setattr(replica_registry, "POLL_S", 3600.0)
    counted = Counter[str]()

    def count(of: Any, name: str) -> None:
        called = getattr(of, name)

        def counting(*given: Any, **named: Any) -> Any:
            counted[name] += 1
            return called(*given, **named)

        monkeypatch.setattr(of, name, counting)

    async with cluster(root, (PoolConfig(name="cpu", runtime=False),)) as running:
        for name in ("poll", "report", "reserve"):
            count(running.scheduler.registry, name)
        count(running.scheduler.jobs, "write")
        count(running.scheduler.jobs, "_transaction")
        for color in (1, 2):
            counted.clear()
            workflow = preview(color)
            workflow["2"] = {"class_type": shown, "inputs": {"images": ["1", 0], "filename_prefix": "out"}}
            job = await running.finish(await running.submit(workflow, ("2",)))
            assert job.state == "success"
        # The first save under a prefix looks at its folder as well.
        assert counted == calls | {"_transaction": calls["write"]}


@pytest.mark.parametrize(
    ("configured", "asked", "shown"),
    [("none", "auto", True), ("none", "latent2rgb", True), ("none", "default", False), ("auto", "none", False)],
)
async def test_a_job_may_choose_whether_its_steps_are_previewed(root, configured, asked, shown):
    async with cluster(root, ONE, preview_method=configured) as running:
        attached = await running.scheduler.attach("me", "socket")
        # Of so many steps one is drawn before the last has come.
        job = Submission(str(uuid.uuid4()), txt2img(1, steps=40), ("6",), "me", {"preview_method": asked})
        await running.scheduler.submit(job)
        after, queue, kinds = attached.after, attached.queue, []
        while "success" not in kinds:
            news = await running.scheduler.unsent_events({"me": Reader("socket", after)}, queue.version, 1.0)
            queue = news.queue
            for event in news.events.get("me", ()):
                after = event.seq
                kinds.append(event.kind)
    assert ("preview" in kinds) is shown


async def test_a_lora_that_changes_nothing_is_reported(root):
    shared = (root / "models").resolve()
    (root / "models").unlink()
    (root / "models" / "loras").mkdir(parents=True)
    (root / "models" / "checkpoints").symlink_to(shared / "checkpoints")
    of_flux = {
        f"lora_unet_double_blocks_0_img_attn_qkv.lora_{half}.weight": torch.ones(4, 4) for half in ("up", "down")
    }
    save_file(of_flux, root / "models" / "loras" / "flux.safetensors")
    prompt = txt2img(1)
    [loader] = [node_id for node_id, node in prompt.items() if node["class_type"] == "CheckpointLoaderSimple"]
    [sampler] = [node_id for node_id, node in prompt.items() if node["class_type"] == "KSampler"]
    lora = {"model": [loader, 0], "lora_name": "flux.safetensors", "strength_model": 1.0}
    prompt["lora"] = {"class_type": "LoraLoaderModelOnly", "inputs": lora}
    prompt[sampler]["inputs"]["model"] = ["lora", 0]
    async with cluster(root, ONE) as running:
        job_id = await running.submit(prompt, ("6",))
        assert (await running.finish(job_id)).state == "success"
        [said] = [event.data for event in await running.events(job_id) if event.kind == "message"]
    assert (said["node"], said["type"]) == (sampler, "progress_text")
    assert "LoRA 'flux.safetensors' changes nothing of this diffusion network" in said["data"]["text"]


async def test_events_of_a_job_are_complete_and_in_order(root):
    async with cluster(root, ONE) as running:
        job_id = await running.submit(txt2img(1), ("6",))
        await running.finish(job_id)
        events = await running.events(job_id)
        kinds = [e.kind for e in events]
        assert kinds[:3] == ["queued", "started", "cached"]
        assert kinds[-2:] == ["executed", "success"]
        assert {e.data["node"] for e in events if e.kind == "executing"} == {"1", "2", "3", "4", "5", "6"}
        steps = [e.data for e in events if e.kind == "progress" and e.data["node"] == "3"]
        assert [step["value"] for step in steps] == sorted(step["value"] for step in steps)
        assert steps[-1]["value"] == steps[-1]["max"]
        started = next(e.seq for e in events if e.kind == "executing" and e.data["node"] == "3")
        assert started < min(e.seq for e in events if e.kind == "progress")
        assert [e.seq for e in events] == sorted({e.seq for e in events})


async def test_stages_split_over_pools_give_the_pixels_of_one_pool(tmp_path_factory, models):
    pictures = []
    for pools in (ONE, SPLIT):
        folder = tmp_path_factory.mktemp("run")
        (folder / "models").symlink_to(models)
        async with cluster(folder, pools) as running:
            view = await running.finish(await running.submit(txt2img(5), ("6",)))
            assert view.state == "success", view.failure
            pictures.append(Image.open(running.config.output_dir / files(running)[0]).tobytes())
    assert pictures[0] == pictures[1]


async def test_the_same_workflow_again_makes_no_second_file(root):
    async with cluster(root, ONE) as running:
        first = await running.finish(await running.submit(txt2img(1), ("6",)))
        second = await running.finish(await running.submit(txt2img(1), ("6",)))
        assert second.outputs == first.outputs
        assert files(running) == ["out_00001_.png"]


async def test_once_results_are_freed_the_same_workflow_is_computed_again(root):
    async with cluster(root, ONE) as running:
        await running.finish(await running.submit(preview(1), ("2",)))
        await running.scheduler.free(Free(weights=False, results=True))
        job_id = await running.submit(preview(1), ("2",))
        await running.finish(job_id)
        assert {e.data["node"] for e in await running.events(job_id) if e.kind == "executing"} == {"1", "2"}


async def test_a_node_that_is_no_output_node_shows_what_it_has_to_show_and_from_the_cache_too(root):
    region = {"x": 0, "y": 0, "width": 8, "height": 8}
    prompt = {
        **preview(1),
        "crop": {"class_type": "ImageCropV2", "inputs": {"image": ["1", 0], "crop_region": region}},
        "2": {"class_type": "SaveImage", "inputs": {"images": ["crop", 0], "filename_prefix": "cut"}},
    }
    async with cluster(root, ONE) as running:
        for times in (1, 2):
            job_id = await running.submit(prompt, ("2",))
            view = await running.finish(job_id)
            executed = [e.data["node"] for e in await running.events(job_id) if e.kind == "executed"]
            assert executed == ["crop", "2"], times
            assert view.outputs["crop"]["images"][0]["type"] == "temp"


async def test_a_changed_seed_computes_the_text_encoding_only_once(root):
    async with cluster(root, ONE) as running:
        await running.finish(await running.submit(txt2img(1), ("6",)))
        job_id = await running.submit(txt2img(2), ("6",))
        await running.finish(job_id)
        executed = {e.data["node"] for e in await running.events(job_id) if e.kind == "executing"}
        assert executed == {"3", "5", "6"}


async def test_pictures_are_encoded_in_neither_the_engines_thread_nor_the_event_loops(root, monkeypatch):
    threads = []

    def encoded(*given):
        threads.append(threading.current_thread())
        return to_png(*given)

    monkeypatch.setattr("serve_app.nodes.image.images.to_png", encoded)
    async with cluster(root, ONE) as running:
        view = await running.finish(await running.submit(txt2img(1), ("6",)))
    assert view.state == "success", view.failure
    [thread] = threads
    assert thread is not threading.main_thread()
    assert thread.name != "engine"


async def test_a_lost_replica_costs_no_job_and_no_image_is_saved_twice(root):
    async with cluster(root, ONE) as running:
        jobs = [await running.submit(txt2img(seed, steps=12), ("6",)) for seed in range(6)]
        await running.until(jobs[0], "progress")
        await running.lose("gpu")
        await running.replica("second")
        views = [await running.finish(job_id) for job_id in jobs]
        assert {v.state for v in views} == {"success"}
        names = [v.outputs["6"]["images"][0]["filename"] for v in views]
        assert len(set(names)) == 6
        assert files(running) == sorted(names)


async def test_a_restarted_scheduler_finishes_every_job_and_saves_nothing_twice(root):
    async with cluster(root, ONE) as running:
        jobs = [await running.submit(txt2img(seed, steps=12), ("6",)) for seed in range(6)]
        await running.until(jobs[0], "progress")
        await running.restart_scheduler()
        views = [await running.finish(job_id) for job_id in jobs]
        assert {v.state for v in views} == {"success"}
        assert files(running) == sorted(v.outputs["6"]["images"][0]["filename"] for v in views)
        for job_id in jobs:
            events = await running.events(job_id)
            assert [e.kind for e in events].count("executed") == 1
            assert events[-1].kind == "success"


async def test_two_schedulers_over_one_database_leave_only_the_newer_one_writing(root):
    async with cluster(root, ONE) as running:
        old = running.scheduler
        await running.restart_scheduler()
        with pytest.raises(StaleEpochError):
            old.jobs.write(old.epoch, [])


async def test_a_cancelled_job_stops_within_an_evaluation_and_the_next_one_runs(root):
    async with cluster(root, (PoolConfig(name="gpu", tasks_per_replica=1),)) as running:
        endless = await running.submit(txt2img(1, steps=10_000), ("6",))
        await running.until(endless, "progress")
        assert await running.scheduler.cancel(endless)
        assert (await running.finish(endless)).state == "cancelled"
        view = await asyncio.wait_for(running.finish(await running.submit(txt2img(2), ("6",))), 120)
        assert view.state == "success"
        assert not await running.scheduler.cancel(endless)


async def test_a_node_that_fails_ends_its_job_with_node_and_reason(root):
    async with cluster(root, ONE) as running:
        workflow = {
            "1": {"class_type": "LoadImage", "inputs": {"image": "none.png"}},
            "2": {"class_type": "PreviewImage", "inputs": {"images": ["1", 0]}},
        }
        (running.config.input_dir / "none.png").write_text("not an image")
        view = await running.finish(await running.submit(workflow, ("2",)))
        assert view.state == "error"
        assert view.failure.node == "1"
        assert view.failure.class_type == "LoadImage"


async def test_a_full_queue_refuses_and_says_when_to_come_back(root):
    async with cluster(root, (PoolConfig(name="gpu", tasks_per_replica=1),), max_queue=2) as running:
        await running.lose("gpu")
        for color in range(2):
            await running.submit(preview(color), ("2",))
        with pytest.raises(QueueFullError) as refused:
            await running.submit(preview(9), ("2",))
        assert refused.value.retry_after_s > 0


async def test_submitting_the_same_id_twice_runs_it_once(root):
    async with cluster(root, ONE) as running:
        twice = [running.submit(preview(3), ("2",), job_id="11111111-1111-4111-8111-111111111111") for _ in range(5)]
        assert len(set(await asyncio.gather(*twice))) == 1
        await running.finish("11111111-1111-4111-8111-111111111111")
        assert running.scheduler.jobs.next_order() == 1


async def test_two_replicas_make_an_equal_value_once(root):
    async with cluster(root, ONE) as running:
        await running.replica("second")
        jobs = [await running.submit(txt2img(seed, text="the same text"), ("6",)) for seed in range(8)]
        for job_id in jobs:
            assert (await running.finish(job_id)).state == "success"
        encoded = 0
        for job_id in jobs:
            encoded += sum(e.kind == "executing" and e.data["node"] == "2" for e in await running.events(job_id))
        assert encoded == 1


async def test_a_task_interrupted_before_its_first_step_frees_its_slot(root):
    async with cluster(root, (PoolConfig(name="gpu", tasks_per_replica=1),)) as running:
        first = await running.submit(txt2img(1, steps=10_000), ("6",))
        # No turn of the loop lies between the assignment and the interruption.
        assert await running.scheduler.cancel(first)
        view = await asyncio.wait_for(running.finish(await running.submit(preview(1), ("2",))), 120)
        assert view.state == "success"


async def test_no_class_is_unknown_before_every_pool_has_reported_its_classes(root: Path):
    config = AppConfig(models_dir=root / "models", database_url=f"sqlite:///{root}/jobs.sqlite", pools=SPLIT)
    running = Cluster(config)
    await running.start()
    joining = [asyncio.create_task(running.replica(pool.name, pool)) for pool in SPLIT[1:]]
    while len(running.scheduler.machine.replicas) < len(joining):
        await asyncio.sleep(0.01)
    with pytest.raises(NotReadyError, match="no replica of encode has joined"):
        await running.scheduler.specs()
    assert (await running.scheduler.backlog("encode"))[:2] == (1, 0), (
        "no replica would come to a pool that starts from zero"
    )
    await asyncio.gather(*joining, running.replica("encode", SPLIT[0]))
    assert {"CLIPTextEncode", "KSampler", "VAEDecode", "SaveImage"} <= set(await running.scheduler.specs())
    assert (await running.scheduler.backlog("encode"))[:2] == (0, 0)
    await running.close()


async def test_a_batch_of_no_images_fails_its_own_job_at_most_and_the_next_one_works(root):
    async with cluster(root, ONE) as running:
        workflow = txt2img(1)
        workflow["7"] = {"class_type": "PrimitiveInt", "inputs": {"value": 0}}
        blank = {"width": 64, "height": 64, "batch_size": ["7", 0], "color": 0}
        workflow["8"] = {"class_type": "EmptyImage", "inputs": blank}
        workflow["4"] = {"class_type": "VAEEncode", "inputs": {"pixels": ["8", 0], "vae": ["1", 2]}}
        await running.finish(await running.submit(workflow, ("6",)))
        view = await running.finish(await running.submit(txt2img(2), ("6",)))
        assert view.state == "success", view.failure
        running.runners["gpu"].check_health()


async def test_a_replica_whose_engine_has_ended_is_not_healthy(root):
    async with cluster(root, ONE) as running:
        runner = running.runners["gpu"]
        runner.check_health()
        (await running.models("gpu")).engine.close()
        with pytest.raises(UnavailableError, match="engine"):
            runner.check_health()


async def test_a_job_whose_device_is_lost_is_a_new_attempt_on_another_replica(root, monkeypatch):
    async with cluster(root, ONE) as running:
        engine, struck = (await running.models("gpu")).engine, []

        def answered(pieces):
            struck.append(len(pieces))
            monkeypatch.undo()
            raise RuntimeError("CUDA error: an illegal memory access was encountered")

        monkeypatch.setattr("serve_app.engine.forwards.answered", answered)
        job = await running.submit(txt2img(1), ("6",))
        while not struck or engine.alive:
            await asyncio.sleep(0.01)
        with pytest.raises(UnavailableError, match="engine"):
            running.runners["gpu"].check_health()
        # What Serve does with a replica that fails its health checks.
        await running.lose("gpu")
        await running.replica("gpu", ONE[0])
        view = await running.finish(job)
        assert view.state == "success", view.failure
        assert len(struck) == 1


async def test_a_job_that_asks_for_too_much_by_a_link_ends_in_error_and_the_replica_goes_on(root: Path) -> None:
    def batch(count: int) -> dict[str, object]:
        return {
            "1": {"class_type": "PrimitiveInt", "inputs": {"value": count}},
            "2": {
                "class_type": "EmptyImage",
                "inputs": {"width": 64, "height": 64, "batch_size": ["1", 0], "color": 0},
            },
            "3": {"class_type": "PreviewImage", "inputs": {"images": ["2", 0]}},
        }

    async with cluster(root, ONE, limits=SizeLimits(value_bytes=1_000_000)) as running:
        for count, reason in (
            (0, "has made an empty IMAGE"),
            (9999, "allows 1,000,000"),
            (4096, "allows 1,000,000"),
        ):
            view = await running.finish(await running.submit(batch(count), ("3",)))
            assert (view.state, view.failure.node) == ("error", "2")
            assert reason in view.failure.message
        view = await running.finish(await running.submit(batch(2), ("3",)))
        assert (view.state, len(view.outputs["3"]["images"])) == ("success", 2)


async def test_a_failure_carries_a_bounded_part_of_what_its_exception_says(root: Path) -> None:
    text = {"string": "a" * 1_000_000, "regex_pattern": "a", "replace": r"\9", "case_insensitive": True}
    prompt = {
        "1": {"class_type": "RegexReplace", "inputs": text},
        "2": {"class_type": "PreviewAny", "inputs": {"source": ["1", 0]}},
    }
    async with cluster(root, ONE) as running:
        view = await running.finish(await running.submit(prompt, ("2",)))
    assert view.state == "error"
    assert len(json.dumps(view.failure.to_json())) < 20_000


@pytest.mark.parametrize("pools", [ONE, SPLIT], ids=["one pool", "stages apart"])
async def test_dotted_inputs_reach_their_nodes_and_only_the_chosen_branch_runs(
    root: Path, pools: tuple[PoolConfig, ...]
) -> None:
    side = {"resize_type.width": ["1", 1], "resize_type.height": 0, "resize_type.crop": "disabled"}
    depth = {"format.bit_depth": "16-bit", "format.input_color_space": "sRGB"}
    never = {"image": ["2", 0], "upscale_method": "area", "width": 1, "height": 1, "crop": "disabled"}
    nodes: dict[str, tuple[str, dict[str, Any]]] = {
        "1": ("ComfyMathExpression", {"expression": "a * 4", "values.a": 12}),
        "2": ("EmptyImage", {"width": 96, "height": 64, "batch_size": 1, "color": 255}),
        "3": ("ImageScale", never),
        "4": ("ComfySwitchNode", {"switch": False, "on_false": ["2", 0], "on_true": ["3", 0]}),
        "5": (
            "ResizeImageMaskNode",
            {"input": ["4", 0], "resize_type": "scale dimensions", "scale_method": "area", **side},
        ),
        "6": ("BatchImagesNode", {"images.image0": ["5", 0], "images.image1": ["2", 0]}),
        "7": ("SaveImageAdvanced", {"images": ["6", 0], "filename_prefix": "dotted", "format": "png", **depth}),
    }
    prompt = {node_id: {"class_type": kind, "inputs": inputs} for node_id, (kind, inputs) in nodes.items()}
    async with cluster(root, pools) as running:
        job_id = await running.submit(prompt, ("7",))
        view = await running.finish(job_id)
        assert view.state == "success", view.failure
        for one in view.outputs["7"]["images"]:
            with Image.open(running.config.output_dir / one["filename"]) as picture:
                assert (picture.size, picture.convert("RGB").getpixel((0, 0))) == ((48, 32), (0, 0, 255))
        executed = {e.data["node"] for e in await running.events(job_id) if e.kind == "executing"}
        assert executed == {"1", "2", "4", "5", "6", "7"}


@pytest.mark.parametrize("pools", [ONE, SPLIT], ids=["one pool", "stages apart"])
async def test_a_video_goes_through_a_job_by_its_format_or_by_the_codec_of_older_workflows(
    root: Path, pools: tuple[PoolConfig, ...]
) -> None:
    again = {"format.codec.encoding": "re-encode", "format.codec.encoding.crf": 30.0}
    again |= {"format.codec.encoding.color_space": "sRGB"}
    nodes: dict[str, tuple[str, dict[str, Any]]] = {
        "1": ("EmptyImage", {"width": 64, "height": 32, "batch_size": 10, "color": 255}),
        "2": ("EmptyAudio", {"duration": 2.0, "sample_rate": 8000, "channels": 2}),
        "3": ("CreateVideo", {"images": ["1", 0], "fps": 10.0, "audio": ["2", 0]}),
        "4": ("Video Slice", {"video": ["3", 0], "start_time": 0.2, "duration": 0.5, "strict_duration": True}),
        "5": (
            "SaveVideo",
            {"video": ["4", 0], "filename_prefix": "new", "format": "mkv", "format.codec": "h264", **again},
        ),
        "6": ("SaveVideo", {"video": ["4", 0], "filename_prefix": "old", "format": "auto", "codec": "auto"}),
        "7": ("GetVideoComponents", {"video": ["4", 0]}),
        "8": (
            "SaveAudioAdvanced",
            {"audio": ["7", 1], "filename_prefix": "a", "format": "mp3", "format.quality": "V0"},
        ),
        "9": ("PreviewImage", {"images": ["7", 0]}),
    }
    prompt = {node_id: {"class_type": kind, "inputs": inputs} for node_id, (kind, inputs) in nodes.items()}
    async with cluster(root, pools) as running:
        view = await running.finish(await running.submit(prompt, ("5", "6", "8", "9")))
    assert view.state == "success", view.failure
    assert view.outputs["5"]["images"][0]["filename"] == "new_00001_.mkv"
    assert view.outputs["6"] == {
        "images": [{"filename": "old_00001_.mp4", "subfolder": "", "type": "output"}],
        "animated": [True],
    }
    assert view.outputs["8"]["audio"][0]["filename"] == "a_00001.mp3"
    assert len(view.outputs["9"]["images"]) == 5


@pytest.fixture
def late(monkeypatch):
    """Have replicas make their models only once this is set."""
    made = threading.Event()
    models = assembling.make_models

    def waiting(*arguments):
        make = models(*arguments)

        def make_late():
            made.wait(60)
            return make()

        return make_late

    monkeypatch.setattr(assembling, "make_models", waiting)
    yield made
    made.set()


async def test_a_deferrable_tasks_end_waits_for_others_only_while_others_run(root, late, monkeypatch):
    monkeypatch.setattr(membership, "GATHER_S", 3600.0)
    monkeypatch.setattr(membership, "HOST_S", 3600.0)
    async with cluster(root, ONE) as running:
        for color in (1, 2):
            await asyncio.wait_for(running.finish(await running.submit(preview(color), ("2",))), 60)
        waits_for_models = await running.submit(txt2img(1), ("6",))
        quick = await running.submit(preview(3), ("2",))
        runner = running.runners["gpu"]
        while [task_id.job_id for task_id in runner.running] != [waits_for_models]:
            await asyncio.sleep(0.01)
        for _ in range(10):
            await asyncio.sleep(0)
        assert (await running.scheduler.job(quick)).ended_s is None
        assert await running.scheduler.cancel(waits_for_models)
        assert (await asyncio.wait_for(running.finish(quick), 60)).state == "success"
        # The loop waits for its threads as it closes, which is before the fixture ends.
        late.set()


async def test_what_needs_no_model_runs_before_models_are_there_and_what_needs_one_waits(root, late):
    async with cluster(root, ONE) as running:
        sampled = await running.submit(txt2img(1), ("6",))
        view = await running.finish(await running.submit(preview(2), ("2",)))
        assert view.state == "success", view.failure
        assert running.runners["gpu"].models is None
        running.runners["gpu"].check_health()
        assert (await running.scheduler.job(sampled)).ended_s is None
        late.set()
        view = await running.finish(sampled)
        assert view.state == "success", view.failure


async def test_a_replica_whose_models_cannot_be_made_is_not_healthy_and_says_why(root, monkeypatch):
    def models(*_arguments):
        def make():
            raise ImportError("no module named diffusers")

        return make

    monkeypatch.setattr(assembling, "make_models", models)
    async with cluster(root, ONE) as running:
        view = await running.finish(await running.submit(txt2img(1), ("6",)))
        assert view.state == "error"
        assert "no module named diffusers" in str(view.failure)
        with pytest.raises(ImportError, match="diffusers"):
            running.runners["gpu"].check_health()
