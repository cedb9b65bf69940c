"""An open file of tensors: their names and shapes, and each of them, mapped from the file rather than read.

A file is of safetensors or GGUF; others are pickles, which can run code when they are opened. What a file says of how a
tensor is stored is read here, so that callers see a weight and not its scales. Source: safetensors' format description.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

from safetensors import SafetensorError, safe_open
from torch import Tensor

from serve_app.errors import ModelFileError
from serve_app.models.gguf_file import GgufFile
from serve_app.models.kept import KeptWeight
from serve_app.models.mapping import make_room
from serve_app.models.quantization import encodings, is_beside, weight_of
from serve_app.models.tensors import Shape
from serve_app.store.gguf_header import SUFFIX

_PICKLES = (".ckpt", ".pt", ".pth", ".bin")
_DTYPES = ("F16", "BF16", "F32", "F8_E4M3", "F8_E5M2", "U8")


class TensorFile(Protocol):
    """What every kind of file can do. where: what errors call it."""

    @property
    def where(self) -> str: ...

    @property
    def shapes(self) -> Mapping[str, Shape]:
        """The shapes of the tensors, by name."""
        ...

    def raw(self, name: str) -> Tensor:
        """Return one tensor, whatever it holds."""
        ...

    def tensor(self, name: str) -> Tensor:
        """Return one tensor: as it is stored, or wide and in float32 if that takes scales.

        Errors: ModelFileError if it is not of floats.
        """
        ...

    def kept(self, name: str) -> KeptWeight | None:
        """Return a weight that can be kept as it is stored, None for another tensor. Errors: ModelFileError."""
        ...


def open_tensors(path: Path) -> TensorFile:
    """Return a file opened. Errors: ModelFileError if it is of another format or is damaged."""
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
        try:
            make_room(path)
            file: Any = safe_open(str(path), framework="pt", device="cpu")
            slices = {name: file.get_slice(name) for name in file.keys()}  # noqa: SIM118
        except (SafetensorError, OSError) as error:
            raise ModelFileError(f"'{path.name}' cannot be read as a safetensors file: {error}") from error
        self._file: Any = file
        self._dtypes: dict[str, str] = {name: s.get_dtype() for name, s in slices.items()}
        self._encodings = encodings(self._dtypes, file.metadata() or {}, file.get_tensor, self.where)
        self.shapes: dict[str, Shape] = {
            name: self._shape(name, tuple(s.get_shape())) for name, s in slices.items() if not is_beside(name)
        }

    def _shape(self, name: str, stored: Shape) -> Shape:
        encoding = self._encodings.get(name)
        return stored if encoding is None else encoding.shape(stored)

    def raw(self, name: str) -> Tensor:
        tensor: Tensor = self._file.get_tensor(name)
        return tensor

    def tensor(self, name: str) -> Tensor:
        encoding = self._encodings.get(name)
        if encoding is not None and encoding.scale is not None:
            return weight_of(name, encoding, self.raw, self.where).wide()
        if (dtype := self._dtypes[name]) not in _DTYPES:
            raise ModelFileError(f"{self.where}: tensor '{name}' is {dtype}; supported are {', '.join(_DTYPES)}")
        return self.raw(name)

    def kept(self, name: str) -> KeptWeight | None:
        encoding = self._encodings.get(name)
        return None if encoding is None else weight_of(name, encoding, self.raw, self.where)
