"""Every family of networks in whole replicas on a card that only claims to be one: it loads, draws by graphs, saves.

A new family is a line in FILES, or any other workflow in PROMPTS, and in SHOWN, where each workflow names the families
that it loads. One that no workflow here can load is in NOT_SHOWN, with the reason.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import fields, is_dataclass
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple
from unittest import mock

import pytest
import torch
from PIL import Image
from torch import Tensor

from serve_app.execution.size import allow, bounds
from serve_app.media.loading import load_sound
from serve_app.models import families
from serve_app.models.families.family import Family
from serve_app.models.weights.loading import Loaded
from serve_app.nodes.registry import specs
from serve_app.nodes.video.value import VideoFromFile
from tests.parity import taehv_files, taesd_cases
from tests.templates import tiny
from tests.templates.test_ltx import small_prompt as small_ltx
from tests.templates.test_seedvr2 import resize
from tests.templates.test_seeing import finding_all, looking_small
from tests.templates.test_sound import TEMPLATES as SOUNDS
from tests.templates.test_sound import short_prompt as short_sound
from tests.templates.test_templates import cut, prompt_of, shrink
from tests.unit.models.sample import write_sample_checkpoint
from tests.unit.replica.cluster import Cluster
from tests.unit.replica.test_card_replicas import GPU, a_card, prompt, replicas
from tests.workflows import txt2img

STEPS = 4
"""The first two forwards are eager; the third is captured."""


class Files(NamedTuple):
    """The files that one workflow draws with, by names as `tiny` knows them, and what is particular in it."""

    network: str
    kind: str
    texts: tuple[str, ...]
    vae: str = "ae"
    latent: str = "EmptySD3LatentImage"


FILES = (
    Files("anima", "stable_diffusion", ("qwen_3_06b",), "qwen_image_vae"),
    Files("boogu", "boogu", ("qwen3vl_8b",), latent="EmptyLatentImage"),
    Files("auraflow", "stable_diffusion", ("pile_t5",), "sdxl", "EmptyLatentImage"),
    Files("chroma", "chroma", ("t5xxl_48",)),
    Files("ernie-image", "flux2", ("ministral-3-3b",), "flux2-vae", "EmptyFlux2LatentImage"),
    Files("flux1", "flux", ("clip_l", "t5xxl")),
    Files("flux2_dev", "flux2", ("mistral_3",), "flux2-vae", "EmptyFlux2LatentImage"),
    Files("flux-2-klein", "flux2", ("qwen_3_4b",), "flux2-vae", "EmptyFlux2LatentImage"),
    Files("flux3-image-klein-base", "flux3", ("qwen3vl_4b",), "flux2-vae", "EmptyFlux2LatentImage"),
    Files("hidream_i1", "", ("clip_l", "clip_g", "t5xxl", "llama_3.1")),
    Files(
        *("hunyuanvideo1.5", "hunyuan_video_15", ("qwen_2.5_vl_7b", "byt5"), "hunyuanvideo15_vae"),
        latent="EmptyHunyuanVideo15Latent",
    ),
    Files(
        *("hunyuan_video_t2v", "hunyuan_video", ("clip_l", "llava_llama3"), "hunyuan_video_vae"),
        latent="EmptyHunyuanLatentVideo",
    ),
    Files("ideogram4", "ideogram4", ("qwen3vl_8b",), "flux2-vae", "EmptyFlux2LatentImage"),
    Files(
        *("kandinsky5lite_t2v", "kandinsky5", ("qwen_2.5_vl_7b", "clip_l"), "hunyuan_video_vae"),
        latent="EmptyHunyuanLatentVideo",
    ),
    Files("kandinsky5lite_t2i", "kandinsky5_image", ("qwen_2.5_vl_7b", "clip_l"), latent="EmptyLatentImage"),
    Files("krea2", "krea2", ("qwen3vl_4b",), "qwen_image_vae"),
    Files("longcat_image", "longcat_image", ("qwen_2.5_vl_7b",)),
    Files("lumina2", "lumina2", ("gemma_2",)),
    Files("mage_flow", "mage", ("qwen3vl_4b",), "mage_flow_vae", "EmptyFlux2LatentImage"),
    Files("omnigen2", "omnigen2", ("qwen_2.5_vl_fp16",)),
    Files("ovis_image", "ovis", ("ovis_2.5",)),
    Files("pixart_alpha", "pixart", ("t5xxl_48",), "sdxl", "EmptyLatentImage"),
    Files("pixart", "pixart", ("t5xxl_48",), "sdxl", "EmptyLatentImage"),
    Files("qwen_image", "qwen_image", ("qwen_2.5_vl_7b",), "qwen_image_vae"),
    Files("qwen_image_2.1", "qwen_image", ("qwen3vl_8b",), "qwen_image_2.1_vae", "EmptyLatentImage"),
    Files("wan2.1_14B_SCAIL_2", "wan", ("umt5_xxl",), "wan_2.1_vae", "EmptyHunyuanLatentVideo"),
    Files("wan2.1_t2v", "wan", ("umt5_xxl",), "wan_2.1_vae", "EmptyHunyuanLatentVideo"),
    Files("wan_animate_2", "wan", ("umt5_xxl",), "wan_2.1_vae", "EmptyHunyuanLatentVideo"),
    Files("wan2.2_ti2v_5B", "wan", ("umt5_xxl",), "wan2.2_vae", "Wan22ImageToVideoLatent"),
    Files("z_image", "lumina2", ("qwen_3_4b",)),
)
CHECKPOINTS = ("tiny", "sd3.5", "sd_xl")
CLIP_LOADERS = {1: "CLIPLoader", 2: "DualCLIPLoader", 4: "QuadrupleCLIPLoader"}


def named(name: str) -> str:
    return f"{name}.safetensors"


def drawing(files: Files) -> dict[str, Any]:
    """Return the workflow of a text and a picture, or one latent frame of a video."""
    made = txt2img("", seed=1, steps=STEPS)
    many = len(files.texts) > 1
    texts = {f"clip_name{i if many else ''}": named(text) for i, text in enumerate(files.texts, 1)}
    made["1"] = {
        "class_type": CLIP_LOADERS[len(files.texts)],
        "inputs": texts | ({"type": files.kind} if files.kind else {}),
    }
    made["7"] = {"class_type": "UNETLoader", "inputs": {"unet_name": named(files.network), "weight_dtype": "default"}}
    made["2"]["inputs"]["clip"] = ["1", 0]
    made["3"]["inputs"]["model"] = ["7", 0]
    made["8"] = {"class_type": "VAELoader", "inputs": {"vae_name": named(files.vae)}}
    made["5"]["inputs"]["vae"] = ["8", 0]
    made["4"]["class_type"] = files.latent
    if "Video" in files.latent:
        made["4"]["inputs"] |= {"length": 5} | ({"vae": ["8", 0]} if "Image" in files.latent else {})
    return made


def of_template(name: str) -> dict[str, Any]:
    """Return an official template's workflow, small."""
    made = prompt_of(name)
    cut(made)
    shrink(made)
    return made


