"""Runs networks larger than a device on several: each rank keeps a part of every block's weights, and gathers the rest.

The blocks are those that could stream (`streaming`). A rank keeps an equal part of each block's bytes, whatever they
are, so quantized weights are sharded as stored. Before a block's first layer runs, its parts are gathered into one of
two slots; while it computes, the next block's are gathered into the other. Ranks gather all blocks in every forward, in
an order that rank 0 has from the last one, also those that a rank's rows skip: so they meet whatever rows each has.
Source: Zhao et al. 2023, arXiv:2304.11277 (fully sharded data parallelism).
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from serve_app.errors import RankLostError
from serve_app.models.kernels.packing import move_weights, weights_of
from serve_app.models.weights.deallocation import free_tensors
from serve_app.models.weights.pageable_blocks import PageableBlock
from serve_app.models.weights.streaming import (
    ALIGNED,
    ARRIVAL,
    BLOCKS,
    SLOTS,
    Arrival,
    Block,
    blocks_of,
    each_weight,
    nbytes_of,
    view,
)


class WeightRanks(Protocol):
    """The ranks that have a network's weights together. rank: this process's number among them."""

    @property
    def rank(self) -> int: ...

    @property
    def size(self) -> int: ...

    def gather(self, own: Tensor, whole: Tensor) -> Callable[[], None]:
        """Gather the equal parts of all ranks into `whole`; return what waits for that, as the device's next work does.

        It begins after the work on the device that is enqueued so far.
        """
        ...


@dataclass(frozen=True, slots=True)
class ShardSizes:
    """Bytes of a network whose blocks are sharded. device_bytes: of each rank, slots included. sent_bytes: a forward.

    The latter are sent by each rank.
    """

    device_bytes: int
    sent_bytes: int


def shard_sizes(network: nn.Module, dtype: torch.dtype | None, size: int) -> ShardSizes:
    """Return the bytes of a network sharded over `size` ranks. dtype: of the weights, None: as stored."""
    blocks = sharded_blocks(network, dtype)
    parts = [_part_bytes(block, size) for block in blocks]
    resident = nbytes_of(weights_of(_resident(network, blocks), dtype))
    slots = SLOTS * size * max(parts, default=0)
    return ShardSizes(resident + sum(parts) + slots, (size - 1) * sum(parts))


def sharded_blocks(network: nn.Module, dtype: torch.dtype | None) -> list[Block]:
    """Return the blocks of a network whose weights are sharded."""
    return list(blocks_of(network, dtype, nbytes_of(weights_of(network.modules(), dtype)) // BLOCKS))


class ShardedBlocks:
    """The blocks of a network of which this rank has a part. dtype: of the weights, None: as stored.

    nbytes: of this rank's device. resident: the layers that each rank has whole.
    """

    def __init__(self, network: nn.Module, dtype: torch.dtype | None, ranks: WeightRanks, device: torch.device) -> None:
        self.blocks = sharded_blocks(network, dtype)
        self.resident = list(_resident(network, self.blocks))
        self.nbytes = shard_sizes(network, dtype, ranks.size).device_bytes
        self.parts: list[Tensor] = []
        """What this rank has of each block."""
        self.slots: list[Tensor] = []
        self._ranks = ranks
        self._device = device
        self._sources = [PageableBlock() for _ in self.blocks]
        self.learnt = self._order = tuple(range(len(self.blocks)))
        """The order in which the last forward used the blocks; those that it did not use come last."""
        # Of the present forward: which in the order is there, what waits for the next one, and what was used.
        self._at = -1
        self._arriving: tuple[int, Callable[[], None]] | None = None
        self._used: dict[int, None] = {}
        self._runs = False
        for number, block in enumerate(self.blocks):
            self.parts.append(self._part(number, dtype))
            arrival = Arrival(self, number)
            for layer in block.layers:
                layer.__dict__[ARRIVAL] = arrival
                layer.register_forward_pre_hook(arrival)

    def allocate_slots(self) -> None:
        """Allocate the slots. Errors: torch.OutOfMemoryError."""
        nbytes = self._ranks.size * max((len(part) for part in self.parts), default=0)
        self.slots = [torch.empty(nbytes, dtype=torch.uint8, device=self._device) for _ in range(SLOTS)]
        self._place()

    def follow(self, order: Sequence[int]) -> None:
        """Gather blocks in this order from the next forward on. All ranks have the same."""
        if tuple(order) != self._order:
            self._order = tuple(order)
            self._place()

    def _place(self) -> None:
        """Point the weights of each block into its slot; of neighbours in the order it is the other one."""
        for at, number in enumerate(self._order):
            each_weight(self.blocks[number], partial(_placed, self.slots[at % SLOTS]), self._device)

    def close(self) -> None:
        """Free the slots and the parts; the network is of no use after that."""
        free_tensors([*self.slots, *self.parts])
        self.slots, self.parts, self._sources = [], [], []

    def _part(self, number: int, dtype: torch.dtype | None) -> Tensor:
        """Return this rank's part of a block, and leave the block's layers without numbers."""
        block, source = self.blocks[number], self._sources[number]

        def noted(tensor: Tensor, at: int, dtype: torch.dtype) -> Tensor:
            source.add(at, tensor, dtype)
            return torch.empty(tensor.shape, dtype=dtype, device="meta")

        each_weight(block, noted, self._device, dtype)
        nbytes = _part_bytes(block, self._ranks.size)
        first = self._ranks.rank * nbytes
        whole = torch.zeros(self._ranks.size * nbytes, dtype=torch.uint8)
        for one in source.sources:
            # Of a file only what is this rank's is read, and weights of which it has some.
            if one.at < first + nbytes and first < one.at + one.tensor.numel() * one.dtype.itemsize:
                one.fill(whole)
        return whole[first : first + nbytes].to(self._device, copy=True)

    @contextmanager
    def forward(self) -> Iterator[None]:
        """Gather blocks for the forward that runs inside: all of them, by all ranks. An error inside ends this rank."""
        self._at, self._used, self._runs = -1, {}, True
        try:
            if self.blocks:
                with _unseen():
                    self._begin(0)
            yield
            with _unseen():
                while self._at < len(self.blocks) - 1:
                    self._next()
            self.learnt = tuple(dict.fromkeys((*self._used, *self._order)))
        finally:
            self._runs, self._arriving = False, None

    def arrive(self, number: int) -> None:
        """Make the next work on the device wait for a block's weights, and gather those of the next block."""
        if self._at >= 0 and number == self._order[self._at]:
            return
        if not self._runs:
            raise RankLostError("sharded weights were asked for outside of a forward of all ranks")
        with _unseen():
            self._next()
            while number != self._order[self._at]:
                self._next()
        self._used.setdefault(number)

    def _next(self) -> None:
        if self._arriving is None:
            self._begin((self._at + 1) % len(self.blocks))
        assert self._arriving is not None
        self._at, wait = self._arriving
        self._arriving = None
        wait()
        # The last one's slot is the first one's if their number is odd.
        if self._at + 1 < len(self.blocks):
            self._begin(self._at + 1)

    def _begin(self, at: int) -> None:
        part = self.parts[self._order[at]]
        whole = self.slots[at % SLOTS][: self._ranks.size * len(part)]
        self._arriving = at, self._ranks.gather(part, whole)

    def own(self, number: int, layer: nn.Module) -> nn.Module:
        """Return a layer of a block with weights of its own, as its file has them. Errors: ModelFileError."""
        made = copy.copy(layer)
        made._parameters = dict(layer._parameters)

        def send(tensor: Tensor, dtype: torch.dtype | None = None) -> Tensor:
            at = int(tensor.storage_offset()) * tensor.dtype.itemsize
            return self._sources[number].weight(at).to(self._device)

        move_weights([made], send, self._device)
        return made


def _placed(slot: Tensor, tensor: Tensor, at: int, dtype: torch.dtype) -> Tensor:
    return view(slot, at, tensor)


def _unseen() -> Any:
    """Return a context that torch function modes do not see: `engine.stopping` would end what others wait for."""
    return torch._C.DisableTorchFunction()


def _resident(network: nn.Module, blocks: Sequence[Block]) -> Iterator[nn.Module]:
    sharded = {id(layer) for block in blocks for layer in block.layers}
    return (layer for layer in network.modules() if id(layer) not in sharded)


def _part_bytes(block: Block, size: int) -> int:
    """Return the bytes of each rank's part of a block, with padding to equal and aligned parts."""
    return -(-block.nbytes // (size * ALIGNED)) * ALIGNED
