"""An open GGUF file: its tensors by the names that families know, kept in ggml's blocks until they are wanted wide.

The file is mapped. Source: ggml's GGUF specification. It is read by the package `gguf`, which is optional.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from serve_app.errors import ModelFileError
from serve_app.models.ggml_blocks import TYPES, BlockWeight, widened
from serve_app.models.kept import KeptWeight
from serve_app.models.mapping import make_room
from serve_app.models.tensors import Shape
from serve_app.store.gguf_header import ARCHITECTURE, SHAPE, renamed

PLAIN: Mapping[str, torch.dtype] = {
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "F64": torch.float64,
}
"""ggml's types that are not in blocks."""

_INTERLEAVED = "llama"
"""The architecture whose queries and keys llama.cpp has in another order of rows: pairs that turn together lie so."""


class _Stored(NamedTuple):
    """Where a tensor lies in a file. kind: ggml's name of its type; whole: it was not reshaped to fit blocks."""

    kind: str
    shape: Shape
    whole: bool
    offset: int
    nbytes: int


class GgufFile:
    """As `tensor_file.TensorFile`. Errors: ModelFileError for a file that is none, or in types that are not read."""

    def __init__(self, path: Path) -> None:
        self.where = f"'{path.name}'"
        reader = _reader(path)
        self.architecture: str = _field(reader, ARCHITECTURE) or ""
        self._heads = [_field(reader, f"{_INTERLEAVED}.attention.head_count{of}") for of in ("", "_kv")]
        self._tensors = {renamed(tensor.name, self.architecture): _stored(reader, tensor) for tensor in reader.tensors}
        for name, stored in self._tensors.items():
            if stored.kind not in TYPES and stored.kind not in PLAIN:
                known = ", ".join((*PLAIN, *TYPES))
                raise ModelFileError(f"{self.where}: tensor '{name}' is {stored.kind}; supported are {known}")
        self.shapes: dict[str, Shape] = {name: stored.shape for name, stored in self._tensors.items()}
        # A mapping of its own: the package's may not be written to, of which torch would warn.
        self._bytes = torch.from_file(str(path), shared=False, size=path.stat().st_size, dtype=torch.uint8)

    def raw(self, name: str) -> Tensor:
        """Return a tensor as `tensor` does."""
        return self.tensor(name)

    def tensor(self, name: str) -> Tensor:
        """Return a tensor, one in blocks widened to float32."""
        stored = self._tensors[name]
        own = self._own(stored)
        wide = widened(own, stored.kind) if stored.kind in TYPES else own.view(PLAIN[stored.kind])
        return self._in_order(name, wide.view(stored.shape))

    def kept(self, name: str) -> KeptWeight | None:
        """Return a weight in blocks, None for one that is not, or that was reshaped to fit them."""
        stored = self._tensors[name]
        if stored.kind not in TYPES or len(stored.shape) != 2 or not stored.whole:
            return None
        return BlockWeight(self._in_order(name, self._own(stored).view(stored.shape[0], -1)), stored.kind)

    def _own(self, stored: _Stored) -> Tensor:
        return self._bytes[stored.offset : stored.offset + stored.nbytes]

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
    # ggml counts dimensions from the one whose numbers lie side by side.
    shape = tuple(map(int, tensor.shape.tolist()[::-1] if said is None else said))
    return _Stored(tensor.tensor_type.name, shape, said is None, int(tensor.data_offset), int(tensor.n_bytes))


def _field(reader: Any, name: str) -> Any:
    field = reader.get_field(name)
    return None if field is None else field.contents()


def _reader(path: Path) -> Any:
    try:
        import gguf
    except ImportError as error:
        raise ModelFileError(
            f"'{path.name}' is a GGUF file; reading it takes the package gguf: pip install 'serve-app[gguf]'"
        ) from error
    try:
        make_room(path)
        return gguf.GGUFReader(path)
    except (ValueError, OSError, IndexError, KeyError, UnicodeDecodeError) as error:
        raise ModelFileError(f"'{path.name}' cannot be read as a GGUF file: {error}") from error
