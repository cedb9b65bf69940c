"""NestedTensor: the samples of a latent of several parts, such as a video and its sound, which are sampled together.

It has the interface of ComfyUI's class of this name, which node packs use. This module imports no torch.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, TypeAlias

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True, eq=False)
class NestedTensor:
    """Tensors of one batch, each (B,…) of a shape of its own; the video is first, its sound last.

    Arithmetic and conversions act on every part. shape, device and dtype are those of the first, as in ComfyUI.
    """

    tensors: Sequence[torch.Tensor]
    is_nested: ClassVar[bool] = True

    def unbind(self) -> list[torch.Tensor]:
        """Return the parts in order."""
        return list(self.tensors)

    def map(self, change: Callable[..., torch.Tensor], *others: Sequence[Any]) -> NestedTensor:
        """Return a function's results for every part, with the items of others as its further arguments."""
        return NestedTensor([change(*each) for each in zip(self.tensors, *others, strict=True)])

    def to(self, *args: Any, **kwargs: Any) -> NestedTensor:
        return self.map(lambda part: part.to(*args, **kwargs))

    def float(self) -> NestedTensor:
        return self.map(lambda part: part.float())

    def cpu(self) -> NestedTensor:
        return self.map(lambda part: part.cpu())

    def clone(self) -> NestedTensor:
        return self.map(lambda part: part.clone())

    def chunk(self, *args: Any, **kwargs: Any) -> NestedTensor:
        return NestedTensor([part.chunk(*args, **kwargs) for part in self.tensors])  # type: ignore[misc]

    def new_ones(self, *args: Any, **kwargs: Any) -> torch.Tensor:
        return self.tensors[0].new_ones(*args, **kwargs)

    def size(self) -> torch.Size:
        return self.tensors[0].size()

    def any(self) -> bool:
        """Whether any part has a number other than 0."""
        return any(bool(part.any()) for part in self.tensors)

    @property
    def shape(self) -> torch.Size:
        return self.tensors[0].shape

    @property
    def ndim(self) -> int:
        """The most dimensions of a part."""
        return max(part.ndim for part in self.tensors)

    @property
    def device(self) -> torch.device:
        return self.tensors[0].device

    @property
    def dtype(self) -> torch.dtype:
        return self.tensors[0].dtype

    @property
    def layout(self) -> torch.layout:
        return self.tensors[0].layout

    def __len__(self) -> int:
        """The size of the batch."""
        return len(self.tensors[0])

    def __getitem__(self, index: Any) -> NestedTensor:
        """Return rows of every part."""
        return self.map(lambda part: part[index])

    def __add__(self, other: Any) -> NestedTensor:
        return self._each(other, lambda part, by: part + by)

    def __sub__(self, other: Any) -> NestedTensor:
        return self._each(other, lambda part, by: part - by)

    def __mul__(self, other: Any) -> NestedTensor:
        return self._each(other, lambda part, by: part * by)

    def __truediv__(self, other: Any) -> NestedTensor:
        return self._each(other, lambda part, by: part / by)

    def _each(self, other: Any, operation: Callable[..., torch.Tensor]) -> NestedTensor:
        others = other.tensors if isinstance(other, NestedTensor) else [other] * len(self.tensors)
        return self.map(operation, others)


Samples: TypeAlias = "torch.Tensor | NestedTensor"
"""The samples of a LATENT: one tensor, or several parts."""


def parts_of(samples: Samples) -> list[torch.Tensor]:
    """Return the tensors of samples, one or more."""
    return samples.unbind() if isinstance(samples, NestedTensor) else [samples]
