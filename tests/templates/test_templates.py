"""Official templates from end to end: as saved, over HTTP, with tiny files under the names they give.

Texts and the sizes of pictures are the templates' own. A template that is not in the installed package is skipped by
name.
"""

from __future__ import annotations

import asyncio
import io
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial
from importlib.resources import files
from pathlib import Path
from typing import Any

import httpx
import pytest
from PIL import Image

from serve_app.api.app import create_app
from serve_app.cli.convert import own_classes
from serve_app.config.pool import PoolConfig
from serve_app.graph.saved.convert import convert
from serve_app.nodes.registry import specs
from serve_app.nodes.unsupported import NOT_THERE
from serve_app.nodes.video.value import VideoFromFile
from serve_app.service.service import Service
from serve_app.store.files.input_folders import choices
from serve_app.store.files.volume import Volume
from serve_app.store.models.catalog import Catalog
from tests.templates import tiny
from tests.unit.replica.cluster import cluster
from tests.usual_limits import LIMITS

PACKAGE = "comfyui_workflow_templates_json"
TEMPLATES = {
    "image_z_image_turbo": (1024, 1024),
    "image_z_image": (1024, 1024),
    "flux_dev_full_text_to_image": (1024, 1024),
    "flux_schnell": (1024, 1024),
    "flux1_krea_dev": (1024, 1024),
    "flux_redux_model_example": (1024, 1024),
    "flux_kontext_dev_basic": None,
    "flux_fill_inpaint_example": (256, 256),
    "flux_fill_outpaint_example": None,
    "flux_canny_model_example": (256, 256),
    "sdxl_revision_text_prompts": (1024, 1024),
    "sd3.5_simple_example": (1024, 1024),
    "sd3.5_large_canny_controlnet_example": (1024, 1024),
    "sd3.5_large_blur": (1024, 1024),
    "image_krea2_turbo_t2i": (1024, 1024),
    "image_krea2_turbo_t2i_int8": (1024, 1024),
    "image_qwen_image": (1328, 1328),
    "image_qwen_Image_2512": (1328, 1328),
    "image_qwen_image_edit_2509": None,
    "image_qwen_image_edit_2511": None,
    "image_qwen_image_edit": None,
    "image_qwen_image_layered": (640, 640),
    "image_z_image_turbo_fun_union_controlnet": None,
    "image_qwen_image_controlnet_patch": None,
    "image_qwen_image_instantx_inpainting_controlnet": None,
    "image_qwen_Image_2512_controlnet": None,
    "image_anima_preview": (1024, 1024),
    "image_anima_base_v1": None,
    "hidream_i1_fast": (1024, 1024),
    "image_omnigen2_t2i": (1024, 1024),
    "image_qwen_image_2_1_t2i": (1024, 1024),
    "image_qwen_image_2_1_turbo_t2i": (1024, 1024),
    "image_qwen_image_2_1_image_edit": None,
    "image_qwen_image_2_1_turbo_image_edit": None,
    "image_qwen_image_2_1_background_removal": None,
    "image_flux2_klein_text_to_image": (1024, 1024),
    "image_flux2_klein_image_edit_4b_base": None,
    "image_flux2_klein_image_edit_4b_distilled": None,
    "image_flux2_klein_9b_kv_image_edit": None,
    "image_flux2_text_to_image": (1024, 1024),
    "image_flux2_text_to_image_9b": (1024, 1024),
    "image_flux2": None,
    "image_flux2_fp8": None,
    "image_flux3_klein_t2i": (1024, 1024),
    "image_flux3_klein_distilled_image_edit": None,
    "image_ideogram4_t2i": None,
    "image_longcat_text_to_image": (1024, 1024),
    "image_mage_flow_t2i_int8": (1024, 1024),
    "image_kandinsky5_t2i": (1024, 1024),
    "image_boogu_image_0_1_turbo_t2i": (1024, 1024),
    "image_boogu_image_0_1_edit": None,
    "image_chroma1_radiance_text_to_image": (1024, 1024),
}
"""The templates, and the size of the picture that each makes; None where it follows from its input."""
USUAL = {
    *("sdxl_revision_text_prompts", "image_flux2_text_to_image", "image_mage_flow_t2i_int8", "image_omnigen2_t2i"),
    *("image_chroma1_radiance_text_to_image", "image_qwen_image_layered", "flux_fill_outpaint_example"),
    *("flux_kontext_dev_basic", "image_qwen_image_instantx_inpainting_controlnet"),
}
"""Of each kind of picture one or two: from a text, from pictures that are seen, edited, filled, controlled or taken
apart, of a network in pixels, of weights of eight bits. Long tests run the others too, whose networks and encoders of
texts are compared with ComfyUI's one by one in tests/parity.
"""
LAYERS = {"image_qwen_image_layered": 2}
"""How many pictures, with transparent parts, a template makes that takes one apart; Qwen-Image 2.1's have such too."""
PICTURES = {"image_qwen_image_instantx_inpainting_controlnet": 2}
"""How many pictures a template makes that holds several workflows."""
VIDEOS = {
    "txt_to_image_to_video": 10,
    "video_wan2_2_14B_i2v": 16,
    "video_wan2_2_14B_fun_control": 16,
    "video_wan2_2_5B_ti2v": 24,
    "video_hunyuan_video_1.5_720p_t2v": 24,
    "hunyuan_video_text_to_video": 24,
    "video_kandinsky5_i2v": 24,
    "ltxv_text_to_video": 24,
    "ltxv_image_to_video": 24,
    "wan2.1_fun_inp": 16,
    "video_wan_vace_flf2v": 16,
    "video_wan2_2_14B_fun_camera": 16,
}
"""Templates that make a video, and its images a second."""
USUAL_VIDEOS = ("video_wan2_2_14B_i2v", "video_wan_vace_flf2v")
"""Of two networks in turn, and of a network that is controlled."""
WITH_SOUND = ("video_minimax_h3_t2v", "video_minimax_h3_r2v", "video_fastvideo_fasth3_t2v")
"""Templates that make a video with its sound."""
CUT = {"width": 64, "height": 64, "length": 17, "video_frames": 17}
"""How large a video is made here, where a node is given its size as numbers: the templates' own take minutes."""
CUT_BY_TITLE = {"Width": 64, "Height": 64, "Duration": 1, "Float (Duration)": 1.0, "Float (duration)": 0.5}
"""The same for what nodes compute it of, by the titles of those that give these numbers; durations are in seconds."""
SWITCHES = {
    "Enable 4 Steps LoRA?": True,
    "Enable 4steps LoRA?": True,
    "Boolean (Enable Lightning LoRA?)": True,
    "Boolean (Enable Lightning LoRA)": True,
}
"""Switches that are turned here, by title, as those of few steps are."""
SMALL = {
    **dict.fromkeys(("width", "height", "largest_size", "Width", "Height"), 256),
    **dict.fromkeys(("left", "right", "bottom"), 64),
    "megapixels": 0.1,
}
"""The largest numbers that short tests leave in inputs, or nodes, of these names: templates' own sizes take minutes."""
SCALE = {"upscale_method": "area", "width": 256, "height": 256, "crop": "disabled"}
"""To what short tests scale an image with ImageScale where FluxKontextImageScale makes it a megapixel."""
SMALL_SIDE = 400
"""The longest side of a picture of 0.1 megapixels or less, of any template."""
STEPS = 2
"""How many steps samplers take at most, where no window is cut of them: forty take too long."""
TOKENS = 24
"""How many tokens of a prompt language models write at most."""
BYPASSED = 4
"""The mode of a node that is passed over. Here those that load images are not: a template tells how to turn them on."""
PATIENCE_S = 300.0


