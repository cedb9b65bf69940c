"""`comfy.utils` for node packs: progress bars, resizing, reading and writing tensor files.

Source: the facts of ComfyUI 0.3.64's module of this name.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from operator import attrgetter
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch.nn.functional import interpolate

from serve_app.errors import ModelFileError, NodeError
from serve_app.images import Crop, resize
from serve_app.nodes.compat.model_management import throw_exception_if_processing_interrupted
from serve_app.nodes.executing import executing

PROGRESS_BAR_ENABLED = True


class ProgressBar:
    """Progress of the node that runs. total: units there are; node_id: for packs that pass it, the running node's."""

    def __init__(self, total: float, node_id: str | None = None) -> None:
        self.total = total
        self.current: float = 0
        # A bar may be moved from a thread of the node's own, which has no context.
        self._call = executing()

    def update_absolute(self, value: float, total: float | None = None, preview: Any = None) -> None:
        """Report that `value` units are done. Errors: InterruptProcessingException once nobody waits for the node."""
        if total is not None:
            self.total = total
        self.current = min(value, self.total)
        throw_exception_if_processing_interrupted()
        if self._call is not None:
            self._call.progress(self.current, self.total, preview)

    def update(self, value: float) -> None:
        """Report that `value` more units are done."""
        self.update_absolute(self.current + value)


def common_upscale(samples: torch.Tensor, width: int, height: int, upscale_method: str, crop: Crop) -> torch.Tensor:
    """Resize (B,C,H,W) as ComfyUI does; crop "center" first cuts to the new aspect."""
    return resize(samples.movedim(1, -1), width, height, upscale_method, crop).movedim(-1, 1)


def load_torch_file(ckpt: str, safe_load: bool = True, device: Any = None, return_metadata: bool = False) -> Any:
    """Return the tensors of a safetensors file by name. Errors: ModelFileError for another format."""
    if not str(ckpt).lower().endswith((".safetensors", ".sft")):
        raise ModelFileError(f"{ckpt} is no safetensors file; other formats can run code when they are read")
    tensors = load_file(ckpt, device="cpu" if device is None else str(device))
    return (tensors, None) if return_metadata else tensors


def save_torch_file(sd: dict[str, torch.Tensor], ckpt: str, metadata: dict[str, str] | None = None) -> None:
    """Write tensors as a safetensors file."""
    save_file(sd, ckpt, metadata=metadata)


def calculate_parameters(sd: Mapping[str, torch.Tensor], prefix: str = "") -> int:
    """Return how many numbers the tensors under a prefix hold."""
    return sum(tensor.numel() for name, tensor in sd.items() if name.startswith(prefix))


def repeat_to_batch_size(tensor: torch.Tensor, batch_size: int, dim: int = 0) -> torch.Tensor:
    """Repeat or cut a tensor to a batch size."""
    size = tensor.shape[dim]
    repeats = [1] * tensor.dim()
    repeats[dim] = -(-batch_size // size)
    return tensor.repeat(repeats).narrow(dim, 0, batch_size)


def lanczos(samples: torch.Tensor, width: int, height: int) -> torch.Tensor:
    """Resize (B,C,H,W) in 0…1 by Pillow's Lanczos filter, through 8 bits a channel."""
    return common_upscale(samples, width, height, "lanczos", "disabled")


def reshape_mask(input_mask: torch.Tensor, output_shape: Sequence[int]) -> torch.Tensor:
    """Return masks (…,H,W) fitted to images (B,C,H,W): resized, and repeated over channels and batch."""
    if len(output_shape) != 4:
        raise NodeError(f"a mask can be fitted to (B,C,H,W), not to {len(output_shape)} dimensions")
    planes = input_mask.reshape(-1, 1, *input_mask.shape[-2:])
    resized = interpolate(planes, size=tuple(output_shape[2:]), mode="bilinear")
    return repeat_to_batch_size(resized.expand(-1, output_shape[1], -1, -1), output_shape[0])


def state_dict_prefix_replace(
    state_dict: dict[str, Any], replace_prefix: Mapping[str, str], filter_keys: bool = False
) -> dict[str, Any]:
    """Rename keys by their beginnings, in place. filter_keys: return only what was renamed, taken out of the dict."""
    renamed = {} if filter_keys else state_dict
    for prefix, replacement in replace_prefix.items():
        for key in [key for key in state_dict if key.startswith(prefix)]:
            renamed[replacement + key[len(prefix) :]] = state_dict.pop(key)
    return renamed


def get_attr(obj: Any, attr: str) -> Any:
    """Return what a dotted name is in an object."""
    return attrgetter(attr)(obj)


def set_attr(obj: Any, attr: str, value: Any) -> Any:
    """Put a value at a dotted name in an object and return what was there."""
    holder, _, name = attr.rpartition(".")
    owner = attrgetter(holder)(obj) if holder else obj
    before = getattr(owner, name)
    setattr(owner, name, value)
    return before
