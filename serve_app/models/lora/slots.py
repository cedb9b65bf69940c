"""LoRAs of many sets in one GPU forward: every row of a batch has a slot for the low-rank pair of its set.

Each layer runs two kernels more, however many sets there are: x (rows,…,in) times (rows,in,rank), and that times
(rows,rank,out) added to the layer's output by a forward hook. Slots have fixed addresses, which a CUDA graph reads:
when the sets of a batch change, the pairs of the changed rows are copied there. Ranks are rounded up and padded with
zeros, so that sets of similar ranks share slots.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, TypeAlias
from weakref import WeakValueDictionary, ref

import torch
from torch import Tensor, nn
from torch.nn.functional import conv2d

from serve_app.models.weights.deallocation import free_tensors

LEAST_RANK = 8
"""The lowest rank of slots; others are powers of two."""

_SLOT, _SLOTS = "lora_slot", "lora_slots"


class Pair(NamedTuple):
    """The low-rank pair of one layer of a set: down (rank,in,…), up (out,rank,…), with strengths applied."""

    down: Tensor
    up: Tensor


class LayerSlots(NamedTuple):
    """A layer's slots. down (rows,rank,in,…), up (rows,out,rank)."""

    down: Tensor
    up: Tensor


@dataclass(frozen=True, slots=True, eq=False)
class Slotted:
    """The slot requirements of a layer. rank: of its slots; like: any of the pairs for it."""

    name: str
    layer: nn.Module
    rank: int
    like: Pair


Layout: TypeAlias = tuple[tuple[str, int], ...]
"""Layers of a network with slots, and their ranks: slots of equal layouts serve the same rows."""


class Slots:
    """The slots of some layers of a network, for a number of rows or fewer, empty at first. layout: of its layers.

    key: of the rows that they were last filled for. first: one of the slots, whose address is fixed as long as all are.
    keeper: the object whose `slots` owns them.
    """

    def __init__(self, layers: Sequence[Slotted], rows: int) -> None:
        self.layout = layout(layers)
        self.rows = rows
        self.key: Hashable = None
        self.keeper: ref[Any] | None = None
        self._layers = [one.layer for one in layers]
        self._places = [_place(one, rows) for one in layers]
        self._views: dict[int, list[LayerSlots]] = {rows: self._places}
        self._held: list[Hashable] = [None] * rows
        self.first = self._places[0].down

    @property
    def nbytes(self) -> int:
        """Bytes of the slots."""
        return sum(tensor.numel() * tensor.dtype.itemsize for place in self._places for tensor in place)

    def fill(self, key: Hashable, sets: Sequence[Hashable], pair: Callable[[int, str], Pair | None]) -> None:
        """Copy the pairs of the rows' sets into the first rows; rows that have them already are skipped.

        keys: of the rows' sets. pair: from a row's number and a layer's name to its pair.
        """
        changed = [row for row, own in enumerate(sets) if self._held[row] != own]
        emptied: list[Tensor] = []
        targets: list[Tensor] = []
        sources: list[Tensor] = []
        for row in changed:
            self._held[row] = object()
            for (name, rank), place in zip(self.layout, self._places, strict=True):
                own = pair(row, name)
                if own is None or len(own.down) < rank:
                    emptied += [place.down[row], place.up[row]]
                if own is not None:
                    targets += [place.down[row, : len(own.down)], place.up[row, :, : len(own.down)]]
                    sources += [own.down, own.up.flatten(1)]
        if emptied:
            torch._foreach_zero_(emptied)
        if targets:
            torch._foreach_copy_(targets, sources)
        for row in changed:
            self._held[row] = sets[row]
        self.key = key

    def let_go(self) -> None:
        """Remove them from their owner."""
        if self.keeper is not None and (keeper := self.keeper()) is not None and keeper.slots is self:
            keeper.slots = None
        self.keeper = None

    def close(self) -> None:
        """Free their memory, whoever still has references to them."""
        self.let_go()
        free_tensors(tensor for places in self._views.values() for place in places for tensor in place)

    def use(self, rows: int) -> None:
        """Make the layers add the slots' pairs of the first rows, until `leave`."""
        if rows not in self._views:
            self._views[rows] = [LayerSlots(place.down[:rows], place.up[:rows]) for place in self._places]
        for layer, place in zip(self._layers, self._views[rows], strict=True):
            _hook(layer).place = place

    def leave(self) -> None:
        """Make the layers add nothing."""
        for layer in self._layers:
            _hook(layer).place = None


def layout(layers: Sequence[Slotted]) -> Layout:
    """Return the layout of slots for layers."""
    return tuple((one.name, one.rank) for one in layers)


def slot_rank(rank: int) -> int:
    """Return the rank of slots for pairs of a rank."""
    return max(LEAST_RANK, 1 << (rank - 1).bit_length())


def slots_of(network: nn.Module) -> WeakValueDictionary[Layout, Slots]:
    """Return a network's owned slots, by layout."""
    slots: WeakValueDictionary[Layout, Slots] = network.__dict__.setdefault(_SLOTS, WeakValueDictionary())
    return slots


def remove_slots(network: nn.Module) -> None:
    """Remove slots and hooks from a network's layers."""
    network.__dict__.pop(_SLOTS, None)
    for layer in network.modules():
        hook: _Hook | None = layer.__dict__.pop(_SLOT, None)
        if hook is not None:
            hook.handle.remove()


def _place(one: Slotted, rows: int) -> LayerSlots:
    down, up = one.like
    return LayerSlots(down.new_zeros(rows, one.rank, *down.shape[1:]), up.new_zeros(rows, len(up), one.rank))


class _Hook:
    """The forward hook of a layer that adds its slots' pairs, or nothing."""

    def __init__(self, layer: nn.Module) -> None:
        self.place: LayerSlots | None = None
        self.handle = layer.register_forward_hook(self)

    def __call__(self, layer: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> Tensor | None:
        if self.place is None:
            return None
        down, up = self.place
        if (count := len(args[0])) > (rows := len(down)):
            down, up = (one.repeat(-(-count // rows), *[1] * (one.ndim - 1))[:count] for one in self.place)
        return _convolved(layer, args[0], output, down, up) if down.ndim == 5 else _mapped(args[0], output, down, up)


def _hook(layer: nn.Module) -> _Hook:
    hook: _Hook | None = layer.__dict__.get(_SLOT)
    if hook is None:
        hook = layer.__dict__[_SLOT] = _Hook(layer)
    return hook


def _mapped(x: Tensor, output: Tensor, down: Tensor, up: Tensor) -> Tensor:
    rows = len(down)
    inner = torch.bmm(x.reshape(rows, -1, x.shape[-1]), down.mT)
    added = torch.baddbmm(output.reshape(rows, -1, output.shape[-1]), inner, up.mT)
    return added.view(output.shape)


def _convolved(layer: Any, x: Tensor, output: Tensor, down: Tensor, up: Tensor) -> Tensor:
    """Return as `_mapped`, for a convolution: each row is a group of one grouped convolution."""
    rows, rank = down.shape[:2]
    inner = conv2d(
        x.reshape(1, -1, *x.shape[2:]), down.flatten(0, 1), None, layer.stride, layer.padding, layer.dilation, rows
    )
    added = torch.baddbmm(output.flatten(2), up, inner.view(rows, rank, -1))
    return added.view(output.shape)
