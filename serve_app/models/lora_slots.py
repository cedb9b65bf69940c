"""LoRAs of many sets in one forward of a GPU: every row of a batch has a slot for the low-rank pair of its set.

A layer's pairs are stacked by row once the batch's composition changes. Then a forward takes two kernels a layer
beside the layer's own, however many sets its rows are of: x (rows,…,in) times (rows,in,rank), and that times
(rows,rank,out) added to what the layer gives. The layer keeps its forward; a hook of it adds. Pairs of lower rank are
filled with zeros.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.functional import conv2d, pad

_SLOT = "lora_slot"


class Pair(NamedTuple):
    """The low-rank pair of one layer of a set: down (rank,in,…), up (out,rank,…), with strengths in it."""

    down: Tensor
    up: Tensor


@dataclass(frozen=True, slots=True, eq=False)
class Filled:
    """A layer's slots. down (rows,rank,in,…), up (rows,out,rank)."""

    layer: nn.Module
    down: Tensor
    up: Tensor

    @property
    def nbytes(self) -> int:
        return sum(tensor.numel() * tensor.dtype.itemsize for tensor in (self.down, self.up))


@dataclass(frozen=True, slots=True, eq=False)
class Composition:
    """The slots of all layers, for one sequence of rows. key: equal for equal sets in equal rows."""

    key: Hashable
    filled: list[Filled]

    @property
    def nbytes(self) -> int:
        """How much memory they take."""
        return sum(slots.nbytes for slots in self.filled)

    def use(self) -> None:
        """Have the layers add what is in the slots, until `leave`."""
        for slots in self.filled:
            _slot(slots.layer).filled = slots

    def leave(self) -> None:
        """Have the layers add nothing."""
        for slots in self.filled:
            _slot(slots.layer).filled = None


def filled(layer: nn.Module, pairs: Sequence[tuple[int, Pair | None]]) -> Filled:
    """Return the slots of a layer. pairs: in the batch's order how many rows have which; not all have none."""
    some = next(pair for _, pair in pairs if pair is not None)
    rank = max(len(pair.down) for _, pair in pairs if pair is not None)
    none = Pair(some.down.new_zeros(rank, *some.down.shape[1:]), some.up.new_zeros(len(some.up), rank))
    whole = [none if pair is None else _of_rank(pair, rank) for _, pair in pairs]
    by_row = [pair for (rows, _), pair in zip(pairs, whole, strict=True) for _ in range(rows)]
    return Filled(layer, torch.stack([pair.down for pair in by_row]), torch.stack([pair.up for pair in by_row]))


def _of_rank(pair: Pair, rank: int) -> Pair:
    """Return a pair with zeros up to a rank."""
    up, lacking = pair.up.flatten(1), rank - len(pair.down)
    if not lacking:
        return Pair(pair.down, up)
    return Pair(torch.cat([pair.down, pair.down.new_zeros(lacking, *pair.down.shape[1:])]), pad(up, (0, lacking)))


class _Slot:
    """What a layer's hook adds now. It stays with the layer, and nothing of it while no composition is used."""

    def __init__(self, layer: nn.Module) -> None:
        self.filled: Filled | None = None
        self.handle = layer.register_forward_hook(self)

    def __call__(self, layer: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> Tensor | None:
        if self.filled is None:
            return None
        down, up = self.filled.down, self.filled.up
        return _convolved(layer, args[0], output, down, up) if down.ndim == 5 else _mapped(args[0], output, down, up)


def _slot(layer: nn.Module) -> _Slot:
    slot: _Slot | None = layer.__dict__.get(_SLOT)
    if slot is None:
        slot = layer.__dict__[_SLOT] = _Slot(layer)
    return slot


def remove_slots(network: nn.Module) -> None:
    """Leave a network's layers without slots, as they were before the first LoRA."""
    for layer in network.modules():
        slot: _Slot | None = layer.__dict__.pop(_SLOT, None)
        if slot is not None:
            slot.handle.remove()


def _mapped(x: Tensor, output: Tensor, down: Tensor, up: Tensor) -> Tensor:
    rows = len(down)
    inner = torch.bmm(x.reshape(rows, -1, x.shape[-1]), down.mT)
    added = torch.baddbmm(output.reshape(rows, -1, output.shape[-1]), inner, up.mT)
    return added.view(output.shape)


def _convolved(layer: Any, x: Tensor, output: Tensor, down: Tensor, up: Tensor) -> Tensor:
    """Return as `_mapped`, of a convolution: that of each row is a group of one over all."""
    rows, rank = down.shape[:2]
    inner = conv2d(
        x.reshape(1, -1, *x.shape[2:]), down.flatten(0, 1), None, layer.stride, layer.padding, layer.dilation, rows
    )
    added = torch.baddbmm(output.flatten(2), up, inner.view(rows, rank, -1))
    return added.view(output.shape)