def template(name: str) -> Any:
    path = Path(str(files(PACKAGE))) / "templates" / f"{name}.json"
    if not path.is_file():
        pytest.skip(f"the installed {PACKAGE} has no template {name}")
    return json.loads(path.read_text(encoding="utf-8"))


def prompt_of(name: str) -> dict[str, Any]:
    pytest.importorskip(PACKAGE)
    saved = template(name)
    for node in saved["nodes"] if name in (*VIDEOS, *WITH_SOUND) else ():
        if node["type"] == "LoadImage" and node["mode"] == BYPASSED:
            node["mode"] = 0
    prompt = convert(saved, own_classes(), NOT_THERE)
    for node in prompt.values():
        if (title := node["_meta"]["title"]) in SWITCHES:
            node["inputs"]["value"] = SWITCHES[title]
        inputs = node["inputs"]
        if isinstance(tokens := inputs.get("max_length"), int):
            inputs["max_length"] = min(tokens, TOKENS)
        if "steps" in inputs and "end_at_step" not in inputs:
            cut_steps(prompt, inputs, "steps")
    return prompt


def cut_steps(prompt: dict[str, Any], inputs: dict[str, Any], key: str) -> None:
    """Let an input be no more than `STEPS`, or what gives it: a number, or a switch between two."""
    if isinstance(steps := inputs[key], int):
        inputs[key] = min(steps, STEPS)
    elif (given := prompt[steps[0]])["class_type"] == "PrimitiveInt":
        cut_steps(prompt, given["inputs"], "value")
    elif given["class_type"] == "ComfySwitchNode":
        cut_steps(prompt, given["inputs"], "on_false")
        cut_steps(prompt, given["inputs"], "on_true")


@asynccontextmanager
async def ran(prompt: dict[str, Any], tmp_path: Path) -> AsyncIterator[tuple[httpx.AsyncClient, dict[str, Any]]]:
    """Run a prompt, and yield a client of the server and what nodes show in its history."""
    tiny.write(tmp_path / "models", prompt, specs())
    tiny.write_inputs(tmp_path / "input", prompt, specs())
    async with cluster(tmp_path, (PoolConfig(name="cpu", threads=1),)) as running:
        catalog = Catalog(tmp_path / "models")
        store = Volume(running.config.directories)
        service = Service(running.scheduler, store, partial(choices, store, catalog), LIMITS, catalog=catalog)
        transport = httpx.ASGITransport(create_app(service))
        async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
            accepted = await client.post("/api/prompt", json={"prompt": prompt})
            assert accepted.status_code == 200, accepted.text
            job_id = accepted.json()["prompt_id"]
            view = await asyncio.wait_for(running.finish(job_id), PATIENCE_S)
            assert view.state == "success", view.failure
            yield client, (await client.get(f"/api/history/{job_id}")).json()[job_id]["outputs"]


