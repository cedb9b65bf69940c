"""Runs networks larger than their share of GPU memory: some blocks' weights stream from host memory during a forward.

Any subtree of a network may be a block. Before its first layer runs, its weights are copied to one of two slots on the
GPU, on a copy stream; while it computes, the block that followed it in the last forward is prefetched into the other
slot. The host waits for no pinned block: the two streams synchronise by events. Blocks without room in pinned memory
are read from their files each time, during the computation of those before them. Weights that fit besides the slots
stay resident, and streamed blocks are spread over the network, so that copies overlap with computation throughout.
"""

from __future__ import annotations

import copy
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from serve_app.models.kernels.packing import move_weights, weights_of
from serve_app.models.weights.deallocation import free_tensors
from serve_app.models.weights.pageable_blocks import PageableBlock, Staging
from serve_app.models.weights.pinned_memory import PinnedMemory
from serve_app.models.weights.upload import Copies

SLOTS = 2
BLOCKS = 8
"""A block takes at most an eighth of the network's room, unless it is a single layer."""
SMALL = 64
"""Weights below this fraction (1/64) of the largest possible block stay on the GPU."""
ALIGNED = 256
"""Alignment of every weight in bytes, as in memory of its own."""

ARRIVAL = "arrival"
"""The attribute of a streamed layer that has its hook."""


@dataclass(frozen=True, slots=True, eq=False)
class Block:
    """Layers whose weights are copied together, and their bytes in a slot."""

    layers: list[nn.Module]
    nbytes: int


@dataclass(slots=True)
class StreamCounters:
    """Blocks and bytes copied to the GPU during forwards."""

    blocks: int = 0
    nbytes: int = 0


