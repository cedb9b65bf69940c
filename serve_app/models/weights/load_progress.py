"""How far a model is read from its file."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from torch import nn

from serve_app.models.files.file_tensor import FileTensor
from serve_app.models.kernels.packing import weights_of

GB = 1e9


@dataclass(slots=True)
class LoadProgress:
    """A load that is under way. name: of the model. done, total: bytes of its file that are read, and that will be."""

    name: str
    total: int
    done: int = 0

    def add(self, count: int) -> None:
        """Count bytes that were read."""
        self.done += count

    def __str__(self) -> str:
        return f"loading {self.name}, {min(self.done, self.total) / GB:.1f} of {self.total / GB:.1f} GB"


def unread_bytes(layers: Iterable[nn.Module]) -> int:
    """Return how many bytes of layers' weights are still in their files."""
    return sum(tensor.nbytes for tensor in weights_of(layers) if isinstance(tensor, FileTensor))
