"""A small model file in the SD 1.x single-file layout, narrow, with weights drawn from its names.

It is the same on every machine. It has not been trained: its images are coloured noise.
"""

from __future__ import annotations

from math import prod, sqrt
from pathlib import Path
from zlib import crc32

import torch
from safetensors.torch import save_file
from torch import Tensor

from serve_app.models.families import Architecture, TextArchitecture, UNetArchitecture, VaeArchitecture
from serve_app.models.layout import table, translate
from serve_app.models.networks import network

SAMPLE: tuple[Architecture, ...] = (
    UNetArchitecture(channels=(32, 64, 128), res_blocks=(1, 1, 1), depths=(0, 1, 1), middle_depth=1, context_dim=64),
    VaeArchitecture(channels=(32, 32, 64, 64), res_blocks=1, latent_channels=4, image_channels=3, quantized=True),
    TextArchitecture(layers=2, width=64, hidden_width=256, positions=77),
)


def write_sample_checkpoint(path: Path) -> None:
    """Write the sample model file, about 14 MB, making its folder if need be."""
    path.parent.mkdir(parents=True, exist_ok=True)
    save_file({name: tensor for part in SAMPLE for name, tensor in random_tensors(part).items()}, str(path))


def random_tensors(architecture: Architecture, dtype: torch.dtype = torch.float16) -> dict[str, Tensor]:
    """Return tensors for the architecture under the single-file layout's names, each drawn from its own name."""
    prefix = _prefix(architecture)
    names = {ours: theirs for theirs, ours in table(architecture).items()}
    drawn: dict[str, Tensor] = {}
    for ours, parameter in network(architecture).state_dict().items():
        theirs = translate(ours, names)
        assert theirs is not None, f"the layout's table lacks '{ours}'"
        shape = tuple(parameter.shape)
        if isinstance(architecture, VaeArchitecture) and ".attn_1." in theirs and len(shape) == 2:
            shape = (*shape, 1, 1)
        drawn[prefix + theirs] = _drawn(prefix + theirs, shape).to(dtype)
    return drawn


def _prefix(architecture: Architecture) -> str:
    match architecture:
        case UNetArchitecture():
            return "model.diffusion_model."
        case VaeArchitecture():
            return "first_stage_model."
        case TextArchitecture():
            return "cond_stage_model.transformer.text_model."
        case _:
            raise TypeError(f"the single file of SD 1.x has no {type(architecture).__name__}")


def _drawn(name: str, shape: tuple[int, ...]) -> Tensor:
    """Draw a tensor whose layer keeps the variance of what goes through it."""
    normal = torch.randn(shape, generator=torch.Generator().manual_seed(crc32(name.encode())))
    if len(shape) == 1:
        return 1 + 0.05 * normal if name.endswith("weight") else 0.02 * normal
    return normal * (0.02 if "embedding" in name else 1 / sqrt(prod(shape[1:])))
