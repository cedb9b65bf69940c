"""The built-in nodes, run as a replica runs them, on a real volume and a runtime whose answers are known."""

from __future__ import annotations

import asyncio
import io
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch
from PIL import Image

from serve_app.execution.execute import Execution
from serve_app.execution.files import NodeFiles
from serve_app.execution.node_failure import NodeFailedError
from serve_app.execution.result_cache import ResultCache
from serve_app.graph.parse import parse
from serve_app.graph.plan import Task, TaskId
from serve_app.graph.signature import signatures
from serve_app.graph.validate import validate
from serve_app.images import resize
from serve_app.nodes.registry import BUILTIN, specs
from serve_app.recipe.recipe import Recipe
from serve_app.recipe.text import ClipSkip
from serve_app.sampling.request import Sampled, SamplingRequest, Steps
from serve_app.store.files.reserved import Contents
from serve_app.store.files.store import AREAS, FileRef
from serve_app.store.files.volume import Volume
from serve_app.values import Cfg, Noise, SamplerChoice


class Oracle:
    """A runtime of trivial models: conditioning is the text's length, sampling adds one, a pixel is an 8×8 mean."""

    def __init__(self) -> None:
        self.clips: list[Recipe] = []
        self.requests: list[SamplingRequest] = []

    async def encode_text(self, clip: Recipe, text: str) -> Any:
        self.clips.append(clip)
        return [(torch.full((1, 77, 8), float(len(text))), {})]

    async def sample(self, request: SamplingRequest) -> Sampled:
        self.requests.append(request)
        return Sampled(request.latents + 1, request.latents)

    async def decode(self, vae: Recipe, latents: torch.Tensor) -> torch.Tensor:
        assert vae.part == "vae"
        return latents[:, :3].movedim(1, -1).repeat_interleave(8, 1).repeat_interleave(8, 2) / 2

    async def encode(self, vae: Recipe, images: torch.Tensor) -> torch.Tensor:
        assert images.shape[-1] == 3
        means = torch.nn.functional.avg_pool2d(images.movedim(-1, 1), 8) * 2
        return torch.cat([means, torch.zeros_like(means[:, :1])], dim=1)


class Replica:
    def __init__(self, root: Path) -> None:
        self.volume = Volume({area: root / area for area in AREAS})
        self.oracle = Oracle()
        self.held = ResultCache(10**9, lambda signatures: None)
        self.ui: dict[str, Any] = {}
        self.next = 1

    def runtime(self, node_id: str) -> Any:
        return self.oracle

    def files(self, node_id: str) -> NodeFiles:
        return NodeFiles(self.volume, "job", node_id, self.reserve)

    async def reserve(self, key: str, at_least: int, contents: Contents) -> tuple[int, bool]:
        return at_least, False

    def progress(self, node_id: str) -> Any:
        return lambda *told: None

    message_sender = progress

    def time_limit(self, spec: Any) -> None:
        return None

    def fingerprint(self, folder: str, name: str) -> str:
        return ""

    def started(self, node_id: str, origin: Any) -> None: ...

    def finished(
        self, node_id: str, signature: str, ui: Mapping[str, Any] | None, origin: Any, *, computed: bool
    ) -> None:
        self.ui[node_id] = ui

    def cached(self, nodes: tuple[str, ...]) -> None: ...

    def blocked(self, node_id: str, class_type: str, message: str) -> None: ...

    async def fetch(self, signature: str) -> None: ...

    async def run(self, *targets: str, extra: Any = None, **nodes: tuple[str, dict[str, Any]]) -> list[Any]:
        """Validate, sign and run; return the first value of each target's slots."""
        prompt = {node_id: {"class_type": kind, "inputs": inputs} for node_id, (kind, inputs) in nodes.items()}
        checked = validate(parse(prompt), specs(), lambda folder: ["a.png", "a.latent", "sd15.safetensors"])
        assert [p for p in checked.problems if p.type != "prompt_no_outputs"] == []
        graph = checked.graph
        signed = signatures(graph, specs(), lambda folder, name: "")
        extra_data = {} if extra is None else {"extra_pnginfo": extra}
        task = Task(TaskId("job", 0, 1), graph.nodes, targets, signed, frozenset(), prompt, extra_data)
        execution = Execution(task, BUILTIN, self.held, self, self, self.fetch)
        await asyncio.wait_for(execution.run(), 60)
        values = []
        for target in targets:
            result = self.held.get(signed[target])
            assert result is not None
            values += [slot[0] for slot in result.outputs]
        return values

    def stored(self, area: Any, item: dict[str, str]) -> bytes:
        with self.volume.open(FileRef(area, item["subfolder"], item["filename"])) as file:
            return file.read()


