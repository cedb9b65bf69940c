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

from serve_app.models.families import AutoencoderKL, ClipText, Sd
from serve_app.models.families.family import BackboneFamily, Family, VaeFamily
from serve_app.models.files.layout import reverse, translate
from serve_app.models.weights.weights import Weights
from serve_app.store.models.catalog import Catalog

SAMPLE: tuple[Family, ...] = (
    Sd(channels=(32, 64, 128), res_blocks=(1, 1, 1), depths=(0, 1, 1), middle_depth=1, context_dim=64),
    AutoencoderKL(channels=(32, 32, 64, 64), res_blocks=1, latent_channels=4, image_channels=3, quantized=True),
    ClipText(layers=2, width=64, hidden_width=256, positions=77),
)


def write_sample_checkpoint(path: Path) -> None:
    """Write the sample model file, about 14 MB, making its folder if need be."""
    path.parent.mkdir(parents=True, exist_ok=True)
    save_file({name: tensor for part in SAMPLE for name, tensor in random_tensors(part).items()}, str(path))


def random_tensors(family: Family, dtype: torch.dtype = torch.float16) -> dict[str, Tensor]:
    """Return tensors for a network under the single-file layout's names, each drawn from its own name."""
    prefix = _prefix(family)
    names = reverse(family.table())
    drawn: dict[str, Tensor] = {}
    for ours, parameter in family.empty().state_dict().items():
        theirs = translate(ours, names)
        assert theirs is not None, f"the layout's table lacks '{ours}'"
        shape = tuple(parameter.shape)
        if isinstance(family, VaeFamily) and ".attn_1." in theirs and len(shape) == 2:
            shape = (*shape, 1, 1)
        drawn[prefix + theirs] = _drawn(prefix + theirs, shape).to(dtype)
    return drawn


def by_own_names(family: Family) -> dict[str, Tensor]:
    """Return float32 tensors for a network under its own names, each drawn from its name."""
    parameters = family.empty().state_dict()
    return {name: _drawn(name, tuple(parameter.shape)) for name, parameter in parameters.items()}


def cpu_weights(
    catalog: Catalog,
    *,
    budget_bytes: int = 10**9,
    dtype: str = "auto",
    kind: type[Weights] = Weights,
) -> Weights:
    """Return the weights of a replica on a CPU. kind: the class of them."""
    return kind(catalog, torch.device("cpu"), dtype=dtype, vae_dtype="auto", budget_bytes=budget_bytes)


def _prefix(family: Family) -> str:
    if isinstance(family, BackboneFamily):
        return "model.diffusion_model."
    return "first_stage_model." if isinstance(family, VaeFamily) else "cond_stage_model.transformer.text_model."


def _drawn(name: str, shape: tuple[int, ...]) -> Tensor:
    """Draw a tensor whose layer keeps the variance of what goes through it."""
    normal = torch.randn(shape, generator=torch.Generator().manual_seed(crc32(name.encode())))
    if len(shape) == 1:
        return 1 + 0.05 * normal if name.endswith("weight") else 0.02 * normal
    return normal * (0.02 if "embedding" in name else 1 / sqrt(prod(shape[1:])))
