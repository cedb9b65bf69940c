"""What the parts of mini15 and of a full-size SD 1.5 are asked, here and of ComfyUI: golden/mini15.npz, sd15.npz."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from tests.parity.beside import Fixed
from tests.parity.cases import IMAGE, Case
from tests.parity.figures import PROMPTS
from tests.parity.workflow import EMPTY, Nodes, ksampler, models

SIGMAS = (14.6146, 3.2, 0.3)
X = ("Fixed", {"kind": "latent", "seed": 14, "shape": "2, 4, 8, 8"})
"""What is denoised, times the level."""
Z = ("Fixed", {"kind": "latent", "seed": 15, "shape": "1, 4, 8, 8"})
RUNS = ("ksampler|euler|normal|4|7.0|1", "ksampler|dpmpp_2m|karras|4|7.0|5")
"""KSamplers on the full-size network."""


def value(node: tuple[str, dict[str, Any]]) -> Tensor:
    """Return the tensor that a node above gives."""
    given = Fixed().get(**node[1])[0]
    tensor: Tensor = given["samples"] if isinstance(given, dict) else given
    return tensor


def _denoised(name: str, sigma: float) -> Case:
    links = {"model": ["checkpoint", 0], "conditioning": ["positive", 0], "x": ["x", 0]}
    return Case({**models(name), "x": X, "k": ("Denoised", {**links, "sigma": sigma})})


def _text(text: str, **nodes: tuple[str, dict[str, Any]]) -> Case:
    clip = ["skip", 0] if nodes else ["checkpoint", 1]
    return Case({**models("mini15"), **nodes, "k": ("CLIPTextEncode", {"text": text, "clip": clip})})


def _vae(kind: str, **inputs: Any) -> Case:
    given: Nodes = {"z": Z, "image": IMAGE}
    return Case({**models("mini15"), **given, "k": (kind, {"vae": ["checkpoint", 2], **inputs})})


MINI15: dict[str, Case] = {
    **{f"text|{i}": _text(text) for i, text in enumerate(PROMPTS)},
    "text|skip": _text(PROMPTS[0], skip=("CLIPSetLastLayer", {"clip": ["checkpoint", 1], "stop_at_clip_layer": -2})),
    **{f"denoise|{sigma}": _denoised("mini15", sigma) for sigma in SIGMAS},
    "vae|decode": _vae("VAEDecode", samples=["z", 0]),
    "vae|encode": _vae("VAEEncode", pixels=["image", 0]),
}
SD15: dict[str, Case] = {
    "denoise|3.2": _denoised("sd15", 3.2),
    **{run: Case({**models("sd15"), **EMPTY, "k": ksampler(run)}) for run in RUNS},
}
