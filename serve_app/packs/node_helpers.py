"""`node_helpers` for node packs. Source: the facts of ComfyUI's module of this name."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

import torch
from PIL import ImageFile

T = TypeVar("T")


def conditioning_set_values(
    conditioning: Any, values: Mapping[str, Any] | None = None, append: bool = False
) -> list[list[Any]]:
    """Return the entries with more options. append: what an entry has already is added to."""
    changed = []
    for text, options in conditioning:
        told = dict(options)
        for name, value in (values or {}).items():
            told[name] = told[name] + value if append and told.get(name) is not None else value
        changed.append([text, told])
    return changed


def pillow(fn: Callable[[Any], T], arg: Any) -> T:
    """Call a function of Pillow's; where a file ends too early, once more with what there is of it."""
    try:
        return fn(arg)
    except (OSError, ValueError):
        before = ImageFile.LOAD_TRUNCATED_IMAGES
        ImageFile.LOAD_TRUNCATED_IMAGES = True
        try:
            return fn(arg)
        finally:
            ImageFile.LOAD_TRUNCATED_IMAGES = before


def hasher() -> Any:
    """Return the hash function for files."""
    return hashlib.sha256


def string_to_torch_dtype(string: str) -> torch.dtype | None:
    """Return the dtype that a widget's "fp32", "fp16" or "bf16" names, None for any other."""
    return {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}.get(string)


def image_alpha_fix(destination: torch.Tensor, source: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Return both with as many channels: a missing alpha is opaque, one too many is left out."""
    missing = destination.shape[-1] - source.shape[-1]
    if missing < 0:
        return destination, source[..., : destination.shape[-1]]
    opaque = torch.ones((*source.shape[:-1], missing), dtype=source.dtype, device=source.device)
    return destination, torch.cat([source, opaque], -1) if missing else source