def sharp() -> dict[str, Any]:
    """Return SeedVR2's template of a picture, which it makes no larger."""
    made = prompt_of("utility_seedvr2_3b_int8_upscale_image")
    resize(made)
    return made


def seen(name: str) -> dict[str, Any]:
    """Return an official template's workflow that saves what others show."""
    made = prompt_of(name)
    for node in made.values():
        if node["inputs"].get("output") == "mask":
            # Which has two colours.
            node["inputs"]["output"] = "depth"
        if node["class_type"] == "PreviewImage":
            node |= {"class_type": "SaveImage", "inputs": {**node["inputs"], "filename_prefix": name}}
    return made


def masked(name: str) -> dict[str, Any]:
    """Return an official template's workflow that saves nothing but the mask that others show."""
    made = prompt_of(name)
    for node in list(made.values()):
        if node["class_type"] == "SAM3_Detect":
            # A network that knows nothing is sure of nothing.
            node["inputs"]["threshold"] = 0.0
        if node["class_type"] == "MaskPreview":
            made["image"] = {"class_type": "MaskToImage", "inputs": node["inputs"]}
            saved = {"images": ["image", 0], "filename_prefix": name}
            made["saved"] = {"class_type": "SaveImage", "inputs": saved}
    return made


def between(name: str) -> dict[str, Any]:
    """Return a workflow that saves a frame between two pictures."""
    pictures = {str(i): {"class_type": "LoadImage", "inputs": {"image": f"{i}.png"}} for i in (1, 2)}
    return {
        **pictures,
        "3": {"class_type": "ImageBatch", "inputs": {"image1": ["1", 0], "image2": ["2", 0]}},
        "4": {"class_type": "FrameInterpolationModelLoader", "inputs": {"model_name": named(name)}},
        "5": {
            "class_type": "FrameInterpolate",
            "inputs": {"interp_model": ["4", 0], "images": ["3", 0], "multiplier": 2},
        },
        "6": {"class_type": "SaveImage", "inputs": {"images": ["5", 0], "filename_prefix": name}},
    }


