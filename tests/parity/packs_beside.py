"""Compares workflows of node packs with a ComfyUI beside us that has the same packs, and prints the errors.

    python -m tests.parity.packs_beside COMFYUI_DIRECTORY COMFYUI_PYTHON PACKS_DIRECTORY [NAME_PART …]

Both sides run the same nodes on the deterministic checkpoint; an error is the mean of |ours − theirs|, beside which the
mean of |theirs| is printed. The packs are other people's and are not kept here; a case whose pack is not in the folder
fails on both sides and says so.
"""

from __future__ import annotations

import asyncio
import sys
import tempfile
from collections.abc import Mapping
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save_file
from transformers import CLIPVisionConfig, CLIPVisionModelWithProjection

from serve_app.packs.loading import load_packs
from tests.parity.beside import Fixed, ours
from tests.parity.cases import Case
from tests.parity.checkpoints import models_dir
from tests.parity.comfyui import ComfyUI
from tests.parity.stack import Stack
from tests.parity.workflow import EMPTY, Nodes, models

USUAL: Nodes = {
    **models("mini15"),
    **EMPTY,
    "image": ("Fixed", {"kind": "image", "seed": 3, "shape": "1,64,64,3"}),
    "mask": ("Fixed", {"kind": "mask", "seed": 4, "shape": "1,64,64"}),
}
MODEL, CLIP, VAE = (["checkpoint", slot] for slot in range(3))
LINKED = {"positive": ["positive", 0], "negative": ["negative", 0]}
LARGER = ("Fixed", {"kind": "image", "seed": 3, "shape": "1,96,128,3"})
SAMPLED = {"seed": 7, "steps": 3, "cfg": 5.0, "sampler_name": "euler", "scheduler": "normal"}
TILES = {
    "upscale_by": 1.5,
    "mode_type": "Linear",
    "tile_width": 64,
    "tile_height": 64,
    "mask_blur": 4,
    "tile_padding": 16,
    "seam_fix_mode": "None",
    "seam_fix_denoise": 1.0,
    "seam_fix_width": 32,
    "seam_fix_mask_blur": 4,
    "seam_fix_padding": 16,
    "force_uniform_tiles": True,
    "tiled_decode": False,
    "batch_size": 1,
}
DETAILER = {
    "guide_size": 64,
    "guide_size_for": True,
    "max_size": 128,
    "feather": 5,
    "noise_mask": True,
    "force_inpaint": True,
    "wildcard": "",
    "cycle": 1,
}


def case(target: str, **nodes: Any) -> Case:
    return Case({**USUAL, **nodes}, target)


def patched(pack_node: str, **inputs: Any) -> Case:
    """A KSampler whose model has been through a pack's node."""
    sampler = {"model": ["patch", 0], "latent_image": ["latent", 0], **LINKED, **SAMPLED, "denoise": 1.0}
    return case("k", patch=(pack_node, {"model": MODEL, **inputs}), k=("KSampler", sampler))


SEGS = {"combined": False, "crop_factor": 2.0, "bbox_fill": False, "drop_size": 4, "contour_fill": False}
PIPE = ("ToBasicPipe", {"model": MODEL, "clip": CLIP, "vae": VAE, **LINKED})
IPADAPTER = {
    "weight": 0.8,
    "weight_type": "linear",
    "start_at": 0.0,
    "end_at": 0.9,
    "embeds_scaling": "V only",
}

