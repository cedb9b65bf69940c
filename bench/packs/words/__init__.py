"""A node pack whose node makes a text's conditioning of any size, without a text encoder."""

from __future__ import annotations

from typing import Any

import torch


class Words:
    """A CONDITIONING (1,tokens,width) drawn from a seed, with a pooled text."""

    RETURN_TYPES = ("CONDITIONING",)
    FUNCTION = "draw"
    CATEGORY = "bench"

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        size = ("INT", {"default": 64, "min": 1, "max": 16384})
        return {"required": {"tokens": size, "width": size, "pooled": size, "seed": ("INT", {"max": 2**31})}}

    def draw(self, tokens: int, width: int, pooled: int, seed: int) -> tuple[list[Any]]:
        source = torch.Generator().manual_seed(seed)
        text = torch.randn(1, tokens, width, generator=source)
        return ([[text, {"pooled_output": torch.randn(1, pooled, generator=source)}]],)


NODE_CLASS_MAPPINGS = {"Words": Words}