def styled() -> dict[str, Any]:
    """Return a workflow whose text is styled by an image."""
    made = prompt(1, "tiny", STEPS)
    made |= {
        "7": {"class_type": "LoadImage", "inputs": {"image": "style.png"}},
        "8": {"class_type": "CLIPVisionLoader", "inputs": {"clip_name": "clip_vision_l.safetensors"}},
        "9": {"class_type": "CLIPVisionEncode", "inputs": {"clip_vision": ["8", 0], "image": ["7", 0], "crop": "none"}},
        "10": {"class_type": "StyleModelLoader", "inputs": {"style_model_name": "t2iadapter_style.safetensors"}},
    }
    inputs = {"conditioning": ["2", 0], "style_model": ["10", 0], "clip_vision_output": ["9", 0]}
    made["11"] = {"class_type": "StyleModelApply", "inputs": {**inputs, "strength": 1.0, "strength_type": "multiply"}}
    made["3"]["inputs"]["positive"] = ["11", 0]
    return made


def unclip() -> dict[str, Any]:
    """Return a workflow whose text stands beside an image."""
    made = prompt(1, "unclip", STEPS)
    made["1"]["class_type"] = "unCLIPCheckpointLoader"
    encoded = {"clip_vision": ["1", 3], "image": ["7", 0], "crop": "center"}
    made |= {
        "7": {"class_type": "LoadImage", "inputs": {"image": "seen.png"}},
        "8": {"class_type": "CLIPVisionEncode", "inputs": encoded},
    }
    inputs: dict[str, object] = {
        "conditioning": ["2", 0],
        "clip_vision_output": ["8", 0],
        "strength": 1.0,
        "noise_augmentation": 0.1,
    }
    made["9"] = {"class_type": "unCLIPConditioning", "inputs": inputs}
    made["3"]["inputs"]["positive"] = ["9", 0]
    return made


def through(vae: str) -> dict[str, Any]:
    """Return a workflow in which an autoencoder takes an image, and another's latents."""
    made = {
        "1": {"class_type": "VAELoader", "inputs": {"vae_name": vae}},
        "2": {"class_type": "LoadImage", "inputs": {"image": "taken.png"}},
        "3": {"class_type": "VAEEncode", "inputs": {"vae": ["1", 0], "pixels": ["2", 0]}},
        "5": {"class_type": "VAEDecode", "inputs": {"vae": ["1", 0], "samples": ["3", 0]}},
    }
    return made | {"6": {"class_type": "SaveImage", "inputs": {"images": ["5", 0], "filename_prefix": vae}}}


