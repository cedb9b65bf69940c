"""Small ControlNets, T2I-Adapters and the backbones under them, as model files in every published layout.

Names and shapes are those of ComfyUI's own modules of these sizes (golden/control_keys.json); each tensor is drawn from
its name, as in make_checkpoint.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

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


def write_all(folder: Path) -> None:
    """Write a file of each network in the layout it is known by."""
    for name in SHAPES:
        write(folder, name)
    (folder / f"{SHUFFLE}.safetensors").hardlink_to(folder / "sd1.safetensors")


LIGHT = [32, 64, 128, 128]
"""The channels of the light adapter here."""
SHUFFLE = "control_sd1_shuffle"
"""The name by which a file says that its hint has no places."""


def told(family: str, sigma: float, height: int, width: int, rows: int = 2) -> dict[str, Tensor]:
    """Return x, the text and the vector that a backbone of a family is given at a level."""
    sd1 = family == "sd1"
    given = {
        "x": normal("x", [rows, 4, height, width]) * (sigma**2 + 1) ** 0.5,
        "context": normal(f"{family}.context", [rows, 7 if sd1 else 5, 48 if sd1 else 64]),
    }
    return given if sd1 else {**given, "vector": normal(f"{family}.y", [rows, 1600])}


def cases() -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Return what ComfyUI is asked for each figure of golden/control.npz, and the tensors it is asked about."""
    asked: dict[str, Any] = {}
    given = {"h1": image("h1", 1, 50, 70, 3), "h2": image("h2", 2, 64, 40, 3)}

    def ask(
        figure: str, family: str, *chain: Any, height: int = 8, width: int = 8, sigma: float = 3.2, **more: Any
    ) -> None:
        asked[figure] = {"family": family, "chain": chain, "sigma": sigma, "rows": 2, "answers": True, **more}
        given.update(
            {f"{figure}|{part}": t for part, t in told(more.get("named", family), sigma, height, width).items()}
        )

    def link(
        file: str, hint: str = "h1", strength: float = 0.7, start: float = 0.0, end: float = 1.0, **more: Any
    ) -> Any:
        return {"file": file, "hint": hint, "strength": strength, "range": (start, end), **more}

    ask("sd1", "sd1", link("sd1"))
    ask("sd1|two hints", "sd1", link("sd1", "h2"), width=6)
    ask("sd1|shuffle", "sd1", link(SHUFFLE))
    ask("sdxl", "sdxl", link("sdxl"))
    ask("control_lora", "sdxl", link("control_lora"))
    for kind in (None, 0, 2):
        union = link("union", strength=1.0, kind=kind)
        ask(f"union|{kind}", "sdxl", union, height=4, width=4, answers=False, named="union")
    for name in ("t2i_full", "t2i_conv", "t2i_light", "t2i_xl"):
        family = "sdxl" if name == "t2i_xl" else "sd1"
        ask(name, family, link(name), rows=1)
        ask(f"{name}|odd", family, link(name), height=9, width=7, rows=1)
    chain = link("t2i_full", "h2", 0.5), link("sd1", "h1", 0.7, 0.0, 0.5), link("sd1", "h2", 0.4, 0.3, 1.0)
    for sigma in (12.0, 3.2, 0.5):
        ask(f"chain|{sigma}", "sd1", chain[1], chain[0], chain[2], sigma=sigma)
    return asked, given


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
