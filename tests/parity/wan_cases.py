"""Small random models of every edition of Wan, and the runs of ComfyUI's sampler with them that golden/wan.npz has."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from serve_app.models.families import Wan, Wan22, WanAnimate2, WanScail
from tests.parity.make_checkpoint import normal
from tests.unit.models.sample import random_tensors

WIDTH, INSIDE, TEXT, SEEN = 256, 320, 4096, 1280
"""As wide as ComfyUI's are whatever the file says: texts, and what is seen in images."""
NETS: Mapping[str, Wan] = {
    "t2v": Wan(WIDTH, 2, INSIDE, TEXT),
    "i2v": Wan(WIDTH, 2, INSIDE, TEXT, 36, SEEN),
    "flf": Wan(WIDTH, 1, INSIDE, TEXT, 36, SEEN, 10),
    "i2v_22": Wan(WIDTH, 2, INSIDE, TEXT, 36),
    "control": Wan(WIDTH, 1, INSIDE, TEXT, 48, SEEN),
    "control_22": Wan(WIDTH, 1, INSIDE, TEXT, 52, reference_channels=16),
    "5b": Wan22(WIDTH, 2, INSIDE, TEXT, 48),
    "5b_inpaint": Wan22(WIDTH, 1, INSIDE, TEXT, 100),
    "vace": Wan(WIDTH, 4, INSIDE, TEXT, vace=2, vace_channels=96),
    "camera": Wan(WIDTH, 1, INSIDE, TEXT, 32, SEEN, camera=24),
    "camera_22": Wan(WIDTH, 1, INSIDE, TEXT, 36, camera=24),
    "scail": WanScail(WIDTH, 2, INSIDE, TEXT, 20, SEEN),
    "animate2": WanAnimate2(WIDTH, 2, INSIDE, TEXT, 36, SEEN),
}
METADATA = {
    name: {"config": json.dumps({"transformer": said})}
    for name, said in {
        "animate2": {"model_type": "animate2"},
        "causal": {"model_type": "t2v", "causal_ar": True},
    }.items()
}
"""What files say of networks that tensors alone do not tell from others."""
STEPS, SEED, CFG = 3, 7, 3.0
SAMPLER, SCHEDULE = "euler", "simple"


@dataclass(frozen=True)
class Run:
    """A run. size: of the latents, (F,h,w). mask: of the run, if it has one, of which latents are kept.

    options: what both conditionings say beside their texts; a shape stands for numbers drawn, of either sign, "mask"
    and a shape for zeros and ones, lists of them for lists.
    """

    net: str
    size: tuple[int, int, int]
    options: dict[str, Any] = field(default_factory=dict)
    mask: tuple[int, ...] | None = None

    @property
    def name(self) -> str:
        return f"{self.net} {self.size} {json.dumps(self.options)} {self.mask}"


def _image(channels: int, *size: int) -> dict[str, Any]:
    return {"concat_latent_image": (1, channels, *size)}


def _mask(channels: int, *size: int) -> dict[str, Any]:
    return {"concat_mask": ("mask", (1, channels, *size))}


def _seen(count: int) -> dict[str, Any]:
    return {"clip_vision_output": (1, count, SEEN)}


def _scail(references: int, frames: int) -> dict[str, Any]:
    """Return references of videos (3,4,6), poses of some frames of half the size, and masks of both."""
    return {
        "reference_latents": [(1, 16, 1, 4, 6)] * references,
        "pose_video_latent": (1, 16, frames, 2, 4),
        "ref_mask_28ch": ("mask", (1, references + 3, 28, 4, 6)),
        "driving_mask_28ch": ("mask", (1, frames, 28, 2, 4)),
    }