TEMPLATES = (
    *("flux_redux_model_example", "sdxl_refiner_prompt_example", "txt_to_image_to_video", "video_minimax_h3_t2v"),
    *("image_lotus_depth_v1_1", "llm_qwen3_5_text_gen"),
    *("ltxv_text_to_video", "image_chroma1_radiance_text_to_image", "video_causal_forcing_i2v"),
)
TINY_VIDEO_VAES = {"taehv.safetensors": "Taehv", "taeh3.safetensors": "TaeH3"}
"""Tiny autoencoders of videos with the names of their families."""
OF_NO_FILE = ("pixel_space", "taesdxl", *TINY_VIDEO_VAES)
"""Autoencoders of which `tiny` writes no file."""
SEEING = ("utility_depth_anything3_image_depth_estimation", "utility_moge_depth_estimation")
"""Templates that show what a network sees in a picture."""
MASKING = ("utility_birefnet_remove_background", "utility_image_segment_sam3")
"""Templates that show masks of what a network sees in a picture."""
GREYS = 9
"""How many greys a picture has at least which a network drew."""
FEWER_GREYS = {**dict.fromkeys(MASKING, 2), "taesdxl": 4}
"""The same of a mask, and of an autoencoder whose weights are drawn so that it makes little else than grey."""
BETWEEN = ("film_net", "rife")
"""Networks that make frames between two."""
EAGER = {"hidream_i1", "seedvr2", *TEMPLATES, *SOUNDS, *OF_NO_FILE, *SEEING, *MASKING, "poses", *BETWEEN}
"""Workflows of which no forward need be captured: the host reads HiDream's, templates take two steps, others none."""
PROMPTS: Mapping[str, Callable[[], dict[str, Any]]] = {
    **{files.network: partial(drawing, files) for files in FILES},
    **{name: partial(prompt, 1, name, STEPS) for name in CHECKPOINTS},
    **{name: partial(of_template, name) for name in TEMPLATES},
    **{name: partial(small_ltx, name) for name in ("video_ltx2_t2v_distilled", "video_ltx2_5_i2v")},
    **{name: partial(short_sound, name) for name in SOUNDS},
    **{name: partial(seen, name) for name in SEEING},
    **{name: partial(masked, name) for name in MASKING},
    "poses": finding_all,
    **{name: partial(between, name) for name in BETWEEN},
    "seedvr2": sharp,
    "style": styled,
    "unclip": unclip,
    **{name: partial(through, name) for name in OF_NO_FILE},
}
PARTS = 6
"""In which all prompts are run: all at once take longer than a test may."""