@pytest.fixture
def replica(tmp_path: Path) -> Replica:
    return Replica(tmp_path)


CHECKPOINT = ("CheckpointLoaderSimple", {"ckpt_name": "sd15.safetensors"})
EMPTY = ("EmptyLatentImage", {"width": 72, "height": 64, "batch_size": 2})
KSAMPLER = {
    "model": ["c", 0],
    "seed": 7,
    "steps": 4,
    "cfg": 5,
    "sampler_name": "heun",
    "scheduler": "karras",
    "positive": ["p", 0],
    "negative": ["n", 0],
    "latent_image": ["e", 0],
    "denoise": 0.5,
}


async def test_text_to_image_runs_as_one_task_and_leaves_images_that_carry_their_workflow(replica: Replica) -> None:
    await replica.run(
        "s",
        c=CHECKPOINT,
        e=EMPTY,
        p=("CLIPTextEncode", {"text": "a cat", "clip": ["c", 1]}),
        n=("CLIPTextEncode", {"text": "", "clip": ["c", 1]}),
        k=("KSampler", KSAMPLER),
        d=("VAEDecode", {"samples": ["k", 0], "vae": ["c", 2]}),
        s=("SaveImage", {"images": ["d", 0], "filename_prefix": "sub/%width%x%height%"}),
        extra={"workflow": {"nodes": []}},
    )
    images = replica.ui["s"]["images"]
    assert [item["filename"] for item in images] == ["72x64_00001_.png", "72x64_00002_.png"]
    assert {(item["subfolder"], item["type"]) for item in images} == {("sub", "output")}
    png = Image.open(io.BytesIO(replica.stored("output", images[0])))
    assert png.size == (72, 64)
    assert png.getpixel((0, 0)) == (127, 127, 127)
    assert json.loads(png.text["prompt"])["k"]["class_type"] == "KSampler"  # type: ignore[attr-defined]
    assert json.loads(png.text["workflow"]) == {"nodes": []}  # type: ignore[attr-defined]


async def test_ksampler_asks_for_the_whole_schedule_with_noise_from_its_seed(replica: Replica) -> None:
    text = ("CLIPTextEncode", {"text": "x", "clip": ["c", 1]})
    (latent,) = await replica.run("k", c=CHECKPOINT, e=EMPTY, p=text, n=text, k=("KSampler", KSAMPLER))
    (request,) = replica.oracle.requests
    assert request.guider.backbone == Recipe("backbone", "checkpoints", "sd15.safetensors")
    assert request.guider.rule == Cfg(5.0)
    assert request.sampler == SamplerChoice("heun")
    assert request.sigmas == Steps("karras", 4, 0.5)
    assert request.noise == Noise(7)
    assert request.latents.shape == (2, 4, 8, 9)
    assert torch.equal(latent["samples"], torch.ones(2, 4, 8, 9))


@pytest.mark.parametrize(
    ("add_noise", "leftover", "added", "full"), [("enable", "enable", True, False), ("disable", "disable", False, True)]
)
async def test_ksampler_advanced_asks_for_a_window_of_steps(
    replica: Replica, add_noise: str, leftover: str, added: bool, full: bool
) -> None:
    text = ("CLIPTextEncode", {"text": "x", "clip": ["c", 1]})
    inputs = {k: v for k, v in KSAMPLER.items() if k not in ("seed", "denoise")} | {
        "noise_seed": 7,
        "add_noise": add_noise,
        "start_at_step": 1,
        "end_at_step": 3,
        "return_with_leftover_noise": leftover,
    }
    await replica.run("k", c=CHECKPOINT, e=EMPTY, p=text, n=text, k=("KSamplerAdvanced", inputs))
    (request,) = replica.oracle.requests
    assert request.noise == Noise(7, added)
    assert request.sigmas == Steps("karras", 4, start=1, end=3, full_denoise=full)