PACK_CASES: dict[str, Case] = {
    "UltimateSDUpscale|no upscale": case(
        "k",
        image=LARGER,
        k=(
            "UltimateSDUpscaleNoUpscale",
            {
                "upscaled_image": ["image", 0],
                "model": MODEL,
                "vae": VAE,
                **LINKED,
                **SAMPLED,
                "denoise": 0.5,
                **{name: value for name, value in TILES.items() if name != "upscale_by"},
            },
        ),
    ),
    "UltimateSDUpscale|band pass": case(
        "k",
        image=LARGER,
        k=(
            "UltimateSDUpscaleNoUpscale",
            {
                "upscaled_image": ["image", 0],
                "model": MODEL,
                "vae": VAE,
                **LINKED,
                **SAMPLED,
                "denoise": 0.5,
                **{name: value for name, value in TILES.items() if name != "upscale_by"},
                "mode_type": "Chess",
                "seam_fix_mode": "Band Pass",
            },
        ),
    ),
    "Impact|detailer": case(
        "k",
        segs=("MaskToSEGS", {"mask": ["mask", 0], **SEGS, "drop_size": 8}),
        pipe=PIPE,
        k=(
            "DetailerForEachPipe",
            {
                "image": ["image", 0],
                "segs": ["segs", 0],
                "basic_pipe": ["pipe", 0],
                **DETAILER,
                **SAMPLED,
                "denoise": 0.5,
                "refiner_ratio": 0.2,
            },
        ),
    ),
    "Impact|pipe sampler": case(
        "k",
        pipe=PIPE,
        s=(
            "ImpactKSamplerBasicPipe",
            {"basic_pipe": ["pipe", 0], "latent_image": ["latent", 0], **SAMPLED, "denoise": 1.0},
        ),
        k=("VAEDecode", {"samples": ["s", 1], "vae": VAE}),
    ),
    "essentials|variations": case(
        "k",
        k=(
            "KSamplerVariationsWithNoise+",
            {
                "model": MODEL,
                "latent_image": ["latent", 0],
                "main_seed": 7,
                "variation_seed": 8,
                "variation_strength": 0.2,
                **LINKED,
                **{name: value for name, value in SAMPLED.items() if name != "seed"},
                "denoise": 1.0,
            },
        ),
    ),
    "essentials|stochastic": case(
        "k",
        k=(
            "KSamplerVariationsStochastic+",
            {
                "model": MODEL,
                "latent_image": ["latent", 0],
                "noise_seed": 7,
                "variation_seed": 8,
                "variation_strength": 0.4,
                "steps": 5,
                "cfg": 5.0,
                "sampler": "euler",
                "scheduler": "normal",
                "cfg_scale": 1.0,
                **LINKED,
            },
        ),
    ),
    "KJNodes|differential": case(
        "k",
        patch=(
            "DifferentialDiffusionAdvanced",
            {"model": MODEL, "samples": ["encoded", 0], "mask": ["soft", 0], "multiplier": 1.2},
        ),
        soft=("Fixed", {"kind": "soft mask", "seed": 4, "shape": "1,64,64"}),
        encoded=("VAEEncode", {"pixels": ["image", 0], "vae": VAE}),
        k=(
            "KSampler",
            {"model": ["patch", 0], "latent_image": ["patch", 1], **LINKED, **SAMPLED, "denoise": 0.7},
        ),
    ),
    "KJNodes|zero star": patched("CFGZeroStarAndInit", use_zero_init=True, zero_init_steps=0),
    "KJNodes|scheduled cfg": case(
        "k",
        guider=(
            "ScheduledCFGGuidance",
            {"model": MODEL, **LINKED, "cfg": 6.0, "start_percent": 0.0, "end_percent": 0.6},
        ),
        noise=("RandomNoise", {"noise_seed": 7}),
        sampler=("KSamplerSelect", {"sampler_name": "euler"}),
        sigmas=("BasicScheduler", {"model": MODEL, "scheduler": "normal", "steps": 3, "denoise": 1.0}),
        k=(
            "SamplerCustomAdvanced",
            {
                "noise": ["noise", 0],
                "guider": ["guider", 0],
                "sampler": ["sampler", 0],
                "sigmas": ["sigmas", 0],
                "latent_image": ["latent", 0],
            },
        ),
    ),
    "IPAdapter|embeds": case(
        "k",
        embeds=("Fixed", {"kind": "image", "seed": 5, "shape": "1,64"}),
        loader=("IPAdapterModelLoader", {"ipadapter_file": "tiny.safetensors"}),
        patch=(
            "IPAdapterEmbeds",
            # It asks for an encoder of images also where it has none to encode.
            {
                "model": MODEL,
                "ipadapter": ["loader", 0],
                "pos_embed": ["embeds", 0],
                "clip_vision": ["embeds", 0],
                **IPADAPTER,
            },
        ),
        k=(
            "KSampler",
            {"model": ["patch", 0], "latent_image": ["latent", 0], **LINKED, **SAMPLED, "denoise": 1.0},
        ),
    ),
    "IPAdapter|image": case(
        "k",
        image=("Fixed", {"kind": "image", "seed": 3, "shape": "2,224,320,3"}),
        loader=("IPAdapterModelLoader", {"ipadapter_file": "seen.safetensors"}),
        vision=("CLIPVisionLoader", {"clip_name": "vit_l.safetensors"}),
        patch=(
            "IPAdapterAdvanced",
            {
                "model": MODEL,
                "ipadapter": ["loader", 0],
                "image": ["image", 0],
                "image_negative": ["image", 0],
                "clip_vision": ["vision", 0],
                "combine_embeds": "average",
                **IPADAPTER,
                "embeds_scaling": "K+V",
            },
        ),
        k=(
            "KSampler",
            {"model": ["patch", 0], "latent_image": ["latent", 0], **LINKED, **SAMPLED, "denoise": 1.0},
        ),
    ),
    "efficiency|loader": case(
        "k",
        loader=(
            "Efficient Loader",
            {
                "ckpt_name": "mini15.safetensors",
                "vae_name": "Baked VAE",
                "clip_skip": -2,
                "lora_name": "None",
                "lora_model_strength": 1.0,
                "lora_clip_strength": 1.0,
                "positive": "a (red:1.4) house on a (steep hill:0.7), " + "trees, " * 60,
                "negative": "fog",
                "token_normalization": "length+mean",
                "weight_interpretation": "comfy++",
                "empty_latent_width": 64,
                "empty_latent_height": 64,
                "batch_size": 1,
            },
        ),
        k=(
            "KSampler",
            {
                "model": ["loader", 0],
                "positive": ["loader", 1],
                "negative": ["loader", 2],
                "latent_image": ["loader", 3],
                **SAMPLED,
                "denoise": 1.0,
            },
        ),
    ),
    "efficiency|sampler": case(
        "k",
        k=("VAEDecode", {"samples": ["s", 3], "vae": VAE}),
        s=(
            "KSampler (Efficient)",
            {
                "model": MODEL,
                **SAMPLED,
                **LINKED,
                "latent_image": ["latent", 0],
                "denoise": 1.0,
                "preview_method": "none",
                "vae_decode": "true",
                "optional_vae": VAE,
            },
        ),
    ),
}


