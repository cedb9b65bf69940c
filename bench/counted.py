"""Counts the kernels that a forward launches on a GPU, and the bytes they move, without a GPU and without memory.

The network's tensors are on the meta device, which has shapes and no numbers. What is counted is a model of PyTorch's
CUDA kernels, not a measurement: an operation is one kernel, which reads each input and writes each output once. Fused
operations (attention, norms, those of comfy_kitchen) are one kernel. Products read each operand once, which caches only
approximate. This module needs torch alone, so that ComfyUI's own interpreter can import it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

_FREE = {
    "detach", "alias", "lift_fresh", "empty", "empty_strided", "empty_like", "new_empty", "new_empty_strided",
    "_reshape_alias", "view", "_unsafe_view", "resize_", "set_",
}  # fmt: skip
"""Operations without a kernel, in addition to views."""

_WHOLE = {
    "scaled_dot_product_attention", "layer_norm", "group_norm", "conv2d", "conv3d", "rms_norm", "embedding",
    "upsample_nearest2d", "silu", "gelu",
}  # fmt: skip
"""Operations with a CUDA kernel of their own that torch takes apart elsewhere."""

_WRITES = {"copy_", "fill_", "zero_"}
"""Operations that write their first tensor without reading it."""


_FILLS = {"new_ones", "new_zeros", "new_full", "ones_like", "zeros_like", "full_like"}
"""Operations that read the shape of a tensor alone."""


@dataclass
class Counts:
    """Kernels launched, and bytes read and written, by operation."""

    kernels_of: Counter[str] = field(default_factory=Counter)
    nbytes_of: Counter[str] = field(default_factory=Counter)

    @classmethod
    def of(cls, found: Mapping[str, Mapping[str, int]]) -> Counts:
        """Return the counts of a JSON object."""
        return cls(Counter(found["kernels_of"]), Counter(found["nbytes_of"]))

    @property
    def kernels(self) -> int:
        return self.kernels_of.total()

    @property
    def nbytes(self) -> int:
        return self.nbytes_of.total()

    def add(self, name: str, nbytes: int, kernels: int = 1) -> None:
        self.kernels_of[name] += kernels
        self.nbytes_of[name] += nbytes


class Counting(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Counts what is computed on the meta device in inference mode. counts: so far."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.counts = Counts()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        if (wrapper := _wrapper([*args, *kwargs.values()])) is not None:
            with self:
                return wrapper.__torch_dispatch__(func, types, args, kwargs)
        name = func.overloadpacket._qualified_op_name.rpartition("::")[2]
        if name == "scaled_dot_product_attention":
            return self._attention(*args, **kwargs)
        if name == "dropout":
            # Torch's Python form of it copies where CUDA's returns its input.
            return args[0]
        if not (name in _WHOLE and _is_fused(name, args)) and func._can_decompose():
            with self:
                made = func.decompose(*args, **kwargs)
            if made is not NotImplemented:
                return made
        made = func(*args, **kwargs)
        outputs = [*_tensors(made)]
        if func.is_view or name in _FREE or not any(output.is_meta for output in outputs):
            return made
        given = [] if name in _FILLS else [*args, *(value for key, value in kwargs.items() if key != "out")]
        inputs = [tensor for tensor in _tensors(given) if tensor.is_meta]
        if name == "embedding":
            inputs = [args[1], *outputs]
        self.counts.add(name, sum(map(_nbytes, [*(inputs[1:] if name in _WRITES else inputs), *outputs])))
        return made

    def _attention(
        self, q: Tensor, k: Tensor, v: Tensor, attn_mask: Tensor | None = None, *_: Any, **__: Any
    ) -> Tensor:
        """Return the output as the fused kernels lay it out, (B,N,H,d) transposed."""
        made = q.new_empty(q.shape[0], q.shape[2], q.shape[1], v.shape[3]).transpose(1, 2)
        tensors = [q, k, v, made]
        if attn_mask is not None:
            tensors.append(attn_mask)
            if attn_mask.dtype == torch.bool:
                # It becomes numbers that are added to logits: filled with zeros, then with infinities.
                self.counts.add("mask", attn_mask.numel() * q.dtype.itemsize * 2, kernels=2)
        self.counts.add("scaled_dot_product_attention", sum(map(_nbytes, tensors)))
        return made


def _is_fused(name: str, args: Any) -> bool:
    """Whether the CUDA kernel takes these inputs: that of RMS norms needs a weight in the dtype of x."""
    return name != "rms_norm" or len(args) < 3 or args[2] is None or args[2].dtype == args[0].dtype


def _wrapper(values: Any) -> type[Tensor] | None:
    """Return the class of a tensor that computes its operations itself, as quantized ones do; None without one."""
    for tensor in _tensors(values):
        if type(tensor) not in (Tensor, torch.nn.Parameter):
            return type(tensor)
    return None


def _tensors(values: Any) -> Iterator[Tensor]:
    if isinstance(values, Tensor):
        yield values
    elif isinstance(values, list | tuple):
        for value in values:
            yield from _tensors(value)


def _nbytes(tensor: Tensor) -> int:
    """Return the bytes of a tensor's distinct numbers: expanded sides repeat them."""
    count = 1
    for size, stride in zip(tensor.shape, tensor.stride(), strict=True):
        count *= size if stride or size == 0 else 1
    return count * tensor.dtype.itemsize
