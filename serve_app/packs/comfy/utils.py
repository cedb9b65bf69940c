"""`comfy.utils` for node packs: progress bars, resizing, reading and writing tensor files.

Source: the facts of ComfyUI 0.3.64's module of this name.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from operator import attrgetter
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch.nn.functional import interpolate

from serve_app.errors import ModelFileError, NodeError
from serve_app.execution.executing import executing
from serve_app.images import Crop, resize
from serve_app.packs.comfy.model_management import throw_exception_if_processing_interrupted

PROGRESS_BAR_ENABLED = True


class ProgressBar:
    """Progress of the node that runs. total: units there are; node_id: for packs that pass it, the running node's."""

    def __init__(self, total: float, node_id: str | None = None) -> None:
        self.total = total
        self.current: float = 0
        # A bar may be moved from a thread of the node's own, which has no context.
        self._call = executing()

    def update_absolute(self, value: float, total: float | None = None, preview: Any = None) -> None:
        """Report that `value` units are done. Errors: InterruptProcessingException once the node is cancelled."""
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


class TensorFile(dict[str, torch.Tensor]):
    """The tensors of a file by name. path: of the file, by which the server's own models are loaded."""

    def __init__(self, tensors: Mapping[str, torch.Tensor], path: str) -> None:
        super().__init__(tensors)
        self.path = path


def load_torch_file(ckpt: str, safe_load: bool = True, device: Any = None, return_metadata: bool = False) -> Any:
    """Return the tensors of a safetensors file, a TensorFile. Errors: ModelFileError for another format."""
    if not str(ckpt).lower().endswith((".safetensors", ".sft")):
        raise ModelFileError(f"{ckpt} is no safetensors file; other formats can run code when they are read")
    tensors = TensorFile(load_file(ckpt, device="cpu" if device is None else str(device)), str(ckpt))
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


def weight_dtype(sd: Mapping[str, torch.Tensor], prefix: str = "") -> torch.dtype | None:
    """Return the dtype that most numbers under a prefix have, None if there are none."""
    counted: dict[torch.dtype, int] = {}
    for name, tensor in sd.items():
        if name.startswith(prefix):
            counted[tensor.dtype] = counted.get(tensor.dtype, 0) + tensor.numel()
    return max(counted, key=lambda dtype: counted[dtype], default=None)


def get_tiled_scale_steps(width: int, height: int, tile_x: int, tile_y: int, overlap: int) -> int:
    """Return how many tiles cover an image."""
    return len(_starts(height, tile_y, overlap)) * len(_starts(width, tile_x, overlap))


def _starts(side: int, tile: int, overlap: int) -> list[int]:
    """Return where tiles begin along a side, neighbours sharing an overlap."""
    if side <= tile:
        return [0]
    stride = max(1, tile - overlap)
    return [min(start, side - tile) for start in range(0, side - overlap, stride)]


def tiled_scale(
    samples: torch.Tensor,
    function: Callable[[torch.Tensor], torch.Tensor],
    tile_x: int = 64,
    tile_y: int = 64,
    overlap: int = 8,
    upscale_amount: float = 4,
    out_channels: int = 3,
    output_device: Any = "cpu",
    pbar: ProgressBar | None = None,
) -> torch.Tensor:
    """Apply a function to (B,C,H,W) tile by tile, with an output scale of `upscale_amount`; tiles blend into
    neighbours.
    """
    height, width = (round(side * upscale_amount) for side in samples.shape[2:])
    feather = max(1, round(overlap * upscale_amount))
    made = []
    for image in torch.split(samples, 1):
        total = torch.zeros((1, out_channels, height, width), device=output_device)
        weight = torch.zeros((1, 1, height, width), device=output_device)
        for y in _starts(image.shape[2], tile_y, overlap):
            for x in _starts(image.shape[3], tile_x, overlap):
                tile = function(image[:, :, y : y + tile_y, x : x + tile_x]).to(output_device)
                share = torch.ones_like(tile[:, :1])
                for t in range(feather):
                    for edge in (share[..., t, :], share[..., -1 - t, :], share[..., t], share[..., -1 - t]):
                        edge.mul_((t + 1) / feather)
                top, left = round(y * upscale_amount), round(x * upscale_amount)
                place = (..., slice(top, top + tile.shape[2]), slice(left, left + tile.shape[3]))
                total[place] += tile * share
                weight[place] += share
                if pbar is not None:
                    pbar.update(1)
        made.append(total / weight)
    return torch.cat(made)


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