async def test_clip_skip_is_a_patch_on_the_recipe(replica: Replica) -> None:
    skip = ("CLIPSetLastLayer", {"clip": ["c", 1], "stop_at_clip_layer": -2})
    await replica.run("t", c=CHECKPOINT, s=skip, t=("CLIPTextEncode", {"text": "x", "clip": ["s", 0]}))
    assert replica.oracle.clips == [Recipe("clip", "checkpoints", "sd15.safetensors", (ClipSkip(-2),))]


async def test_a_vae_file_of_its_own_is_a_recipe_of_the_vae_folder(replica: Replica) -> None:
    assert await replica.run("v", v=("VAELoader", {"vae_name": "sd15.safetensors"})) == [
        Recipe("vae", "vae", "sd15.safetensors")
    ]


async def test_an_uploaded_image_is_loaded_encoded_and_saved_again(replica: Replica) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (64, 72, 4), dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    replica.volume.write(FileRef("input", "", "a.png"), buffer.getvalue())
    images, masks, latent = await replica.run(
        "l",
        "e",
        l=("LoadImage", {"image": "a.png"}),
        v=("VAELoader", {"vae_name": "sd15.safetensors"}),
        e=("VAEEncode", {"pixels": ["l", 0], "vae": ["v", 0]}),
    )
    assert torch.equal((images[0] * 255).round().to(torch.uint8), torch.from_numpy(pixels[..., :3]))
    assert torch.allclose(masks[0], 1 - torch.from_numpy(pixels[..., 3]) / 255)
    assert latent["samples"].shape == (1, 4, 8, 9)
    await replica.run("s", l=("LoadImage", {"image": "a.png"}), s=("PreviewImage", {"images": ["l", 0]}))
    (item,) = replica.ui["s"]["images"]
    assert item["type"] == "temp"
    assert np.array_equal(np.array(Image.open(io.BytesIO(replica.stored("temp", item)))), pixels[..., :3])


async def test_a_file_that_is_missing_fails_the_node_that_reads_it(replica: Replica) -> None:
    with pytest.raises(NodeFailedError, match=r"LoadImage l: output file 'sub/x.png': there is no such file"):
        await replica.run("l", l=("LoadImage", {"image": "sub/x.png [output]"}))


async def test_a_latent_comes_back_from_its_file_as_it_was_saved(replica: Replica) -> None:
    save = {"samples": ["u", 0], "filename_prefix": "latents/x"}
    upscale = {"samples": ["e", 0], "upscale_method": "bislerp", "width": 128, "height": 0, "crop": "disabled"}
    await replica.run("s", e=EMPTY, u=("LatentUpscale", upscale), s=("SaveLatent", save), extra={"workflow": 5})
    (item,) = replica.ui["s"]["latents"]
    assert item == {"filename": "x_00001_.latent", "subfolder": "latents", "type": "output"}
    data = replica.stored("output", item)
    assert set(safetensors.torch.load(data)) == {"latent_tensor", "latent_format_version_0"}
    header = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])
    assert json.loads(header["__metadata__"]["workflow"]) == 5
    (latent,) = await replica.run("l", l=("LoadLatent", {"latent": "latents/x_00001_.latent [output]"}))
    assert torch.equal(latent["samples"], torch.zeros(2, 4, 14, 16))


async def test_each_latent_of_a_list_is_saved(replica: Replica) -> None:
    two = ("RebatchLatents", {"latents": ["e", 0], "batch_size": 1})
    await replica.run("s", e=EMPTY, r=two, s=("SaveLatent", {"samples": ["r", 0], "filename_prefix": "x"}))
    assert [item["filename"] for item in replica.ui["s"]["latents"]] == ["x_00001_.latent", "x_00002_.latent"]


