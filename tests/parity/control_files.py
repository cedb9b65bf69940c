"""Small ControlNets, T2I-Adapters and the backbones under them, as model files in every published layout.

Names and shapes are those of ComfyUI 0.3.64's own modules of these sizes (golden/control_keys.json); each tensor is
drawn from its name, as in make_checkpoint.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor

from tests.parity.figures import GOLDEN
from tests.parity.make_checkpoint import normal, weight

_KNOWN = json.loads((GOLDEN / "control_keys.json").read_text())
SHAPES: Mapping[str, Mapping[str, list[int]]] = _KNOWN["keys"]
DIFFUSERS: Mapping[str, Mapping[str, str]] = _KNOWN["diffusers"]
"""Diffusers' name of each tensor of a ControlNet, by its name in the first layout."""


def tensors(name: str) -> dict[str, Tensor]:
    """Return a network's tensors in the layout they are known by."""
    return {key: weight(f"{name}.{key}", shape) for key, shape in SHAPES[name].items()}


def write(folder: Path, name: str) -> Path:
    """Write a file and return its path. name: one of SHAPES, with ".pth" (under a prefix) or ".diffusers" after it."""
    network, _, layout = name.partition(".")
    made = tensors(network)
    if layout == "pth":
        made = {f"control_model.{key}": tensor for key, tensor in made.items()}
    elif layout == "diffusers" and network in DIFFUSERS:
        made = {DIFFUSERS[network][key]: tensor for key, tensor in made.items()}
    elif layout == "diffusers":
        made = {_adapter_in_diffusers(key): tensor for key, tensor in made.items()}
    elif network.startswith("unet_"):
        made = {f"model.diffusion_model.{key}": tensor for key, tensor in made.items()}
    elif network == "control_lora":
        made["lora_controlnet"] = torch.zeros(())
    path = folder / f"{name}.safetensors"
    save_file(made, path)
    return path


def image(name: str, *shape: int) -> Tensor:
    """Return an IMAGE (N,H,W,C)."""
    return torch.sigmoid(normal(name, list(shape)))


def _adapter_in_diffusers(key: str) -> str:
    parts = key.split(".")
    if parts[0] != "body":
        return f"adapter.{key}"
    level, block = divmod(int(parts[1]), 2)
    if parts[2] == "in_conv":
        return ".".join(("adapter", "body", str(level), *parts[2:]))
    return ".".join(("adapter", "body", str(level), "resnets", str(block), *parts[2:]))
