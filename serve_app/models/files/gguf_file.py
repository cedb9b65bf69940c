"""An open GGUF file: its tensors by the families' names, quantized in ggml's blocks until they are dequantized.

Source: ggml's GGUF specification. Its header is read by the package `gguf`, which is optional.
"""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from serve_app.errors import ModelFileError
from serve_app.models.files.file_tensor import OpenFile, held
from serve_app.models.files.tensors import Shape
from serve_app.models.quantization.ggml_blocks import TYPES, BlockWeight, widened
from serve_app.models.quantization.quantized_linear import QuantizedWeight
from serve_app.store.models import gguf_header
from serve_app.store.models.gguf_header import ARCHITECTURE, SHAPE, renamed

PLAIN: Mapping[str, torch.dtype] = {
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "F64": torch.float64,
}
"""ggml's unquantized types."""

_INTERLEAVED = "llama"
"""The architecture whose query and key rows llama.cpp reorders, so that rotary pairs are adjacent."""


class _Stored(NamedTuple):
    """A tensor's place in a file. kind: ggml's name of its type; whole: it was not reshaped to fit blocks."""

    kind: str
    shape: Shape
    whole: bool
    offset: int
    nbytes: int


class GgufFile:
    """As `tensor_file.TensorFile`. Errors: ModelFileError for another format, or unsupported types."""

    def __init__(self, path: Path) -> None:
        self.where = f"'{path.name}'"
        self.metadata: Mapping[str, str] = {}
        self._file = OpenFile(path)
        reader = _reader(self._file)
        self.architecture: str = _field(reader, ARCHITECTURE) or ""
        self._heads = [_field(reader, f"{_INTERLEAVED}.attention.head_count{of}") for of in ("", "_kv")]
        self._tensors = {renamed(tensor.name, self.architecture): _stored(reader, tensor) for tensor in reader.tensors}
        for name, stored in self._tensors.items():
            if stored.kind not in TYPES and stored.kind not in PLAIN:
                known = ", ".join((*PLAIN, *TYPES))
                raise ModelFileError(f"{self.where}: tensor '{name}' is {stored.kind}; supported are {known}")
        self.shapes: dict[str, Shape] = {name: stored.shape for name, stored in self._tensors.items()}
        ends = max((stored.offset + stored.nbytes for stored in self._tensors.values()), default=0)
        if self._file.nbytes < ends:
            raise ModelFileError(f"{self.where} is cut off: it has {self._file.nbytes:,} of {ends:,} bytes")

    def raw(self, name: str) -> Tensor:
        """Return a tensor as `tensor` does."""
        return self.tensor(name)

    def tensor(self, name: str) -> Tensor:
        """Return a tensor, dequantized to float32 if it is in blocks."""
        tensor: Tensor = held(self.unread(name))
        return tensor

    def unread(self, name: str) -> Tensor:
        """As `tensor`; an unquantized one is a lazily read tensor."""
        stored = self._tensors[name]
        own = self._own(stored)
        wide = widened(held(own), stored.kind) if stored.kind in TYPES else own.view(PLAIN[stored.kind])
        return self._in_order(name, wide.view(stored.shape))

    def quantized(self, name: str) -> QuantizedWeight | None:
        """Return a weight in blocks, None if it is unquantized or was reshaped to fit blocks."""
        stored = self._tensors[name]
        if stored.kind not in TYPES or len(stored.shape) != 2 or not stored.whole:
            return None
        return BlockWeight(self._in_order(name, self._own(stored).view(stored.shape[0], -1)), stored.kind)

    def _own(self, stored: _Stored) -> Tensor:
        return self._file.tensor(stored.offset, (stored.nbytes,), torch.uint8)

    def _in_order(self, name: str, rows: Tensor) -> Tensor:
        """Return a weight (out,…) with its rows in the network's order. Errors: ModelFileError."""
        if self.architecture != _INTERLEAVED or not name.endswith(("q_proj.weight", "k_proj.weight")):
            return rows
        heads = self._heads[name.endswith("k_proj.weight")]
        if not heads:
            raise ModelFileError(f"{self.where} does not say how many heads its attention has")
        return rows[torch.arange(len(rows)).view(int(heads), -1, 2).transpose(1, 2).flatten()]


def _stored(reader: Any, tensor: Any) -> _Stored:
    said = _field(reader, SHAPE + tensor.name)
    # ggml lists dimensions from the contiguous one.
    shape = tuple(map(int, tensor.shape.tolist()[::-1] if said is None else said))
    return _Stored(tensor.tensor_type.name, shape, said is None, int(tensor.data_offset), int(tensor.n_bytes))


def _field(reader: Any, name: str) -> Any:
    field = reader.get_field(name)
    return None if field is None else field.contents()


def _reader(opened: OpenFile) -> Any:
    try:
        import gguf
    except ImportError as error:
        raise ModelFileError(
            f"{opened.where} is a GGUF file; reading it takes the package gguf: pip install 'serve-app[gguf]'"
        ) from error
    try:
        # The package maps the file, and a mapped file must not be truncated: so it gets a copy of the header.
        with opened.from_start() as file, tempfile.NamedTemporaryFile() as header:
            gguf_header.shapes(file)
            length = file.tell()
            file.seek(0)
            header.write(file.read(length))
            header.truncate(opened.nbytes)
            header.flush()
            return gguf.GGUFReader(header.name)
    except ModelFileError as error:
        raise ModelFileError(f"{opened.where} cannot be read as a GGUF file: it {error}") from error
    except (ValueError, OSError, IndexError, KeyError, UnicodeDecodeError) as error:
        raise ModelFileError(f"{opened.where} cannot be read as a GGUF file: {error}") from error
