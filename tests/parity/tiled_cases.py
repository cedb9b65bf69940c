"""What is worked through in tiles, here and by ComfyUI, whose answers are golden/nodes_tiled.npz.

Made by ComfyUI 0.3.64's VAEDecodeTiled and VAEEncodeTiled with mini15's VAE, every fourth pixel of the images kept, and
by its UpscaleModelLoader and ImageUpscaleWithModel (spandrel 0.4.2) with `esrgan()` in a file, the columns from
LAST_COLUMNS on kept.
"""

from __future__ import annotations

import torch
from torch import Tensor

LAST_COLUMNS = 900
DECODES = ((64, 32), (128, 32))
ENCODES = ((64, 0), (96, 32))
"""(tile_size, overlap) of the nodes' inputs; one decode asks for more overlap than a tile allows."""


def latents() -> Tensor:
    return torch.randn(1, 4, 20, 13, generator=torch.Generator().manual_seed(11))


def pixels() -> Tensor:
    """Return images (2,150,109,3), whose sides are no multiples of 8."""
    values = torch.randint(0, 256, (2, 150, 109, 3), generator=torch.Generator().manual_seed(12))
    return values / 255


def strip() -> Tensor:
    """Return images (2,12,560,3), wider than an upscaler's tile of 512."""
    values = torch.randint(0, 256, (2, 12, 560, 3), generator=torch.Generator().manual_seed(13))
    return values / 255


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
