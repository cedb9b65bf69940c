"""What ControlNets of diffusion transformers are compared with ComfyUI's on: small networks, and what they are asked.

As `dit_cases`. The names and shapes of the ControlNets' files are in golden/dit_control_keys.json.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from tests.parity.dit_cases import NETS as SMALLEST
from tests.parity.dit_cases import noise, weights

KEYS: dict[str, dict[str, list[int]]] = json.loads(
    (Path(__file__).parent / "golden" / "dit_control_keys.json").read_text()
)

_SD3 = {
    **SMALLEST["sd3"],
    "depth": 4,
    "num_blocks": 4,
    "adm_in_channels": 2048,
    "context_embedder_config": {"target": "torch.nn.Linear", "params": {"in_features": 48, "out_features": 256}},
}
NETS: Mapping[str, dict[str, Any]] = {
    "sd3": _SD3,
    "flux": {
        **SMALLEST["flux"],
        "hidden_size": 128,
        "num_heads": 1,
        "axes_dim": [16, 56, 56],
        "depth": 6,
        "depth_single_blocks": 11,
    },
    "qwen": {**SMALLEST["qwen"], "num_layers": 14},
}
POOLED = {"sd3": 2048, "flux": 32, "qwen": 32}
TIMES = {"sd3": 1000.0, "flux": 1.0, "qwen": 1.0}
GUIDANCE = (3.5, 30.0)
SIGMA = 0.7


@dataclass(frozen=True)
class Case:
    """A backbone under a ControlNet, by the name of its keys. size: of the latents; hint: of the image, in pixels.

    text: how many tokens. kind: of hint. mask: of what is to be painted, in pixels. says: the file's "control_type".
    """

    control: str
    size: tuple[int, int] = (8, 8)
    hint: tuple[int, int] = (64, 64)
    text: int = 5
    strength: float = 0.6
    kind: int | None = None
    mask: tuple[int, int] | None = None
    says: int | None = None

    @property
    def net(self) -> str:
        return self.control.partition("_")[0]

    @property
    def name(self) -> str:
        return " ".join(map(str, vars(self).values()))


CASES: Sequence[Case] = (
    Case("sd3_diffusers"),
    Case("sd3_diffusers", (9, 6), (50, 70)),
    Case("sd3_masked", (8, 6), (64, 48), mask=(40, 48)),
    Case("sd3_masked"),
    Case("sd3_large", says=0),
    Case("sd3_large", (9, 6), (72, 48), says=1),
    Case("sd3_large", (6, 8), says=2),
    Case("sd3_large_pooled", says=2),
    Case("flux_union"),
    Case("flux_union", (9, 6), (72, 48), kind=3),
    Case("flux_union", text=9, kind=1),
    Case("flux_doubles", strength=1.2),
    Case("flux_masked", (8, 6), (64, 48), mask=(64, 48)),
    Case("flux_masked"),
    Case("flux_xlabs"),
    Case("flux_xlabs", (6, 8), (30, 70)),
    Case("flux_mistoline"),
    Case("qwen_union"),
    Case("qwen_union", (9, 6), (50, 70), text=9),
    Case("qwen_masked", (8, 6), (64, 48), mask=(40, 48)),
    Case("qwen_masked", strength=1.2),
    Case("qwen_fun", strength=1.44),
    Case("qwen_fun", (9, 7), (72, 56), text=3),
)


def file(case: Case) -> dict[str, Tensor]:
    """Return the tensors of the ControlNet's file."""
    tensors = weights(KEYS[case.control])
    if case.says is not None:
        tensors["control_type"] = torch.tensor([float(case.says)])
    return tensors


@dataclass(frozen=True)
class Asked:
    """The tensors of a case, of two rows. hint: (1,H,W,3); mask: (1,H,W)."""

    x: Tensor
    text: Tensor
    pooled: Tensor
    hint: Tensor
    mask: Tensor | None


def asked(case: Case) -> Asked:
    """Return what the networks are asked."""
    draw = lambda what, *shape: noise(f"{case.name} {what}", shape)  # noqa: E731
    return Asked(
        draw("x", 2, 16, *((1,) if case.net == "qwen" else ()), *case.size),
        draw("text", 2, case.text, 48),
        draw("pooled", 2, POOLED[case.net]),
        draw("hint", 1, *case.hint, 3).sigmoid(),
        None if case.mask is None else (draw("mask", 1, *case.mask) > 0).float(),
    )


@dataclass(frozen=True)
class Vae:
    """A stand-in for an autoencoder, on both sides: a latent cell is a mix of the means of its pixels.

    video: its latents have an axis of time.
    """

    video: bool = False
    factor: int = 8

    def encode(self, images: Tensor) -> Tensor:
        """Return latents (B,16,h,w), or (B,16,1,h,w), of images (B,H,W,3)."""
        means = torch.nn.functional.avg_pool2d(images.movedim(-1, 1) * 2 - 1, self.factor)
        latents = torch.einsum("oc,bchw->bohw", noise("vae", (16, 3)), means)
        return latents.unsqueeze(2) if self.video else latents

    def spacial_compression_encode(self) -> int:
        """Return what ComfyUI asks for."""
        return self.factor
