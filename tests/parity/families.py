"""Small random models of every family, in the key layouts their files are published in.

The figures in golden/families.npz are ComfyUI's own networks on these very tensors: its UNetModel, built as its
model_detection reads the keys, and its SDClipModel for SD 2 (normed, projected) and for both of SDXL's encoders; those
in golden/family_runs.npz are whole runs of its samplers, name|case|sampler|schedule|cfg.
"""

from __future__ import annotations

import zlib
from functools import cache
from math import prod, sqrt
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from serve_app.models.families import Sd, Sdxl, SdxlRefiner
from tests.unit.models.sample import random_tensors

UNETS = {
    "sd2": Sd((64, 128), (1, 1), (1, 1), 1, 64, linear=True),
    "sdxl": Sdxl((64, 128, 128), (1, 1, 1), (0, 1, 2), 2, 128, linear=True, vector_dim=1536 + 64),
    "refiner": SdxlRefiner((64, 128, 128), (1, 1, 1), (0, 2, 0), 2, 64, linear=True, vector_dim=1280 + 64),
    "inpaint": Sd((64, 128), (1, 1), (1, 1), 1, 64, concat_channels=5),
    "edit": Sd((64, 128), (1, 1), (1, 1), 1, 64, concat_channels=4),
}

WIDTH, LAYERS = 64, 3
"""Of every text encoder."""

VOCABULARY = 49408
TEXTS = ["a red fox", "a (red:1.4) fox, (sleeping:0.7)", "", "cat " * 80 + "(dog:1.3)"]
SKIPS = [None, -1, -3, -9]
ROWS = [0, 1, 2, 3, 4, 5, 7, 20, 76]
"""The rows of a text that figures hold."""
LATER_ROWS = [78, 80, 90]
"""Those of a second chunk."""

RUNS = [
    "sdxl|plain|euler|normal|5",
    "sdxl|sizes|dpmpp_2m|karras|4",
    "sdxl|zsnr|euler|simple|3",
    "sdxl|edm|euler|karras|3",
    "sdxl|angle|euler|normal|3",
    "refiner|plain|euler|normal|5",
    "sd2|plain|euler|normal|5",
    "sd2|v|euler|normal|5",
    "inpaint|plain|euler|normal|5",
    "inpaint|masked|euler|normal|5",
    "inpaint|conditioned|euler|normal|5",
    "edit|plain|euler|normal|5",
    "edit|image|euler|normal|5",
]
STEPS, SEED = 4, 7
OPTIONS: dict[str, dict[str, Any]] = {
    "sizes": {"width": 1000, "height": 1200, "crop_w": 3, "crop_h": 5, "target_width": 700, "target_height": 640},
    "conditioned": {"concat_latent_image": "image", "concat_mask": "mask"},
    "image": {"concat_latent_image": "image"},
}
"""What conditionings of a run's case say beside the text; a text stands for the tensor of that name in `run_inputs`."""


@cache
def unet(name: str) -> dict[str, Tensor]:
    """Return a backbone's tensors under the single file's names."""
    return random_tensors(UNETS[name], torch.float32)


def unet_inputs(name: str) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
    """Return x with what goes beside it (2,C,8,8), timesteps (2,), context (2,7,D) and the vector (2,A)."""
    known = UNETS[name]
    x = _drawn("x", (2, known.latent_channels + known.concat_channels, 8, 8))
    vector = _drawn("vector", (2, known.vector_dim)) if known.vector_dim else None
    return x, torch.tensor([3.0, 702.0]), _drawn("context", (2, 7, known.context_dim)), vector


def write(root: Path) -> None:
    """Write a file of each family: SD 2 and SDXL with their text encoders."""
    l, g = "conditioner.embedders.0.transformer.text_model.", "conditioner.embedders.1.model."  # noqa: E741
    texts = {
        "sd2": lambda: open_clip("cond_stage_model.model."),
        "sdxl": lambda: clip_l(l) | open_clip(g),
        "refiner": lambda: open_clip("conditioner.embedders.0.model."),
    }
    for name in UNETS:
        save_file(unet(name) | (texts[name]() if name in texts else {}), root / f"{name}.safetensors")