KINDS: Sequence[Sequence[type[Family]]] = (
    *(families.BACKBONES, families.VAES, families.AUDIO_VAES, families.LATENT_UPSCALERS, families.IMAGE_ENCODERS),
    *(
        families.DEPTH_ESTIMATORS,
        families.GEOMETRY_ESTIMATORS,
        families.BACKGROUND_REMOVERS,
        families.FRAME_INTERPOLATORS,
    ),
    *(families.STYLE_MODELS, families.TEXT_ENCODERS, families.TEXT_READERS, families.TEXT_ENSEMBLES),
)
KNOWN = {family.__name__ for kind in KINDS for family in kind}
SHOWN: Mapping[str, str] = {
    "anima": "Anima AnimaText WanVae",
    "auraflow": "AuraFlow AutoencoderKL PileT5Text",
    "boogu": "Boogu BooguText",
    "chroma": "Chroma T5Text",
    "ernie-image": "ErnieImage Flux2Vae MinistralText",
    "flux1": "ClipText Flux FluxText",
    "flux2_dev": "Flux2 MistralText",
    "flux-2-klein": "Flux2 Qwen3Text",
    "flux3-image-klein-base": "Flux3 Flux3Text",
    "hidream_i1": "HiDream HiDreamText LlamaText",
    "hunyuan_video_t2v": "HunyuanVideo HunyuanVideoText HunyuanVideoVae",
    "hunyuanvideo1.5": "ByT5Text HunyuanVideo15 HunyuanVideo15Text HunyuanVideo15Vae",
    "ideogram4": "Ideogram4 Ideogram4Text",
    "kandinsky5lite_t2v": "Kandinsky5 Kandinsky5Text",
    "kandinsky5lite_t2i": "Kandinsky5Image Kandinsky5ImageText",
    "krea2": "Krea2 Krea2Text",
    "longcat_image": "LongCatImage LongCatText",
    "lumina2": "Gemma2Text Lumina2",
    "mage_flow": "MageFlow MageFlowText MageFlowVae",
    "omnigen2": "OmniGen2 OmniGen2Text",
    "ovis_image": "OvisImage OvisText",
    "pixart_alpha": "PixArtAlpha",
    "pixart": "PixArt",
    "qwen_image": "QwenImage QwenVlText",
    "qwen_image_2.1": "QwenImage21 QwenImage21Text QwenImage21Vae",
    "wan2.1_14B_SCAIL_2": "WanScail",
    "wan2.1_t2v": "UMT5Text Wan WanVae",
    "wan_animate_2": "WanAnimate2",
    "video_causal_forcing_i2v": "WanCausal",
    "wan2.2_ti2v_5B": "Wan22 Wan22Vae",
    "z_image": "Qwen3Text ZImage",
    "tiny": "Sd",
    "sd3.5": "Sd3 Sd3Text",
    "sd_xl": "Sdxl SdxlText",
    "flux_redux_model_example": "ClipVision Redux",
    "ltxv_text_to_video": "LtxVideo LtxVideoVae",
    "image_chroma1_radiance_text_to_image": "ChromaRadiance",
    "sdxl_refiner_prompt_example": "SdxlRefiner",
    "txt_to_image_to_video": "Svd TemporalKL",
    "video_minimax_h3_t2v": "MiniMaxH3 MiniMaxH3AudioVae MiniMaxH3Text MiniMaxH3Vae",
    "image_lotus_depth_v1_1": "Lotus",
    "llm_qwen3_5_text_gen": "Qwen35Text",
    "video_ltx2_t2v_distilled": "Gemma3Text Ltx2 Ltx2AudioVae Ltx2Projection Ltx2Text Ltx2Upscaler Ltx2Vae",
    "video_ltx2_5_i2v": "Gemma4Text Ltx25Text Ltx25Vae",
    "audio_ace_step_1_5_checkpoint": "AceStep15 AceStep15Vae AceStepText AceStepWriter",
    "audio_minimax_music_3": "MiniMaxMusic3 MiniMaxMusic3Text MiniMaxMusic3Vae",
    "audio_yue2_text2music": "YuE2 YuE2Text YuE2Vae",
    "audio_stable_audio_3_medium": "SameVae StableAudio3 T5GemmaText",
    "utility_depth_anything3_image_depth_estimation": "DepthAnything3",
    "utility_moge_depth_estimation": "MoGe",
    "utility_birefnet_remove_background": "BiRefNet",
    "utility_image_segment_sam3": "Sam31 Sam3Text",
    "poses": "RtDetr4 SdPose",
    "film_net": "Film",
    "rife": "Rife",
    "seedvr2": "SeedVr2 SeedVr2Vae",
    "style": "StyleAdapter",
    "unclip": "Unclip",
    "pixel_space": "PixelSpace",
    "taesdxl": "Taesd",
    **TINY_VIDEO_VAES,
}
"""The families that each workflow shows, by the names of their classes; what others show may be left out."""
NOT_SHOWN: Mapping[str, str] = {
    "StableAudioOpenVae": "AceStep15Vae is the same at another rate",
}
"""Families that no workflow here loads, and why."""


def test_every_family_is_shown_on_the_card_or_it_is_said_why_not() -> None:
    shown = {name for names in SHOWN.values() for name in names.split()}
    assert shown.isdisjoint(NOT_SHOWN)
    assert SHOWN.keys() == PROMPTS.keys()
    assert shown | NOT_SHOWN.keys() == KNOWN, (
        "a new family has a workflow in PROMPTS and SHOWN, or a reason in NOT_SHOWN"
    )


