"""The three parts of the tiny checkpoint as networks to train, their states between runs, and the file they end in.

Architectures and layout are the server's own (serve_app.models), so what is written loads with no special case.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from serve_app.models.families import AutoencoderKL, ClipText, Sd
from serve_app.models.families.family import Family
from serve_app.models.files.layout import reverse, translate

UNET = Sd(channels=(64, 96, 96), res_blocks=(1, 1, 1), depths=(0, 1, 1), middle_depth=1, context_dim=64)
VAE = AutoencoderKL(channels=(32, 32, 64, 96), res_blocks=1, latent_channels=4, image_channels=3, quantized=True)
TEXT = ClipText(layers=2, width=64, hidden_width=256, positions=77)

_PREFIXES: Mapping[type, str] = {
    Sd: "model.diffusion_model.",
    AutoencoderKL: "first_stage_model.",
    ClipText: "cond_stage_model.transformer.text_model.",
}


def untrained(family: Family, seed: int) -> Any:
    """Return the family's network with seeded weights, ready to be trained.

    The last convolution of every residual block is zero, so that a deep network begins as a shallow one. The text
    encoder's token table is zero: `diffusion` draws the rows of the words that captions use, the others say nothing.
    """
    torch.manual_seed(seed)
    module = family.empty().to_empty(device="cpu").requires_grad_(True).train()
    for name, part in module.named_modules():
        if callable(reset := getattr(part, "reset_parameters", None)):
            reset()
        if isinstance(part, nn.Embedding):
            nn.init.normal_(part.weight, std=0.02 if "position" in name else 0.0)
        if isinstance(part, nn.Conv2d) and name.endswith("conv2"):
            nn.init.zeros_(part.weight)
    return module


def averaged(average: dict[str, Tensor], module: nn.Module, decay: float) -> None:
    """Move an exponential average of a module's state one step towards it, in place."""
    for name, tensor in module.state_dict().items():
        average[name].lerp_(tensor.detach(), 1 - decay)


def save_state(path: Path, state: Mapping[str, Any]) -> None:
    """Write what a training needs to go on; an interruption leaves the previous file."""
    unfinished = path.with_suffix(".unfinished")
    torch.save(dict(state), unfinished)
    unfinished.replace(path)


def load_state(path: Path) -> dict[str, Any] | None:
    """Return what `save_state` wrote, or None if there is nothing."""
    return torch.load(path, weights_only=True) if path.exists() else None


def record(path: Path, **figures: float) -> None:
    """Append figures as one line of JSON, and print them."""
    line = json.dumps({name: round(value, 5) for name, value in figures.items()})
    print(line, flush=True)
    with path.open("a") as log:
        log.write(line + "\n")


def in_file_layout(family: Family, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return a part's tensors in fp16 under the published single-file layout's names."""
    names = reverse(family.table())
    tensors: dict[str, Tensor] = {}
    for ours, tensor in state.items():
        theirs = translate(ours, names)
        assert theirs is not None, f"the layout's table lacks '{ours}'"
        # The file keeps a VAE's attention as 1×1 convolutions.
        if isinstance(family, AutoencoderKL) and ".attn_1." in theirs and tensor.ndim == 2:
            tensor = tensor[..., None, None]
        tensors[_PREFIXES[type(family)] + theirs] = tensor.half().contiguous()
    return tensors


def write_checkpoint(path: Path, states: Mapping[Family, Mapping[str, Tensor]]) -> None:
    """Write a single file with the parts' states."""
    tensors = {n: t for family, state in states.items() for n, t in in_file_layout(family, state).items()}
    save_file(tensors, str(path), metadata={"format": "pt", "license": "GPL-3.0-only"})
