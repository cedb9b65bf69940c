"""A node pack whose nodes make and take values of any size, and show their client texts of any length."""

from __future__ import annotations

from typing import Any

import torch

SEED = ("INT", {"default": 0, "min": 0, "max": 2**31})


class GiantMake:
    """Makes an IMAGE of so many megabytes."""

    RETURN_TYPES = ("IMAGE",)
    FUNCTION = "make"
    CATEGORY = "bench"

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        return {"required": {"megabytes": ("INT", {"default": 1, "min": 1, "max": 8192}), "seed": SEED}}

    def make(self, megabytes: int, seed: int) -> tuple[torch.Tensor]:
        return (torch.full((megabytes, 256, 256, 4), seed % 256 / 255),)


class GiantTake:
    """Takes an IMAGE, in another pool if the configuration says so, and shows a text of so many megabytes."""

    RETURN_TYPES = ()
    FUNCTION = "take"
    OUTPUT_NODE = True
    CATEGORY = "bench"

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        shown = {"default": 1, "min": 0, "max": 1024}
        return {"required": {"image": ("IMAGE",), "shown_megabytes": ("INT", shown), "seed": SEED}}

    def take(self, image: torch.Tensor, shown_megabytes: int, seed: int) -> dict[str, Any]:
        return {"ui": {"text": [f"{seed} {tuple(image.shape)} " + "x" * (shown_megabytes * 2**20)]}}


NODE_CLASS_MAPPINGS = {"GiantMake": GiantMake, "GiantTake": GiantTake}