async def test_a_latent_file_from_before_versions_is_unscaled_and_another_file_is_refused(replica: Replica) -> None:
    old = safetensors.torch.save({"latent_tensor": torch.full((1, 4, 2, 2), 0.18215, dtype=torch.float16)})
    replica.volume.write(FileRef("input", "", "a.latent"), old)
    (latent,) = await replica.run("l", l=("LoadLatent", {"latent": "a.latent"}))
    assert torch.allclose(latent["samples"], torch.ones(1, 4, 2, 2), atol=1e-3)
    replica.volume.write(FileRef("input", "x", "a.latent"), b"no latent")
    with pytest.raises(NodeFailedError, match=r"is no \.latent file"):
        await replica.run("l", l=("LoadLatent", {"latent": "x/a.latent"}))


@pytest.mark.parametrize(
    ("width", "height", "size"),
    [(0, 0, (8, 9)), (128, 64, (8, 16)), (8, 8, (8, 8)), (0, 128, (16, 18)), (144, 0, (16, 18))],
)
async def test_latent_sizes_follow_pixels_with_zero_for_the_other_sides_aspect(
    replica: Replica, width: int, height: int, size: tuple[int, int]
) -> None:
    inputs = {"samples": ["e", 0], "upscale_method": "area", "width": width, "height": height, "crop": "disabled"}
    (latent,) = await replica.run("u", e=EMPTY, u=("LatentUpscale", inputs))
    assert latent["samples"].shape[-2:] == size


@pytest.mark.parametrize(
    ("width", "height", "size"), [(0, 0, (4, 8)), (5, 3, (3, 5)), (0, 2, (2, 4)), (2, 0, (1, 2)), (1, 0, (1, 1))]
)
async def test_image_sizes_follow_the_other_side_where_one_is_zero(
    replica: Replica, width: int, height: int, size: tuple[int, int]
) -> None:
    inputs = {"image": ["i", 0], "upscale_method": "bicubic", "width": width, "height": height, "crop": "center"}
    image = ("EmptyImage", {"width": 8, "height": 4, "batch_size": 3, "color": 0xFF8000})
    before, after = await replica.run("i", "u", i=image, u=("ImageScale", inputs))
    assert torch.equal(before[2, 3, 7], torch.tensor([1.0, 0x80 / 0xFF, 0.0]))
    assert after.shape == (3, *size, 3)
    if width and height:
        assert torch.equal(after, resize(before, width, height, "bicubic", "center"))


async def test_a_latents_other_members_travel_on() -> None:
    latent: dict[str, Any] = {
        "samples": torch.zeros(1, 4, 8, 8),
        "noise_mask": torch.ones(1, 64, 64),
        "batch_index": [3],
    }
    oracle = Oracle()
    inputs = {k: v for k, v in KSAMPLER.items() if not isinstance(v, list)}
    (sampled,) = await BUILTIN["KSampler"]().sample(
        **inputs, model=None, positive=[], negative=[], latent_image=latent, runtime=oracle
    )
    (scaled,) = BUILTIN["LatentUpscale"]().upscale(sampled, "area", 128, 128, "disabled")
    assert scaled["noise_mask"] is latent["noise_mask"]
    assert scaled["batch_index"] == oracle.requests[0].batch_index == [3]
    assert oracle.requests[0].noise_mask is latent["noise_mask"]
    assert latent["samples"].shape == (1, 4, 8, 8)
    assert not latent["samples"].any()


async def test_lists_of_batches_are_saved_together_under_their_prefixes(replica: Replica) -> None:
    save = BUILTIN["SaveImage"]()
    batches = [torch.zeros(2, 4, 8, 3), torch.zeros(1, 2, 2, 3)]
    shown = await save.save_images(batches, [{}], [None], [replica.files("s")], ["x"])
    assert [item["filename"] for item in shown["ui"]["images"]] == [f"x_0000{i}_.png" for i in (1, 2, 3)]
    shown = await save.save_images(batches, [{}], ["junk"], [replica.files("s")], ["%width%"])
    assert [item["filename"] for item in shown["ui"]["images"]] == ["8_00001_.png", "8_00002_.png", "2_00001_.png"]
