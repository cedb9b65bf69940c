"""Patch parallelism of autoencoders: each rank has a strip of the rows of every image, and pictures are the same.

All operations of a convolutional network but three work cell by cell, or within a channel. A convolution, and the
padding before one, sees some rows of the ranks above and below; attention has queries of its own cells, and keys and
values of all. So seams are nowhere, unlike with tiles. Source: Fang et al. 2024, arXiv:2411.01738 (parallel VAE).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import conv2d, conv3d, pad, scaled_dot_product_attention
from torch.overrides import TorchFunctionMode

from serve_app.models.ranks.sharding import SequenceRanks

MIN_ROWS = 2
"""The fewest rows of latents in a strip: what a 3×3 convolution of a border that is reflected reads."""

_PACKED: Any = getattr(torch.ops.mkldnn, "_convolution_pointwise", None)
"""What packed layers call on a CPU; None in a torch without oneDNN."""
_PADDING_AT: Mapping[Any, int] = {conv2d: 4, conv3d: 4, _PACKED: 3}
"""Convolutions, and where their arguments have the padding."""


def strip_rows(rows: int, size: int) -> list[int] | None:
    """Return the rows of each rank's strip of latents with so many; None where strips would be too small."""
    if rows < MIN_ROWS * size:
        return None
    return [rows // size + (rank < rows % size) for rank in range(size)]


class Strips(TorchFunctionMode):
    """Has operations work on this rank's strips of tensors (…,H,W). rows: of the coarsest level's, by rank.

    All ranks run the same operations in the same order. Function modes outside see none of them: one that ends the work
    would leave the others waiting. One thread at a time.
    """

    def __init__(self, ranks: SequenceRanks, rows: Sequence[int]) -> None:
        super().__init__()
        self._ranks = ranks
        self._rows = rows

    @property
    def size(self) -> int:
        """The number of ranks."""
        return self._ranks.size

    @contextmanager
    def working(self) -> Iterator[None]:
        """Have what runs inside work on strips."""
        with torch._C.DisableTorchFunction(), torch._C._EnableTorchFunction(), self:
            yield

    def split(self, whole: Tensor) -> Sequence[Tensor]:
        """Return the strips of a whole tensor (…,H,W), by rank. H is a multiple of the coarsest level's rows."""
        scale = whole.shape[-2] // sum(self._rows)
        return torch.split(whole, [rows * scale for rows in self._rows], -2)

    def heights(self, own: int) -> list[int]:
        """Return what each rank has of something of which this one has `own`, such as the rows of a level."""
        return [own * rows // self._rows[self._ranks.rank] for rows in self._rows]

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Sequence[type],
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        """Run one operation; torch calls this."""
        options = dict(kwargs or {})
        with torch._C.DisableTorchFunction():
            if func is pad:
                return self._padded(*args, **options)
            if func is scaled_dot_product_attention:
                return self._attention(*args, **options)
            if func in _PADDING_AT:
                return self._convolved(func, args, options)
            return func(*args, **options)

    def _padded(self, x: Tensor, sides: Sequence[int], *more: Any, **options: Any) -> Tensor:
        """Return x padded, and in the places of padding the rows of the ranks above and below."""
        if len(sides) < len("lrtb") or not any(sides[2:4]):
            return pad(x, sides, *more, **options)
        left, right, above, below, *others = sides
        rows = (0 if self._has_above else above), (0 if self._has_below else below)
        return pad(self._surrounded(x, above, below), [left, right, *rows, *others], *more, **options)

    def _convolved(self, func: Callable[..., Tensor], args: Sequence[Any], options: Mapping[str, Any]) -> Tensor:
        """Return a convolution's output. One that pads rows has steps of one row."""
        at = _PADDING_AT[func]
        padding: Any = args[at] if len(args) > at else options.get("padding", 0)
        around = padding if isinstance(padding, int) else padding[-2]
        if not around:
            return func(*args, **options)
        x, *others = args
        made = func(self._surrounded(x, around, around), *others, **options)
        above, below = around * self._has_above, around * self._has_below
        return made.narrow(-2, above, made.shape[-2] - above - below)

    def _attention(self, q: Tensor, k: Tensor, v: Tensor, *more: Any, **options: Any) -> Tensor:
        """Return what queries of this rank's cells (…,n,d) find in those of all; they lie row by row."""
        sizes = self.heights(k.shape[-2])
        k, v = (self._ranks.all_gather(one, sizes, one.ndim - 2) for one in (k, v))
        return scaled_dot_product_attention(q, k, v, *more, **options)

    @property
    def _has_above(self) -> bool:
        return self._ranks.rank > 0

    @property
    def _has_below(self) -> bool:
        return self._ranks.rank < self._ranks.size - 1

    def _surrounded(self, x: Tensor, above: int, below: int) -> Tensor:
        """Return x after the last rows of the rank above and before the first rows of the one below, if there are."""
        rank, height = self._ranks.rank, x.shape[-2]
        sent = [x[..., :0, :]] * self._ranks.size
        received = [list(sent[0].shape)] * self._ranks.size
        if self._has_above:
            sent[rank - 1] = x[..., :below, :]
            received[rank - 1] = [*x.shape[:-2], above, x.shape[-1]]
        if self._has_below:
            sent[rank + 1] = x[..., height - above :, :]
            received[rank + 1] = [*x.shape[:-2], below, x.shape[-1]]
        found = self._ranks.all_to_all(sent, received)
        return torch.cat([*found[:rank], x, *found[rank + 1 :]], -2)