@contextmanager
def noted() -> Iterator[set[str]]:
    """Yield the names of the families of all that is loaded meanwhile, and of those that go together in one."""
    found: set[str] = set()
    model = Loaded.model

    def noting(loaded: Loaded, *arguments: Any) -> Any:
        family = loaded.family
        found.add(type(family).__name__)
        if is_dataclass(family):
            found.update(type(getattr(family, field.name)).__name__ for field in fields(family))
        return model(loaded, *arguments)

    with mock.patch.object(Loaded, "model", noting):
        yield found


async def trouble(running: Cluster, prompt: dict[str, Any], greys: int = GREYS) -> str:
    """Return what is wrong with a job of a prompt, or nothing. greys: how many a picture has at least."""
    known = specs()
    shows = [key for key, node in prompt.items() if known[node["class_type"]].output_node]
    targets = tuple(key for key in shows if prompt[key]["class_type"].startswith("Save")) or tuple(shows)
    view = await running.finish(await running.submit(prompt, targets))
    if view.state != "success":
        return f"{view.failure.class_type}: {view.failure.message}\n{''.join(view.failure.traceback)}"
    outputs = [view.outputs[key] for key in targets]
    if texts := [text for output in outputs for text in output.get("text", ())]:
        return "" if all(texts) else "it has written nothing"
    saved = [one for output in outputs for kind in ("images", "audio") for one in output.get(kind, ())]
    paths = [running.config.output_dir / one["subfolder"] / one["filename"] for one in saved]
    return "" if paths and all(says_something(path, greys) for path in paths) else "what it saved is of one value"


def says_something(path: Path, greys: int) -> bool:
    """Whether what a file holds differs, and is finite."""
    if path.suffix == ".png":
        with Image.open(path) as image:
            return len(image.convert("L").getcolors(256) or ()) >= greys
    values = values_of(path)
    return bool(values.isfinite().all()) and bool(values.std() > 0.01)


def values_of(path: Path) -> Tensor:
    """Return the numbers of a file of a video or a sound."""
    content = path.read_bytes()
    if path.suffix in (".mp3", ".flac"):
        return torch.as_tensor(load_sound(content, "the file", bounds(), allow)[0])
    return VideoFromFile(content).get_components().images


FEW = ("auraflow", "chroma", "flux1", "lumina2", "pixart", "tiny", "wan2.1_t2v", "z_image")
"""Those of which most networks have something, and of which the suite's time is not much."""


@pytest.mark.parametrize(
    "names",
    [FEW, *(pytest.param(tuple(PROMPTS)[part::PARTS], marks=pytest.mark.long) for part in range(PARTS))],
    ids=["few", *(f"part {part + 1} of {PARTS}" for part in range(PARTS))],
)
async def test_every_family_loads_draws_and_saves(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, names: Sequence[str]
) -> None:
    caplog.set_level(logging.INFO, "serve_app.models")
    prompts = {name: PROMPTS[name]() for name in names}
    write_sample_checkpoint(tmp_path / "models" / "checkpoints" / "tiny.safetensors")
    taesd_cases.write(tmp_path / "models")
    for name in TINY_VIDEO_VAES:
        taehv_files.write(tmp_path / "models", name.removesuffix(".safetensors"))
    for name, made in prompts.items():
        if name not in OF_NO_FILE:
            tiny.write(tmp_path / "models", made, specs())
        tiny.write_inputs(tmp_path / "input", made, specs())
    with looking_small(), a_card() as (card, driver):
        async with replicas(tmp_path, (GPU,)) as running:
            found = {}
            loaded: set[str] = set()
            for name, made in prompts.items():
                replayed = driver.asked["replay"]
                with noted() as own:
                    found[name] = await trouble(running, made, FEWER_GREYS.get(name, GREYS))
                loaded |= own
                # Weights that an earlier workflow loaded are not loaded again.
                if missing := set(SHOWN[name].split()) - loaded:
                    found[name] += f"it did not load {missing}"
                if name not in EAGER and driver.asked["replay"] == replayed:
                    found[name] += "no forward was replayed"
            counts = running.runners["gpu"].models.replays
        assert {name: said for name, said in found.items() if said} == {}
        assert counts.failures == 0
        assert card.order.early == []
        assert [message for message in caplog.messages if "could not be counted" in message] == []
