"""ComfyUI's figures under golden/, and the error that ours may have."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

GOLDEN = Path(__file__).parent / "golden"
PROMPTS: list[str] = json.loads((GOLDEN / "prompts.json").read_text())
"""The texts that figures are made of: 1 is every positive, 2 every negative."""
FLOWS = {"flow": 3.0, "flux": 1.15}
"""The shifts of SD 3's levels and of FLUX's, by ComfyUI's names of their kinds."""
LATER_SAMPLERS = frozenset({"cfgpp_ud10_ab"})
"""Those that ComfyUI has got after the version whose figures these are: none is compared."""
TOLERANCE = 1e-4
MODULE_TOLERANCE = 1e-5
GUIDANCE_TOLERANCE = 4e-4
"""Of a transformer that reads a guidance. Its embedding takes the sine of 30,000 radians, and one unit in the last
place of the exponential before it, in which processors differ, moves the answer by 3e-4; 6e-5 has been seen."""
TIME_TOLERANCE = 4e-5
"""Of a transformer whose time is embedded so, in smaller angles: ComfyUI's own on another processor is 2.2e-5 off."""


def thinned(array: np.ndarray) -> np.ndarray:
    """Return an array flat, and of a large one some hundreds of elements."""
    flat = array.ravel()
    return flat[:: max(1, flat.size // 500)]


def module_tolerance(keys: Iterable[str]) -> float:
    """Return what a transformer's answer may be off in float32, by the names of its weights."""
    embedded = {"guidance_in.": GUIDANCE_TOLERANCE, "t_embedding.mlp_in.": TIME_TOLERANCE}
    found = [tolerance for prefix, tolerance in embedded.items() if any(key.startswith(prefix) for key in keys)]
    return max(found, default=MODULE_TOLERANCE)


class Figures:
    """The figures of files, by name."""

    def __init__(self, *files: str) -> None:
        self._arrays = {name: array for file in files for name, array in np.load(GOLDEN / f"{file}.npz").items()}
        self.names = [*self._arrays]

    def __getitem__(self, name: str) -> Tensor:
        return torch.from_numpy(self._arrays[name])

    def error(self, ours: Tensor, name: str) -> float:
        """Return ‖ours − theirs‖ / ‖theirs‖."""
        theirs = self[name]
        assert ours.shape == theirs.shape
        return float((ours - theirs).norm() / theirs.norm())

    def assert_agrees(self, ours: Tensor, name: str, tolerance: float = TOLERANCE) -> None:
        """Hold ours to the tolerance."""
        error = self.error(ours, name)
        assert error <= tolerance, f"{name}: relative error {error:.2e}"