def run_inputs() -> dict[str, Tensor]:
    """Return the tensors that runs are given: latents, a mask, an image, and texts by family and role."""
    given = {
        "latent": _drawn("latent", (1, 4, 8, 8)) * 5,
        "image": _drawn("image", (1, 4, 8, 8)) * 5,
        "mask": (_drawn("mask", (1, 1, 64, 64)) > 0).float(),
    }
    for role in ("positive", "negative"):
        given[f"{role} pooled"] = _drawn(f"{role} pooled", (1, 64))
        given |= {f"{name}|{role}": _drawn(role, (1, 77, known.context_dim)) for name, known in UNETS.items()}
    return given


def open_clip(prefix: str) -> dict[str, Tensor]:
    """Return an OpenCLIP text encoder's tensors."""
    shapes: dict[str, tuple[int, ...]] = {
        "token_embedding.weight": (VOCABULARY, WIDTH),
        "positional_embedding": (77, WIDTH),
        "text_projection": (WIDTH, WIDTH),
        "ln_final.weight": (WIDTH,),
        "ln_final.bias": (WIDTH,),
    }
    for layer in range(LAYERS):
        inside = f"transformer.resblocks.{layer}."
        shapes |= {f"{inside}{norm}.{kind}": (WIDTH,) for norm in ("ln_1", "ln_2") for kind in ("weight", "bias")}
        shapes |= {f"{inside}attn.in_proj_weight": (3 * WIDTH, WIDTH), f"{inside}attn.in_proj_bias": (3 * WIDTH,)}
        for name, out, into in (
            ("attn.out_proj", WIDTH, WIDTH),
            ("mlp.c_fc", 4 * WIDTH, WIDTH),
            ("mlp.c_proj", WIDTH, 4 * WIDTH),
        ):
            shapes |= {f"{inside}{name}.weight": (out, into), f"{inside}{name}.bias": (out,)}
    return {prefix + name: _weight(name, shape) for name, shape in shapes.items()}


def clip_l(prefix: str) -> dict[str, Tensor]:
    """Return a CLIP-L text encoder's tensors, under transformers' names."""
    shapes: dict[str, tuple[int, ...]] = {
        "embeddings.token_embedding.weight": (VOCABULARY, WIDTH),
        "embeddings.position_embedding.weight": (77, WIDTH),
        "final_layer_norm.weight": (WIDTH,),
        "final_layer_norm.bias": (WIDTH,),
    }
    for layer in range(LAYERS):
        inside = f"encoder.layers.{layer}."
        shapes |= {f"{inside}layer_norm{norm}.{kind}": (WIDTH,) for norm in (1, 2) for kind in ("weight", "bias")}
        for name, out, into in (
            *((f"self_attn.{part}_proj", WIDTH, WIDTH) for part in ("q", "k", "v", "out")),
            ("mlp.fc1", 4 * WIDTH, WIDTH),
            ("mlp.fc2", WIDTH, 4 * WIDTH),
        ):
            shapes |= {f"{inside}{name}.weight": (out, into), f"{inside}{name}.bias": (out,)}
    return {prefix + name: _weight("l." + name, shape) for name, shape in shapes.items()}


def _weight(name: str, shape: tuple[int, ...]) -> Tensor:
    drawn = _drawn(name, shape)
    if len(shape) == 1:
        return 1 + 0.05 * drawn if name.endswith("weight") else 0.02 * drawn
    if "embedding" in name:
        return 0.02 * drawn
    # Sharper than a fresh network's, so that the layers differ from each other by what they do.
    return 2 * drawn / sqrt(prod(shape[1:]))


def _drawn(name: str, shape: tuple[int, ...]) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(zlib.crc32(name.encode())))
