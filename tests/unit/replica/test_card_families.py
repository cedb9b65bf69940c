"""Every family of networks in whole replicas on a card that only claims to be one: it loads, draws by graphs, saves."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from PIL import Image

from serve_app.nodes.registry import specs
from tests.templates import tiny
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
    Files("auraflow", "stable_diffusion", ("pile_t5",), "sdxl", "EmptyLatentImage"),
    Files("chroma", "chroma", ("t5xxl_48",)),
    Files("flux1", "flux", ("clip_l", "t5xxl")),
    Files("flux2_dev", "flux2", ("mistral_3",), "flux2-vae", "EmptyFlux2LatentImage"),
    Files("flux-2-klein", "flux2", ("qwen_3_4b",), "flux2-vae", "EmptyFlux2LatentImage"),
    Files("hidream_i1", "", ("clip_l", "clip_g", "t5xxl", "llama_3.1")),
    Files("krea2", "krea2", ("qwen3vl_4b",), "qwen_image_vae"),
    Files("lumina2", "lumina2", ("gemma_2",)),
    Files("omnigen2", "omnigen2", ("qwen_2.5_vl_fp16",)),
    Files("pixart_alpha", "pixart", ("t5xxl_48",), "sdxl", "EmptyLatentImage"),
    Files("pixart", "pixart", ("t5xxl_48",), "sdxl", "EmptyLatentImage"),
    Files("qwen_image", "qwen_image", ("qwen_2.5_vl_7b",), "qwen_image_vae"),
    Files("qwen_image_2.1", "qwen_image", ("qwen3vl_8b",), "qwen_image_2.1_vae", "EmptyLatentImage"),
    Files("wan2.1_t2v", "wan", ("umt5_xxl",), "wan_2.1_vae", "EmptyHunyuanLatentVideo"),
    Files("wan2.2_ti2v_5B", "wan", ("umt5_xxl",), "wan2.2_vae", "Wan22ImageToVideoLatent"),
    Files("z_image", "lumina2", ("qwen_3_4b",)),
)
CHECKPOINTS = ("tiny", "sd3.5", "sd_xl")
EAGER = {"hidream_i1"}
"""Whose forwards the host reads, so that they are not captured."""
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
    made["8"] = {"class_type": "VAELoader", "inputs": {"vae_name": named(files.vae)}}
    made["2"]["inputs"]["clip"] = ["1", 0]
    made["3"]["inputs"]["model"] = ["7", 0]
    made["5"]["inputs"]["vae"] = ["8", 0]
    made["4"]["class_type"] = files.latent
    if "Video" in files.latent:
        made["4"]["inputs"] |= {"length": 5} | ({"vae": ["8", 0]} if "Image" in files.latent else {})
    return made


PROMPTS: Mapping[str, dict[str, Any]] = {
    **{files.network: drawing(files) for files in FILES},
    **{name: prompt(1, name, STEPS) for name in CHECKPOINTS},
}


async def trouble(running: Cluster, prompt: dict[str, Any]) -> str:
    """Return what is wrong with a job of a prompt, or nothing."""
    view = await running.finish(await running.submit(prompt, ("6",)))
    if view.state != "success":
        return f"{view.failure.class_type}: {view.failure.message}\n{''.join(view.failure.traceback)}"
    pictures = [Image.open(running.config.output_dir / one["filename"]) for one in view.outputs["6"]["images"]]
    return "" if all(len(one.convert("L").getcolors(256) or ()) > 8 for one in pictures) else "it is of one colour"


FEW = ("auraflow", "chroma", "flux1", "lumina2", "pixart", "tiny", "wan2.1_t2v", "z_image")
"""Those of which most networks have something, and of which the suite's time is not much."""


@pytest.mark.parametrize("names", [FEW, pytest.param(tuple(PROMPTS), marks=pytest.mark.long)], ids=["few", "all"])
async def test_every_family_loads_draws_and_saves(tmp_path: Path, names: Sequence[str]) -> None:
    prompts = {name: PROMPTS[name] for name in names}
    write_sample_checkpoint(tmp_path / "models" / "checkpoints" / "tiny.safetensors")
    for made in prompts.values():
        tiny.write(tmp_path / "models", made, specs())
    with a_card() as (card, driver):
        async with replicas(tmp_path, (GPU,)) as running:
            found = {}
            for name, made in prompts.items():
                replayed = driver.asked["replay"]
                found[name] = await trouble(running, made)
                if name not in EAGER and driver.asked["replay"] == replayed:
                    found[name] += "no forward was replayed"
            counts = running.runners["gpu"].models.replays
        assert {name: said for name, said in found.items() if said} == {}
        assert counts.failures == 0
        assert card.order.early == []
