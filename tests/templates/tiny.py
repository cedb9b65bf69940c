"""Tiny model files under the names that official templates give them: the real layouts, random weights."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from serve_app.graph.spec import NodeSpec
from serve_app.models.families import AutoencoderKL
from serve_app.models.families.family import BackboneFamily, VaeFamily
from serve_app.models.families.qwen import Qwen3Text
from serve_app.models.families.zimage import ZImage
from serve_app.store.catalog import FOLDERS
from tests.parity.text_cases import tensors as text_tensors

TEXT_WIDTH = 32
QWEN3 = Qwen3Text(layers=3, width=TEXT_WIDTH, hidden_width=48, heads=2, kv_heads=1, head=128, tokens=151936)
Z_IMAGE = ZImage(width=48, heads=3, layers=1, refiners=1, text_width=TEXT_WIDTH, time_width=64)
VAE = AutoencoderKL(channels=(32,) * 4, res_blocks=1, latent_channels=16, image_channels=3, quantized=False)

Tensors = Mapping[str, Tensor]
FILES: Mapping[str, Callable[[], Tensors]] = {
    r"diffusion_models/z_image.*": lambda: network(Z_IMAGE),
    r"text_encoders/qwen_3_4b.*": lambda: text_tensors(QWEN3),
    r"vae/ae\..*": lambda: network(VAE),
}
"""What a file holds, by its folder and name."""


def network(family: BackboneFamily | VaeFamily) -> Tensors:
    """Return a network's tensors under the names that diffusers gives them, which files may have too."""
    torch.manual_seed(1)
    return {name: tensor.contiguous() for name, tensor in family.build().state_dict().items()}


def write(models: Path, prompt: Mapping[str, Any], specs: Mapping[str, NodeSpec]) -> None:
    """Write every model file that a prompt names. Errors: LookupError for one of which nothing is known here."""
    for folder, name in named(prompt, specs):
        path = models / FOLDERS[folder][0] / name
        if path.exists():
            continue
        make = next((make for pattern, make in FILES.items() if re.fullmatch(pattern, f"{folder}/{name}")), None)
        if make is None:
            raise LookupError(f"no tiny file is known for {folder}/{name}")
        path.parent.mkdir(parents=True, exist_ok=True)
        save_file(dict(make()), path)


def named(prompt: Mapping[str, Any], specs: Mapping[str, NodeSpec]) -> Iterator[tuple[str, str]]:
    """Yield folder and name of every model file that a prompt names."""
    for node in prompt.values():
        for declared in specs[node["class_type"]].inputs:
            if declared.folder in FOLDERS and isinstance(name := node["inputs"].get(declared.name), str):
                yield declared.folder, name