def streamed_blocks(network: nn.Module, dtype: torch.dtype | None, room_bytes: int) -> list[Block]:
    """Return the blocks to stream so that a network takes at most `room_bytes` of the GPU, slots included.

    dtype: of the weights, None: as stored. It takes more if the weights that cannot stream do.
    """
    blocks = list(blocks_of(network, dtype, room_bytes // BLOCKS))
    layers = {id(layer) for block in blocks for layer in block.layers}
    stays = nbytes_of(weights_of((layer for layer in network.modules() if id(layer) not in layers), dtype))
    slots = SLOTS * max((block.nbytes for block in blocks), default=0)
    total = sum(block.nbytes for block in blocks)
    fits = max(0, room_bytes - stays - slots)
    found: list[Block] = []
    passed = streams = 0
    for block in blocks:
        passed += block.nbytes
        # The same share of every part of the network streams.
        if streams * total < passed * (total - fits):
            found.append(block)
            streams += block.nbytes
    return found


def blocks_of(network: nn.Module, dtype: torch.dtype | None, most_bytes: int) -> Iterator[Block]:
    """Yield the largest subtrees of a network of at most `most_bytes`, in order, without small ones."""
    weights = (own for layer in network.modules() for own in layer._parameters.values() if own is not None)
    uses = Counter(map(id, weights))

    def stays(layer: nn.Module) -> bool:
        # Few rows of an embedding are read, some of them elsewhere; a weight shared by layers belongs to no one block.
        # Weights of what has layers of its own may be read where it is not called: tables of positions and modulations.
        read_elsewhere = bool(layer._parameters) and any(True for _ in layer.children())
        shared = any(uses[id(own)] > 1 for own in layer._parameters.values())
        # A dictionary of weights is never called, so nothing would tell when they are needed.
        return isinstance(layer, nn.Embedding | nn.ParameterDict) or read_elsewhere or shared

    seen: set[int] = set()

    def within(parent: nn.Module) -> Iterator[Block]:
        for child in parent.children():
            layers = [layer for layer in child.modules() if not stays(layer)]
            nbytes = sum(map(_slot_bytes, weights_of(layers, dtype)))
            if id(child) in seen:
                continue
            seen.add(id(child))
            if nbytes > most_bytes and any(True for _ in child.children()):
                yield from within(child)
            elif nbytes > most_bytes // SMALL:
                yield Block(layers, nbytes)

    yield from within(network)


class Streaming:
    """The streamed blocks of a network, in host memory or their files, and their slots.

    dtype: of the weights, None: as stored. memory: has room for the first blocks; later ones stay where they are.
    """

    def __init__(
        self,
        network: nn.Module,
        blocks: Sequence[Block],
        dtype: torch.dtype | None,
        memory: PinnedMemory,
        device: torch.device,
        copies: Copies,
        counters: StreamCounters,
    ) -> None:
        self.memory = memory
        streams = {id(layer) for block in blocks for layer in block.layers}
        self.resident = [layer for layer in network.modules() if id(layer) not in streams]
        """The layers whose weights stay on the GPU."""
        self.nbytes = nbytes_of(weights_of(self.resident, dtype)) + SLOTS * max(block.nbytes for block in blocks)
        """Bytes of the GPU that the network takes."""
        self.blocks = blocks
        """What streams, in the order of the network."""
        self._device = device
        self._copies = copies
        self._counters = counters
        self._starts = [sum(block.nbytes for block in blocks[:number]) for number in range(len(blocks))]
        pageable = [n for n, block in enumerate(blocks) if self._starts[n] + block.nbytes > memory.capacity]
        self.pageable = {number: PageableBlock() for number in pageable}
        """The blocks without room in pinned memory, by their numbers."""
        self.staging = Staging(max((blocks[number].nbytes for number in pageable), default=0), SLOTS, copies)
        # Learnt from forwards: each block's slot, and the block that follows it.
        self._slot_of: dict[int, int] = {}
        self._after: dict[int | None, int] = {}
        self._slots: list[Tensor] = []
        self._clear()
        for number, block in enumerate(blocks):
            self._write(number, dtype)
            arrival = Arrival(self, number)
            for layer in block.layers:
                layer.__dict__[ARRIVAL] = arrival
                layer.register_forward_pre_hook(arrival)

    def allocate_slots(self) -> None:
        """Allocate the slots on the GPU. Errors: torch.OutOfMemoryError."""
        nbytes = max(block.nbytes for block in self.blocks)
        self._slots = [torch.empty(nbytes, dtype=torch.uint8, device=self._device) for _ in range(SLOTS)]
        for slot in self._slots:
            self._copies.keep(slot)
        for number in range(len(self.blocks)):
            self._place(number, self._slot_of.get(number, 0))

    def leave(self) -> None:
        """Free the slots; the network cannot run until `allocate_slots`."""
        self._clear()
        self.staging.leave()
        for block in self.blocks:
            self._each(block, lambda tensor, at, dtype: torch.empty(tensor.shape, dtype=dtype, device="meta"))

    def close(self) -> None:
        """Free the slots and the blocks in host memory; the network is of no use after that."""
        self._clear()
        self.pageable.clear()
        self.staging.close()
        self.memory.close()

    def _clear(self) -> None:
        free_tensors(self._slots)
        self._slots = []
        self._in: list[int | None] = [None] * SLOTS
        self._current: int | None = None

    def _write(self, number: int, dtype: torch.dtype | None) -> None:
        start, pageable = self._starts[number], self.pageable.get(number)

        def write(tensor: Tensor, at: int, dtype: torch.dtype) -> Tensor:
            if pageable is None:
                self.memory.write(start + at, tensor.to(dtype))
            else:
                pageable.add(at, tensor, dtype)
            return torch.empty(tensor.shape, dtype=dtype, device="meta")

        self._each(self.blocks[number], write, dtype)

    def _place(self, number: int, slot: int) -> None:
        """Point a block's weights into a slot."""
        memory = self._slots[slot]
        self._each(self.blocks[number], lambda tensor, at, dtype: view(memory, at, tensor))

    def _each(
        self, block: Block, place: Callable[[Tensor, int, torch.dtype], Tensor], dtype: torch.dtype | None = None
    ) -> None:
        each_weight(block, place, self._device, dtype)

    def arrive(self, number: int) -> None:
        """Make this thread's next work on the device wait for a block's weights, and prefetch the next block."""
        if number == self._current:
            return
        if number not in self._slot_of:
            # Alternating in order of first use, so that consecutive blocks have different slots.
            self._slot_of[number] = len(self._slot_of) % SLOTS
            self._place(number, self._slot_of[number])
        self._bring(number)
        self._copies.lead()
        self._after[self._current] = number
        self._current = number
        following = self._after.get(number)
        if following is not None and self._slot_of[following] != self._slot_of[number]:
            self._bring(following)

    def _bring(self, number: int) -> None:
        """Copy a block to its slot, unless it is there, after the work enqueued so far."""
        slot = self._slot_of[number]
        if self._in[slot] == number:
            return
        nbytes, pageable = self.blocks[number].nbytes, self.pageable.get(number)
        staged = None if pageable is None else self.staging.filled(slot, pageable)
        self._copies.follow()
        with self._copies.enqueueing():
            if staged is None:
                self.memory.read(self._starts[number], self._slots[slot][:nbytes])
            else:
                self._slots[slot][:nbytes].copy_(staged[:nbytes], non_blocking=True)
                self.staging.sent(slot)
        self._in[slot] = number
        self._counters.blocks += 1
        self._counters.nbytes += nbytes

    def own(self, number: int, layer: nn.Module) -> nn.Module:
        """Return a layer of a block with weights of its own on the GPU, whatever slot the block is in."""
        made = copy.copy(layer)
        made._parameters = dict(layer._parameters)

        def send(tensor: Tensor, dtype: torch.dtype | None = None) -> Tensor:
            at = int(tensor.storage_offset()) * tensor.dtype.itemsize
            if (pageable := self.pageable.get(number)) is not None:
                return pageable.weight(at).to(self._device)
            memory = torch.empty(nbytes_of([tensor]), dtype=torch.uint8, device=self._device)
            self.memory.read(self._starts[number] + at, memory)
            return view(memory, 0, tensor)

        move_weights([made], send, self._device)
        return made


class Blocks(Protocol):
    """The blocks of a network whose weights are not all on the device."""

    def arrive(self, number: int) -> None:
        """Make this thread's next work on the device wait for a block's weights."""
        ...

    def own(self, number: int, layer: nn.Module) -> nn.Module:
        """Return a layer of a block with weights of its own on the device."""
        ...


@dataclass(frozen=True, slots=True, eq=False)
class Arrival:
    """Forward pre-hook of a block's layers."""

    blocks: Blocks
    number: int

    def __call__(self, layer: nn.Module, args: Any) -> None:
        self.blocks.arrive(self.number)


def each_weight(
    block: Block,
    place: Callable[[Tensor, int, torch.dtype], Tensor],
    device: torch.device,
    dtype: torch.dtype | None = None,
) -> None:
    """Replace each weight of a block by what `place` returns for it, its offset in a slot and its dtype there."""
    at = 0

    def send(tensor: Tensor, dtype: torch.dtype | None = None) -> Tensor:
        nonlocal at
        begins, dtype = at, dtype or tensor.dtype
        at += _aligned(tensor.numel() * dtype.itemsize)
        return place(tensor, begins, dtype)

    move_weights(block.layers, send, device, dtype)


def streams(layer: nn.Module) -> bool:
    """Whether a layer's weights are on the GPU only while it runs."""
    return ARRIVAL in layer.__dict__


def with_own_weights(layer: nn.Module) -> nn.Module:
    """Return a layer with its current weights: for a streamed layer, with weights of its own."""
    arrival: Arrival | None = layer.__dict__.get(ARRIVAL)
    return layer if arrival is None else arrival.blocks.own(arrival.number, layer)


def nbytes_of(tensors: Sequence[Tensor]) -> int:
    """Return the bytes of tensors."""
    return sum(tensor.numel() * tensor.dtype.itemsize for tensor in tensors)


def _slot_bytes(tensor: Tensor) -> int:
    return _aligned(nbytes_of([tensor]))


def _aligned(nbytes: int) -> int:
    return -(-nbytes // ALIGNED) * ALIGNED


def view(memory: Tensor, at: int, like: Tensor) -> Tensor:
    """Return a range of memory as a tensor shaped and typed like another."""
    return memory[at : at + nbytes_of([like])].view(like.dtype).view(like.shape)
