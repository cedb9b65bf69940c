"""What merged weights are compared with ComfyUI's on: two small backbones' names, and how models are merged.

Weights are drawn from names, so both sides make them for themselves. Torch alone is imported here: the figures are made
in ComfyUI's environment.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from tests.parity.dit_cases import drawn, noise

GOLDEN = Path(__file__).parent / "golden"
NETS: Mapping[str, Mapping[str, list[int]]] = {
    "flux": json.loads((GOLDEN / "dit_keys.json").read_text())["flux"],
    "unet": json.loads((GOLDEN / "merging_keys.json").read_text()),
}
LAYERS = {"flux": "double_blocks.0.img_attn.qkv", "unet": "input_blocks.1.1.transformer_blocks.0.attn1.to_q"}
"""The layer that the LoRA changes."""
RANK = 2

Case = tuple[str, Any]
"""A node's class and what it is given: a letter is a model, a dictionary its ratios, another case what that makes.

"lora" stands for LoraLoaderModelOnly.
"""

_SUM: Case = ("ModelMergeAdd", ["c", ("ModelMergeSubtract", ["a", "b", {"multiplier": 0.7}])])
CASES: Mapping[str, tuple[str, Case]] = {
    "simple": ("unet", ("ModelMergeSimple", ["a", "b", {"ratio": 0.3}])),
    "simple flux": ("flux", ("ModelMergeSimple", ["a", "b", {"ratio": 0.3}])),
    "difference added": ("flux", _SUM),
    "blocks": ("unet", ("ModelMergeBlocks", ["a", "b", {"input": 0.2, "middle": 0.5, "out": 0.9}])),
    "blocks of a transformer": ("flux", ("ModelMergeBlocks", ["a", "b", {"input": 0.2, "middle": 0.5, "out": 0.9}])),
    "parts of SD 1": (
        "unet",
        ("ModelMergeSD1", ["a", "b", {"time_embed.": 0.1, "input_blocks.1.": 0.3, "output_blocks.0.": 0.6}]),
    ),
    "parts of Flux": (
        "flux",
        ("ModelMergeFlux1", ["a", "b", {"img_in.": 0.1, "double_blocks.1.": 0.3, "final_layer.": 0.6}]),
    ),
    "a LoRA, then merged": ("flux", ("ModelMergeSimple", [("lora", ["a", {"strength": 0.8}]), "b", {"ratio": 0.4}])),
    "merged, then a LoRA": ("unet", ("lora", [("ModelMergeSimple", ["a", "b", {"ratio": 0.4}]), {"strength": 0.8}])),
    "with a model under a LoRA": (
        "unet",
        ("ModelMergeSimple", ["a", ("lora", ["b", {"strength": 0.8}]), {"ratio": 0.4}]),
    ),
}
DIFFERENCES = {"linear": (24, 16), "convolution": (12, 8, 3, 3), "of one cell": (12, 8, 1, 1), "wide": (6, 80)}
"""The shapes of differences that LoRAs are taken out of."""
SHOWN = 7
"""Every so many-th tensor of a case has figures, of which every so many-th element."""


def model(net: str, letter: str) -> dict[str, Tensor]:
    """Return a model's weights by name."""
    # The end of a name says what is drawn.
    return {name: drawn(f"{letter} {name}", shape) for name, shape in NETS[net].items()}


def lora(net: str) -> dict[str, Tensor]:
    """Return the tensors of a LoRA's file."""
    layer = LAYERS[net]
    out, inside = NETS[net][f"{layer}.weight"]
    name = f"diffusion_model.{layer}"
    return {
        f"{name}.lora_up.weight": noise("up", (out, RANK)),
        f"{name}.lora_down.weight": noise("down", (RANK, inside)) / inside**0.5,
    }


def shown(net: str) -> list[str]:
    """Return the names of the tensors that a case has figures of."""
    names = sorted(NETS[net])
    return sorted({*names[::SHOWN], f"{LAYERS[net]}.weight"})
