"""Writes a safetensors file one tensor at a time. Source: safetensors' format description."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from math import prod

import torch
from torch import Tensor

from serve_app.models.files.file_tensor import held

NAMES: Mapping[torch.dtype, str] = {
    torch.float64: "F64",
    torch.float32: "F32",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.float8_e4m3fn: "F8_E4M3",
    torch.float8_e5m2: "F8_E5M2",
    torch.int64: "I64",
    torch.int32: "I32",
    torch.int8: "I8",
    torch.uint8: "U8",
    torch.bool: "BOOL",
}
"""The format's names of dtypes."""

_ALIGNMENT = 8


@dataclass(frozen=True, slots=True, eq=False)
class Written:
    """A tensor to write. make: returns its numbers, in any dtype."""

    name: str
    shape: tuple[int, ...]
    dtype: torch.dtype
    make: Callable[[], Tensor]

    @property
    def nbytes(self) -> int:
        return prod(self.shape) * self.dtype.itemsize


class SafetensorsFile:
    """A file whose tensors are computed as it is read, the same each time; as `store.Pieces`.

    metadata: text by name. progress: called with the number of tensors made, and the total.
    """

    def __init__(
        self,
        tensors: Sequence[Written],
        metadata: Mapping[str, str],
        progress: Callable[[int, int], None] = lambda done, of: None,
    ) -> None:
        # Wide dtypes first, as the format's own library does: so each offset is a multiple of the item size.
        self.tensors = sorted(tensors, key=lambda tensor: (-tensor.dtype.itemsize, tensor.name))
        self._metadata = metadata
        self._progress = progress

    def __iter__(self) -> Iterator[bytes | memoryview]:
        yield self._header()
        for done, written in enumerate(self.tensors, 1):
            tensor = held(written.make()).to(written.dtype).reshape(written.shape).contiguous()
            yield tensor.flatten().view(torch.uint8).numpy().data
            self._progress(done, len(self.tensors))

    def _header(self) -> bytes:
        entries: dict[str, object] = {"__metadata__": dict(self._metadata)} if self._metadata else {}
        begin = 0
        for tensor in self.tensors:
            end = begin + tensor.nbytes
            offsets = [begin, end]
            entries[tensor.name] = {"dtype": NAMES[tensor.dtype], "shape": tensor.shape, "data_offsets": offsets}
            begin = end
        text = json.dumps(entries, separators=(",", ":")).encode()
        text += b" " * (-len(text) % _ALIGNMENT)
        return len(text).to_bytes(8, "little") + text
