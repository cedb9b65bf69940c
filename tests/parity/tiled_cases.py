"""What is worked through in tiles, here and by ComfyUI, whose answers are golden/nodes_tiled.npz.

Made by ComfyUI's VAEDecodeTiled and VAEEncodeTiled with mini15's VAE, every fourth pixel of the images kept, and by its
UpscaleModelLoader and ImageUpscaleWithModel with `esrgan()` in a file, the columns from LAST_COLUMNS on kept.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from tests.parity.cases import Case
from tests.parity.workflow import models

LAST_COLUMNS = 900
DECODES = ((64, 32), (128, 32))
ENCODES = ((64, 0), (96, 32))
"""(tile_size, overlap) of the nodes' inputs; one decode asks for more overlap than a tile allows."""


LATENTS = ("Fixed", {"kind": "latent", "seed": 11, "shape": "1, 4, 14, 11"})
PIXELS = ("Fixed", {"kind": "image", "seed": 12, "shape": "1, 110, 85, 3"})
"""Sides that are no multiples of 8."""
STRIP = ("Fixed", {"kind": "image", "seed": 13, "shape": "2, 12, 560, 3"})
"""Wider than an upscaler's tile of 512."""
_VAE = {"vae": ["checkpoint", 2], "temporal_size": 64, "temporal_overlap": 8}
_UPSCALED = {"upscale_model": ["net", 0], "image": ["given", 0]}


def _tiled(kind: str, tile_size: int, overlap: int, **nodes: tuple[str, dict[str, Any]]) -> Case:
    slot = "samples" if kind == "VAEDecodeTiled" else "pixels"
    inputs = {**_VAE, slot: ["given", 0], "tile_size": tile_size, "overlap": overlap}
    return Case({**models("mini15"), **nodes, "k": (kind, inputs)})


CASES: dict[str, Case] = {
    **{f"decode|{size}|{overlap}": _tiled("VAEDecodeTiled", size, overlap, given=LATENTS) for size, overlap in DECODES},
    **{f"encode|{size}|{overlap}": _tiled("VAEEncodeTiled", size, overlap, given=PIXELS) for size, overlap in ENCODES},
    "upscale": Case(
        {
            "given": STRIP,
            "net": ("UpscaleModelLoader", {"model_name": "esrgan.safetensors"}),
            "k": ("ImageUpscaleWithModel", _UPSCALED),
        }
    ),
}


def esrgan() -> dict[str, Tensor]:
    """Return the tensors of an ESRGAN in its first layout: one block, four features, twice as large."""
    shapes = {"model.0": (4, 3), "model.1.sub.1": (4, 4), "model.3": (4, 4), "model.5": (4, 4), "model.7": (3, 4)}
    for dense in (1, 2, 3):
        for conv in (1, 2, 3, 4, 5):
            into = 4 if conv == 5 else 32
            shapes[f"model.1.sub.0.RDB{dense}.conv{conv}.0"] = (into, 4 + 32 * (conv - 1))
    generator = torch.Generator().manual_seed(14)
    tensors = {}
    for name, (into, out_of) in shapes.items():
        tensors[f"{name}.weight"] = torch.randn(into, out_of, 3, 3, generator=generator) / (9 * out_of) ** 0.5
        tensors[f"{name}.bias"] = torch.rand(into, generator=generator) / 4
    # So that few values leave 0…1, where all of them are cut off alike.
    tensors["model.7.weight"] *= 0.2
    tensors["model.7.bias"] += 0.4
    return tensors