def saved_of(outputs: dict[str, Any]) -> list[dict[str, Any]]:
    shown = [image for output in outputs.values() for image in output.get("images", ())]
    return [image for image in shown if image["type"] == "output"]


def shrink(prompt: dict[str, Any]) -> None:
    for node in prompt.values():
        title = node["_meta"]["title"]
        if node["class_type"] == "FluxKontextImageScale":
            node |= {"class_type": "ImageScale", "inputs": {**node["inputs"], **SCALE}}
        for key, number in node["inputs"].items():
            most = SMALL.get(title if key == "value" else key.rpartition(".")[2])
            if most is not None and isinstance(number, int | float):
                node["inputs"][key] = min(number, most)


@pytest.mark.parametrize("own_size", [False, pytest.param(True, marks=pytest.mark.long)], ids=["small", "own size"])
@pytest.mark.parametrize(
    "name", [name if name in USUAL else pytest.param(name, marks=pytest.mark.long) for name in TEMPLATES]
)
async def test_a_template_makes_its_pictures(name: str, own_size: bool, tmp_path: Path) -> None:
    prompt = prompt_of(name)
    if not own_size:
        shrink(prompt)
    async with ran(prompt, tmp_path) as (client, outputs):
        if any(node["class_type"] == "TextGenerate" for node in prompt.values()):
            shown = {text for output in outputs.values() for text in output.get("text", ())}
            assert shown - {"", *(node["inputs"].get("value") for node in prompt.values())}
        pictures = saved_of(outputs)
        assert len(pictures) == LAYERS.get(name, PICTURES.get(name, 1))
        for saved in pictures:
            picture = await client.get("/api/view", params=saved)
            with Image.open(io.BytesIO(picture.content)) as image:
                if own_size:
                    assert TEMPLATES[name] in (None, image.size)
                elif TEMPLATES[name] is not None:
                    assert max(image.size) <= SMALL_SIDE
                assert len(image.convert("L").getcolors(256) or ()) > 8, "it is of one colour"
                assert image.mode == ("RGBA" if name in LAYERS or "qwen_image_2_1" in name else "RGB")


async def test_a_template_shows_the_text_that_a_language_model_writes_about_an_image(tmp_path: Path) -> None:
    async with ran(prompt_of("llm_qwen3_5_text_gen"), tmp_path) as (_, outputs):
        [[text]] = [output["text"] for output in outputs.values()]
        assert text


def cut(prompt: dict[str, Any]) -> None:
    for node in prompt.values():
        if (title := node["_meta"]["title"]) in CUT_BY_TITLE:
            node["inputs"]["value"] = CUT_BY_TITLE[title]
        if node["inputs"].keys() >= {"width", "height"}:
            node["inputs"] |= {key: value for key, value in CUT.items() if isinstance(node["inputs"].get(key), int)}


@pytest.mark.parametrize(
    "name", [name if name in USUAL_VIDEOS else pytest.param(name, marks=pytest.mark.long) for name in VIDEOS]
)
async def test_a_template_makes_its_video(name: str, tmp_path: Path) -> None:
    prompt = prompt_of(name)
    cut(prompt)
    async with ran(prompt, tmp_path) as (client, outputs):
        [saved] = saved_of(outputs)
        made = VideoFromFile((await client.get("/api/view", params=saved)).content).get_components()
        assert made.images.shape == (CUT["length"], CUT["height"], CUT["width"], 3)
        assert made.frame_rate == VIDEOS[name]
        assert made.images.std() > 0.01, "it is of one colour"
        assert (made.images[1:] - made.images[:-1]).abs().amax(dim=(1, 2, 3)).min() > 0, "it stands still"


@pytest.mark.parametrize(
    "name", [WITH_SOUND[0], *(pytest.param(name, marks=pytest.mark.long) for name in WITH_SOUND[1:])]
)
async def test_a_template_makes_its_video_with_sound(name: str, tmp_path: Path) -> None:
    prompt = prompt_of(name)
    cut(prompt)
    shrink(prompt)
    async with ran(prompt, tmp_path) as (client, outputs):
        [saved] = saved_of(outputs)
        made = VideoFromFile((await client.get("/api/view", params=saved)).content).get_components()
        assert (len(made.images) - 5) % 17 == 0
        assert made.frame_rate == 24
        assert (made.images[1:] - made.images[:-1]).abs().amax(dim=(1, 2, 3)).min() > 0, "it stands still"
        assert made.audio is not None
        waveform, seconds = made.audio["waveform"], len(made.images) / 24
        assert waveform.shape[1] == 2
        assert abs(waveform.shape[-1] / made.audio["sample_rate"] - seconds) < 0.1
        assert waveform.std() > 0, "it is silent"