RUNS = (
    Run("t2v", (3, 6, 6)),
    Run("t2v", (2, 5, 7)),
    Run("t2v", (1, 6, 4)),
    Run("t2v", (3, 6, 6), {}, (1, 1, 48, 48)),
    Run("i2v", (2, 6, 6)),
    Run("i2v", (2, 6, 6), _seen(5)),
    Run("i2v", (2, 6, 6), _image(16, 2, 6, 6) | _mask(1, 2, 6, 6) | _seen(5)),
    Run("flf", (2, 6, 6), _image(16, 2, 6, 6) | _mask(4, 2, 6, 6) | _seen(10)),
    Run("flf", (2, 6, 6), _image(16, 2, 6, 6) | _mask(4, 2, 6, 6) | _seen(5)),
    Run("i2v_22", (3, 6, 6), _image(16, 3, 6, 6) | _mask(4, 3, 6, 6)),
    Run("i2v_22", (3, 6, 6), _image(16, 3, 8, 7)),
    Run("i2v_22", (3, 6, 6), _image(16, 3, 6, 6) | _mask(1, 2, 8, 8)),
    Run("i2v_22", (3, 6, 6), _image(16, 3, 6, 6), (1, 1, 3, 6, 6)),
    Run("control", (2, 6, 6), _image(32, 2, 6, 6)),
    Run(
        "control_22",
        (2, 6, 6),
        _image(32, 2, 6, 6)
        | _mask(4, 2, 6, 6)
        | {"concat_mask_index": 16, "reference_latents": [(1, 16, 1, 6, 6), (1, 16, 2, 6, 6)]},
    ),
    Run("control_22", (2, 6, 6), _image(32, 2, 6, 6) | {"concat_mask_index": 16}),
    Run("5b", (3, 4, 6)),
    Run("5b", (3, 4, 6), {}, (1, 1, 3, 4, 6)),
    Run("5b_inpaint", (2, 4, 4), _image(48, 2, 4, 4) | _mask(4, 2, 4, 4)),
    Run("vace", (2, 6, 6)),
    Run(
        "vace",
        (2, 6, 6),
        {
            "vace_frames": [(1, 32, 2, 6, 6), (1, 32, 2, 6, 6)],
            "vace_mask": [("mask", (1, 64, 2, 6, 6)), ("mask", (1, 64, 2, 6, 6))],
            "vace_strength": [0.8, 0.3],
        },
    ),
    Run("scail", (3, 4, 6)),
    Run("scail", (3, 4, 6), _scail(1, 2) | _seen(5)),
    Run("scail", (3, 4, 6), _scail(2, 3) | {"ref_mask_flag": False}, (1, 1, 3, 4, 6)),
    Run("animate2", (3, 4, 6), _image(16, 3, 4, 6) | _mask(1, 3, 4, 6)),
    Run(
        "animate2",
        (3, 5, 6),
        _image(16, 3, 5, 6)
        | _mask(1, 3, 5, 6)
        | _seen(5)
        | {
            "pose_video_latent": (1, 16, 2, 5, 6),
            "cross_attn_pose": (1, 9, TEXT),
            "pose_strength": 0.7,
            "reference_strength": 1.3,
        },
    ),
)


def _drawn(value: Any, name: str) -> Any:
    match value:
        case ("mask", shape):
            return (normal(name, list(shape)) > 0).float()
        case tuple():
            return normal(name, list(value))
        case list():
            return [_drawn(one, f"{name} {i}") for i, one in enumerate(value)]
    return value


def latents(run: Run) -> Tensor:
    """Return the latents that a run starts from, as the autoencoder made them: empty ones unless a mask keeps some."""
    shape = [1, NETS[run.net].latent_format.channels, *run.size]
    return torch.zeros(shape) if run.mask is None else normal(f"{run.name} latents", shape)


def noise_mask(run: Run) -> Tensor | None:
    """Return a run's mask; of one in latent cells, no frame of which differs within, the first is kept."""
    if run.mask is None:
        return None
    made: Tensor = (normal(f"{run.name} mask", list(run.mask)) > 0).float()
    if len(run.mask) == 5:
        made[:, :, 0] = 0.0
    return made


def options(run: Run) -> dict[str, Any]:
    """Return what the conditionings of a run say; what is seen is the states of the layer before the last."""
    return {key: _drawn(value, f"{run.name} {key}") for key, value in run.options.items()}


def text(role: str) -> Tensor:
    """Return a conditioning's text."""
    return normal(f"wan {role}", [1, 7, TEXT])


def write(root: Path) -> None:
    """Write a file of each edition, as they are published."""
    for name, family in NETS.items():
        save_file(random_tensors(family, torch.float32), root / f"{name}.safetensors", METADATA.get(name))
