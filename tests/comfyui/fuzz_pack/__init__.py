"""A node pack that both servers load for the differential fuzz: values made of a seed, and any value shown whole."""

from __future__ import annotations

import base64
import zlib
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch

MOST = 20_000
"""Of a larger tensor every so manieth value is shown."""


class _Any(str):
    """ComfyUI compares types by !=, so this input takes every one."""

    __hash__ = str.__hash__

    def __ne__(self, other: object) -> bool:
        return False


class FuzzGiven:
    """A tensor of a shape (batch, height, width), drawn from a seed; its kinds are the classes below."""

    FUNCTION = "get"
    CATEGORY = "fuzz"
    MOST = 64

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        sides = {name: ("INT", {"default": 4, "min": 1, "max": cls.MOST}) for name in ("batch", "height", "width")}
        return {"required": {"seed": ("INT", {"default": 0, "min": 0, "max": 99}), **sides}}

    def drawn(self, seed: int, *shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


class FuzzImage(FuzzGiven):
    """An image of noise."""

    RETURN_TYPES = ("IMAGE",)

    def get(self, seed: int, batch: int, height: int, width: int) -> tuple[torch.Tensor]:
        return (self.drawn(seed, batch, height, width, 3).sigmoid(),)


class FuzzMask(FuzzGiven):
    """A soft mask of noise."""

    RETURN_TYPES = ("MASK",)

    def get(self, seed: int, batch: int, height: int, width: int) -> tuple[torch.Tensor]:
        return (self.drawn(seed, batch, height, width).sigmoid(),)


class FuzzLatent(FuzzGiven):
    """A latent of noise, of four channels."""

    RETURN_TYPES = ("LATENT",)
    MOST = 16

    def get(self, seed: int, batch: int, height: int, width: int) -> tuple[dict[str, torch.Tensor]]:
        return ({"samples": self.drawn(seed, batch, 4, height, width)},)


class FuzzShow:
    """Shows every tensor, number and text in a value."""

    RETURN_TYPES = ()
    FUNCTION = "show"
    CATEGORY = "fuzz"
    OUTPUT_NODE = True

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        return {"required": {"value": (_Any("*"),)}}

    def show(self, value: Any) -> dict[str, Any]:
        return {"ui": {"leaves": [dict(leaf) for leaf in leaves(value, "")]}}


def leaves(value: Any, path: str) -> Iterator[dict[str, Any]]:
    """Yield what a value holds, by path; an object of any other class as no more than being there."""
    if isinstance(value, torch.Tensor):
        flat = value.detach().to(torch.float32).cpu().reshape(-1)
        flat = flat[:: max(1, -(-flat.numel() // MOST))].contiguous()
        packed = base64.b64encode(zlib.compress(np.asarray(flat).tobytes(), 1)).decode()
        yield {"path": path, "shape": list(value.shape), "kind": str(value.dtype), "data": packed}
    elif isinstance(value, dict):
        for name in sorted(value, key=str):
            yield from leaves(value[name], f"{path}.{name}")
    elif isinstance(value, list | tuple):
        for index, item in enumerate(value):
            yield from leaves(item, f"{path}[{index}]")
    elif value is None or isinstance(value, bool | int | float | str):
        yield {"path": path, "value": repr(value)}
    else:
        yield {"path": path, "value": "an object"}


NODE_CLASS_MAPPINGS = {kind.__name__: kind for kind in (FuzzImage, FuzzMask, FuzzLatent, FuzzShow)}
