"""An open file of tensors: names, shapes and the tensors, read or lazily read (`file_tensor`).

Formats are safetensors and GGUF; others are pickles, which can run code when they are opened. Quantization scales are
resolved here, so that callers see weights. Source: safetensors' format description.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor

from serve_app.errors import ModelFileError
from serve_app.models.files.file_tensor import OpenFile, held
from serve_app.models.files.gguf_file import GgufFile
from serve_app.models.files.tensors import Shape
from serve_app.models.quantization.quantization import encodings, is_scale, weight_of
from serve_app.models.quantization.quantized_linear import QuantizedWeight
from serve_app.store.models.gguf_header import SUFFIX
from serve_app.store.models.header import entries

_PICKLES = (".ckpt", ".pt", ".pth", ".bin")
_DTYPES = ("F16", "BF16", "F32", "F8_E4M3", "F8_E5M2", "U8")
_TORCH_DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
    "F8_E8M0": torch.float8_e8m0fnu,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U64": torch.uint64,
    "U32": torch.uint32,
    "U16": torch.uint16,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}


class TensorFile(Protocol):
    """The interface of every kind of file. where: its name in errors."""

    @property
    def where(self) -> str: ...

    @property
    def shapes(self) -> Mapping[str, Shape]:
        """The shapes of the tensors, by name."""
        ...

    @property
    def metadata(self) -> Mapping[str, str]:
        """The file's metadata."""
        ...

    def raw(self, name: str) -> Tensor:
        """Return one tensor of any dtype. Errors of all reads: ModelFileError if the file was changed."""
        ...

    def tensor(self, name: str) -> Tensor:
        """Return one tensor: as stored, or dequantized to float32 if it has scales.

        Errors: ModelFileError if it is not of floats.
        """
        ...

    def unread(self, name: str) -> Tensor:
        """As `tensor`, but an unquantized one is a lazily read tensor."""
        ...

    def quantized(self, name: str) -> QuantizedWeight | None:
        """Return a weight in its quantized form, unread; None if it is not quantized. Errors: ModelFileError."""
        ...


def open_tensors(path: Path) -> TensorFile:
    """Open a file. Errors: ModelFileError for another format or a damaged file."""
    if path.suffix.lower() in _PICKLES:
        raise ModelFileError(
            f"'{path.name}' is a pickle, which can run code when it is opened; only .safetensors and .gguf files are "
            "loaded"
        )
    return GgufFile(path) if path.suffix.lower() == SUFFIX else SafetensorsTensors(path)


class SafetensorsTensors:
    """A safetensors file; as `TensorFile`."""

    def __init__(self, path: Path) -> None:
        self.where = f"'{path.name}'"
        self._file = OpenFile(path)
        try:
            with self._file.from_start() as file:
                found, self.metadata = entries(file, self._file.nbytes)
        except ModelFileError as error:
            raise ModelFileError(f"{self.where} cannot be read as a safetensors file: it {error}") from error
        self._entries = found
        self._dtypes: dict[str, str] = {name: entry.dtype for name, entry in found.items()}
        self._encodings = encodings(self._dtypes, self.metadata, self.raw, self.where)
        self.shapes: dict[str, Shape] = {
            name: self._shape(name, entry.shape) for name, entry in found.items() if not is_scale(name)
        }

    def _shape(self, name: str, stored: Shape) -> Shape:
        encoding = self._encodings.get(name)
        return stored if encoding is None else encoding.shape(stored)

    def raw(self, name: str) -> Tensor:
        tensor: Tensor = held(self._stored(name))
        return tensor

    def tensor(self, name: str) -> Tensor:
        tensor: Tensor = held(self.unread(name))
        return tensor

    def unread(self, name: str) -> Tensor:
        encoding = self._encodings.get(name)
        if encoding is not None and encoding.scale is not None:
            return weight_of(name, encoding, self._stored, self.where).wide()
        if (dtype := self._dtypes[name]) not in _DTYPES:
            raise ModelFileError(f"{self.where}: tensor '{name}' is {dtype}; supported are {', '.join(_DTYPES)}")
        return self._stored(name)

    def quantized(self, name: str) -> QuantizedWeight | None:
        encoding = self._encodings.get(name)
        return None if encoding is None else weight_of(name, encoding, self._stored, self.where)

    def _stored(self, name: str) -> Tensor:
        entry = self._entries[name]
        if (dtype := _TORCH_DTYPES.get(entry.dtype)) is None:
            raise ModelFileError(f"{self.where}: tensor '{name}' is {entry.dtype}, which is not read")
        return self._file.tensor(entry.start, entry.shape, dtype)