def write_ipadapter(path: Path, width: int) -> None:
    """Write an IP-Adapter for the checkpoint, of random weights, unless it is there. width: of what it is shown.

    Of the places that the pack gives it, the checkpoint has two, both 320 wide.
    """
    tensors = {
        "image_proj.proj.weight": (4 * 768, width),
        "image_proj.proj.bias": (4 * 768,),
        "image_proj.norm.weight": (768,),
        "image_proj.norm.bias": (768,),
    }
    for number in range(16):
        for kind in ("to_k_ip", "to_v_ip"):
            tensors[f"ip_adapter.{2 * number + 1}.{kind}.weight"] = (320, 768)
    write_random(path, tensors)


def write_image_encoder(path: Path) -> None:
    """Write a CLIP ViT-L/14 of random weights, unless it is there: ComfyUI tells encoders by their size."""
    with torch.device("meta"):
        made = CLIPVisionModelWithProjection(
            CLIPVisionConfig(
                hidden_size=1024,
                intermediate_size=4096,
                num_hidden_layers=24,
                num_attention_heads=16,
                patch_size=14,
                projection_dim=768,
            )
        )
    write_random(path, {name: tuple(tensor.shape) for name, tensor in made.state_dict().items()})


def write_random(path: Path, shapes: Mapping[str, tuple[int, ...]]) -> None:
    """Write a file of random weights in half precision, unless it is there: vectors of norms 1, of biases 0."""
    if path.exists():
        return
    generator = torch.Generator().manual_seed(11)

    def drawn(name: str, shape: tuple[int, ...]) -> torch.Tensor:
        if len(shape) == 1 and not name.endswith("class_embedding"):
            return torch.full(shape, 0.0 if name.endswith("bias") else 1.0)
        return torch.randn(shape, generator=generator) / prod(shape[1:]) ** 0.5

    path.parent.mkdir(parents=True, exist_ok=True)
    save_file({name: drawn(name, shape).half() for name, shape in shapes.items()}, str(path))


async def compare(cases: dict[str, Case], figures: dict[str, np.ndarray], models: Path, packs: Path) -> None:
    """Print the error of each case, or what failed."""
    with tempfile.TemporaryDirectory() as files:
        areas: Any = {area: Path(files) / area for area in ("input", "output", "temp")}
        for area in areas.values():
            area.mkdir()
        stack = Stack(models, Path(files), {"Fixed": Fixed, **load_packs(packs, models, areas).classes})
        for name, one in cases.items():
            if name not in figures:
                print(f"{name}: ComfyUI failed")
                continue
            try:
                made = await ours(stack, one)
                expected = torch.from_numpy(figures[name])
                error = (made - expected).abs()
                mean, of, largest = (float(n) for n in (error.mean(), expected.abs().mean(), error.max()))
                print(f"{name}: mean {mean:.1e} of {of:.1e}, largest {largest:.1e}", flush=True)
            except Exception as error:
                print(f"{name}: {type(error).__name__}: {error}", flush=True)
        stack.engine.close()


def main(comfyui: ComfyUI, packs: Path, parts: list[str]) -> None:
    """Run the cases whose names hold one of the parts, or all."""

    chosen = {name: case for name, case in PACK_CASES.items() if not parts or any(part in name for part in parts)}
    models = models_dir("mini15")
    write_ipadapter(models / "ipadapter" / "tiny.safetensors", 64)
    write_ipadapter(models / "ipadapter" / "seen.safetensors", 768)
    write_image_encoder(models / "clip_vision" / "vit_l.safetensors")
    figures = comfyui.run("comfyui_side.py", {n: c.as_json() for n, c in chosen.items()}, models, packs)
    asyncio.run(compare(chosen, figures, models, packs))


if __name__ == "__main__":
    main(ComfyUI(Path(sys.argv[1]), Path(sys.argv[2])), Path(sys.argv[3]).absolute(), sys.argv[4:])
