"""A node pack that makes a text's conditioning and a sound's empty latent, without an encoder of either."""

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
        drawn = {"pooled_output": torch.randn(1, pooled, generator=source)}
        # ComfyUI's LTX-2 takes a text for one that its connectors have read, unless this says otherwise.
        return ([[text, {**drawn, "unprocessed_ltxav_embeds": True}]],)


class Silence:
    """A LATENT (1,channels,length,bins) of zeros, as an autoencoder of sounds would size it."""

    RETURN_TYPES = ("LATENT",)
    FUNCTION = "make"
    CATEGORY = "bench"

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        size = ("INT", {"default": 8, "min": 1, "max": 16384})
        return {"required": {"channels": size, "length": size, "bins": size}}

    def make(self, channels: int, length: int, bins: int) -> tuple[dict[str, Any]]:
        return ({"samples": torch.zeros(1, channels, length, bins), "type": "audio"},)


NODE_CLASS_MAPPINGS = {"Words": Words, "Silence": Silence}
