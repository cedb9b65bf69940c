"""Chooses the dtype of a part's weights from the configuration and the device."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from serve_app.errors import ConfigError
from serve_app.recipe.recipe import Part

_DTYPES = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}


def dtype_of(
    name: str, part: Part, device: torch.device, preferred: Sequence[torch.dtype] = (torch.float16,)
) -> torch.dtype:
    """Return the dtype for a part's weights. name: fp32, fp16, bf16, or auto, which is fp32 on a CPU.

    On a GPU auto is the first of `preferred` that the GPU supports, else fp32. Errors: ConfigError for another name, or
    for a dtype that the device does not support.
    """
    # Torch emulates bf16 where a GPU lacks it; ComfyUI takes another dtype there.
    has_bf16 = device.type != "cuda" or torch.cuda.is_bf16_supported(including_emulation=False)
    if name == "auto":
        able = (dtype for dtype in preferred if dtype != torch.bfloat16 or has_bf16)
        return torch.float32 if device.type == "cpu" else next(able, torch.float32)
    if name not in _DTYPES:
        raise ConfigError(f"dtype '{name}' of the {part} is unknown; allowed are auto, {', '.join(_DTYPES)}")
    if name == "bf16" and not has_bf16:
        raise ConfigError(f"this GPU does not do bf16, which is set for the {part}; allowed are auto, fp32, fp16")
    return _DTYPES[name]
