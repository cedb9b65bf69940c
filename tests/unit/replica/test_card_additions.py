"""LoRAs, a ControlNet and an upscaler that come while eight jobs run, in a whole replica: no forward is waited for."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import Tensor

from serve_app.models.families.family import Rows
from serve_app.models.network import LoadedNetwork
from serve_app.scheduler.protocol.client import JobView
from tests.parity import tiled_cases
from tests.parity.lora_cases import drawn
from tests.parity.make_checkpoint import weight
from tests.unit.engine.card_driver import Driver
from tests.unit.engine.test_card_loads import loras
from tests.unit.models.sample import write_sample_checkpoint
from tests.unit.replica.cluster import Cluster
from tests.unit.replica.test_card_replicas import GPU, a_card, difference, prompt, replicas

JOBS = 8
HINT = ((16, 3), (16, 16), (32, 16), (32, 32), (96, 32), (96, 96), (256, 96), (32, 256))
"""Channels that come out of and go into each layer that reads the hint."""
SKIPS = (32, 32, 32, 64, 64, 128)
"""Channels of what the sample's blocks hand on."""
UNET = "model.diffusion_model."


def control_net(checkpoint: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return a ControlNet over the sample's backbone, as published files have them."""
    halves = (f"{UNET}input_blocks", f"{UNET}middle_block", f"{UNET}time_embed")
    made = {name.removeprefix(UNET): tensor for name, tensor in checkpoint.items() if name.startswith(halves)}
    layers = {f"input_hint_block.{2 * i}": (*sizes, 3, 3) for i, sizes in enumerate(HINT)}
    layers |= {f"zero_convs.{i}.0": (size, size, 1, 1) for i, size in enumerate(SKIPS)}
    layers["middle_block_out.0"] = (SKIPS[-1], SKIPS[-1], 1, 1)
    for name, shape in layers.items():
        made |= {f"{name}.weight": weight(name, list(shape)), f"{name}.bias": weight(f"{name}.bias", [shape[0]])}
    return {f"control_model.{name}": tensor.half() for name, tensor in made.items()}


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Models with something of each kind that is added to a job."""
    folder = tmp_path_factory.mktemp("models")
    checkpoint = folder / "checkpoints" / "tiny.safetensors"
    write_sample_checkpoint(checkpoint)
    layer = "lora_unet_middle_block_1_transformer_blocks_0_attn2_to_q"
    thin = {f"{layer}.lora_up.weight": drawn("up", 128, 4), f"{layer}.lora_down.weight": drawn("down", 4, 128)}
    added: dict[str, dict[str, dict[str, Tensor]]] = {
        "controlnet": {"net": control_net(load_file(checkpoint))},
        "loras": {"thin": thin, "whole": {f"{layer}.diff": drawn("diff", 128, 128) / 9}, "text": loras()["text"]},
        "upscale_models": {"esrgan": tiled_cases.esrgan()},
    }
    for kind, files in added.items():
        (folder / kind).mkdir()
        for name, tensors in files.items():
            save_file(tensors, folder / kind / f"{name}.safetensors")
    return folder


def with_lora(name: str, seed: int) -> dict[str, Any]:
    made = prompt(seed)
    inputs = {"lora_name": f"{name}.safetensors", "strength_model": 0.8, "strength_clip": 0.8}
    made["7"] = {"class_type": "LoraLoader", "inputs": {**inputs, "model": ["1", 0], "clip": ["1", 1]}}
    made["3"]["inputs"]["model"], made["2"]["inputs"]["clip"] = ["7", 0], ["7", 1]
    return made


def with_image(made: dict[str, Any]) -> dict[str, Any]:
    return made | {"7": {"class_type": "LoadImage", "inputs": {"image": "hint.png"}}}


def controlled(seed: int) -> dict[str, Any]:
    made = with_image(prompt(seed))
    made["8"] = {"class_type": "ControlNetLoader", "inputs": {"control_net_name": "net.safetensors"}}
    inputs = {"conditioning": ["2", 0], "control_net": ["8", 0], "image": ["7", 0], "strength": 0.9}
    made["9"] = {"class_type": "ControlNetApply", "inputs": inputs}
    made["3"]["inputs"]["positive"] = ["9", 0]
    return made


def enlarged() -> dict[str, Any]:
    made = with_image({"8": {"class_type": "UpscaleModelLoader", "inputs": {"model_name": "esrgan.safetensors"}}})
    inputs = {"upscale_model": ["8", 0], "image": ["7", 0]}
    made["9"] = {"class_type": "ImageUpscaleWithModel", "inputs": inputs}
    return made | {"6": {"class_type": "SaveImage", "inputs": {"images": ["9", 0], "filename_prefix": "large"}}}


def pixels(running: Cluster, view: JobView) -> list[bytes]:
    """Return the pixels of each image that a job has saved."""
    folder = running.config.output_dir
    return [Image.open(folder / image["filename"]).tobytes() for image in view.outputs["6"]["images"]]


@contextmanager
def no_memory_once(driver: Driver) -> Iterator[None]:
    """Have the first allocation of the next forward fail."""
    answer, left = LoadedNetwork.answer, [True]

    def failing(network: LoadedNetwork, rows: Sequence[Rows]) -> list[Tensor]:
        if left:
            left.clear()
            driver.fails_at = driver.allocations + 1
        return answer(network, rows)

    with mock.patch.object(LoadedNetwork, "answer", failing):
        yield
    assert driver.fails_at is not None
    assert driver.allocations >= driver.fails_at


async def test_graphs_go_with_slots_of_loras_and_as_memory_runs_out_and_are_made_again(
    tmp_path: Path, models: Path
) -> None:
    (tmp_path / "models").symlink_to(models)
    # More rows take larger slots, in place of those before. What was dropped for want of memory is not recorded again.
    batches, lacking = (1, 2, 1, 1, 3), 3
    found: dict[bool, list[bytes]] = {True: [], False: []}
    recorded: dict[bool, list[tuple[int, int, int]]] = {True: [], False: []}
    for graphs, pictures in found.items():
        with a_card() as (card, driver):
            async with replicas(tmp_path, (GPU.model_copy(update={"graphs": graphs}),)) as running:
                for seed, images in enumerate(batches):
                    made = with_lora("thin", seed)
                    made["4"]["inputs"]["batch_size"] = images
                    with no_memory_once(driver) if seed == lacking else nullcontext():
                        view = await running.finish(await running.submit(made, ("6",)))
                        assert view.state == "success", view.failure
                    pictures += pixels(running, view)
                    counts = running.runners["gpu"].models.replays
                    recorded[graphs].append((counts.recordings, counts.dropped, counts.failures))
            assert card.order.early == []
    assert recorded[True] == [(1, 0, 0), (2, 0, 0), (3, 0, 0), (3, 2, 0), (4, 2, 0)]
    assert recorded[False] == [(0, 0, 0)] * len(batches)
    # Without graphs to drop, the forward that had no memory was split, and rows that are fewer round otherwise.
    assert max(map(difference, found[True], found[False])) <= 4


ADDED = [*(with_lora(name, seed) for seed, name in enumerate(("thin", "whole", "text"))), controlled(9), enlarged()]


async def test_what_is_added_while_eight_jobs_run_makes_nobody_wait_for_a_forward(tmp_path: Path, models: Path) -> None:
    (tmp_path / "models").symlink_to(models)
    (tmp_path / "input").mkdir()
    Image.effect_mandelbrot((64, 64), (-3, -2.5, 2, 2.5), 60).convert("RGB").save(tmp_path / "input" / "hint.png")
    with a_card() as (card, _):
        async with replicas(tmp_path, (GPU,)) as running:
            # The first job also finds the card, and waits for its answer.
            views = [await running.finish(await running.submit(prompt(1), ("6",)))]
            before = card.counts.copy()
            ids = [await running.submit(prompt(seed, steps=12), ("6",)) for seed in range(JOBS)]
            await running.until(ids[0], "executing")
            ids += [await running.submit(made, ("6",)) for made in ADDED]
            views += [await running.finish(job_id) for job_id in ids]
            counters = running.runners["gpu"].models.counters
        assert [view.failure for view in views if view.state != "success"] == []
        assert counters.rows > counters.forwards * 2, "they did not share forwards"
        counts = card.counts.since(before)
        assert counts.stalls == 0, counts.where
        assert card.order.early == []
