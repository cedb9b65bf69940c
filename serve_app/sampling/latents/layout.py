"""LatentLayout: where the parts of a latent are in the one tensor that a run samples.

Samplers, guidance and masks work on one tensor for each row. A latent of several parts is packed into (B,1,N), part
after part, as ComfyUI packs it, so that noise which samplers draw is the same; networks and clients get the parts.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import prod

import torch
from torch import Tensor

from serve_app.nested_tensor import NestedTensor, Samples, parts_of


@dataclass(frozen=True, slots=True)
class LatentLayout:
    """shapes: of each part without its batch; (), the default, for a latent of one tensor, which is not packed."""

    shapes: tuple[tuple[int, ...], ...] = ()

    @classmethod
    def of(cls, samples: Samples) -> LatentLayout:
        """Return the layout of samples."""
        if isinstance(samples, NestedTensor):
            return cls(tuple(tuple(part.shape[1:]) for part in samples.tensors))
        return cls()

    @property
    def joint(self) -> bool:
        """Whether there are several parts."""
        return bool(self.shapes)

    def pack(self, samples: Samples) -> Tensor:
        """Return samples as the tensor that is sampled: parts (B,…) as (B,1,N), one tensor unchanged."""
        if isinstance(samples, NestedTensor):
            return torch.cat([part.reshape(part.shape[0], 1, -1) for part in samples.tensors], dim=-1)
        return samples

    def unpack(self, x: Tensor) -> Samples:
        """Undo `pack`. The parts are views of x."""
        if not self.shapes:
            return x
        parts = torch.split(x[:, 0], [prod(shape) for shape in self.shapes], dim=1)
        return NestedTensor([part.reshape(-1, *shape) for part, shape in zip(parts, self.shapes, strict=True)])

    def parts(self, x: Tensor) -> list[Tensor]:
        """Return the parts of x, one or more."""
        return parts_of(self.unpack(x))

    def shapes_of(self, x: Tensor) -> Sequence[tuple[int, ...]]:
        """Return the shape of each part of x, with its batch."""
        return [(x.shape[0], *shape) for shape in self.shapes] or [tuple(x.shape)]

    def map(self, changes: Sequence[Callable[[Tensor], Tensor]], x: Tensor) -> Tensor:
        """Return x with the functions applied to its parts, one for each."""
        made = [change(part) for change, part in zip(changes, self.parts(x), strict=self.joint)]
        return self.pack(NestedTensor(made)) if self.joint else made[0]


ONE_PART = LatentLayout()
"""The layout of a latent of one tensor."""
