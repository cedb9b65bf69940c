"""Networks that do not fit their share of a card: the weights of some blocks stay in host memory, and come as they run.

Any part of a network's tree may be a block. Before the first of its layers runs, its weights are copied to one of two
slots on the card, on a stream of copies; while it computes, those of the block that ran after it the last time are on
their way to the other. No host waits: the two streams wait for each other. What fits beside the slots stays on the
card, and the blocks that do not are spread over the network, so that there is always something to copy.
"""

from __future__ import annotations

import copy
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from serve_app.models.kernels.packing import move_weights, weights_of
from serve_app.models.weights.pinned_memory import PinnedMemory
from serve_app.models.weights.upload import Copies

QUARTERS = 4
"""In what parts of all that weights may take of a card networks that stream have theirs; one is left for the others."""
SLOTS = 2
BLOCKS = 8
"""A block takes no more than one part in so many of what the network may take, unless it is a single layer."""
SMALL = 64
"""What takes less than one part in so many of the largest block there may be stays on the card."""
ALIGNED = 256
"""Every weight begins at a multiple of so many bytes, as it would in memory of its own."""

_ARRIVAL = "arrival"


@dataclass(frozen=True, slots=True, eq=False)
class Block:
    """Layers whose weights come together, and how many bytes these take in a slot."""

    layers: list[nn.Module]
    nbytes: int


@dataclass(slots=True)
class StreamCounters:
    """What networks have copied to the card as they ran: blocks, and bytes of them."""

    blocks: int = 0
    nbytes: int = 0


def stream_share(nbytes: int, beside_bytes: int, budget_bytes: int) -> float | None:
    """Return in which share of all that weights may take a network streams; None for one that is whole on the card.

    nbytes: of the network; beside_bytes: of what is needed at once with it; budget_bytes: all. The share is of whole
    quarters, so that there are few sizes of one network; at least one, even if that is more than the others leave.
    """
    if nbytes + beside_bytes <= budget_bytes:
        return None
    left = QUARTERS * (budget_bytes - beside_bytes) // max(budget_bytes, 1)
    share = min(max(left, 1), QUARTERS - 1) / QUARTERS
    return share if nbytes > share * budget_bytes else None


def streamed_blocks(network: nn.Module, dtype: torch.dtype | None, room_bytes: int) -> list[Block]:
    """Return the blocks that have to stream so that a network takes so many bytes of a card, slots included.

    dtype: that its weights are to be in, None: as they are. It takes more where what cannot stream does.
    """
    blocks = list(_blocks(network, dtype, room_bytes // BLOCKS))
    layers = {id(layer) for block in blocks for layer in block.layers}
    stays = _nbytes(weights_of((layer for layer in network.modules() if id(layer) not in layers), dtype))
    slots = SLOTS * max((block.nbytes for block in blocks), default=0)
    total = sum(block.nbytes for block in blocks)
    fits = max(0, room_bytes - stays - slots)
    found: list[Block] = []
    passed = streams = 0
    for block in blocks:
        passed += block.nbytes
        # Of every part of the network as much streams as of the whole.
        if streams * total < passed * (total - fits):
            found.append(block)
            streams += block.nbytes
    return found


def _blocks(network: nn.Module, dtype: torch.dtype | None, most_bytes: int) -> Iterator[Block]:
    """Yield the largest parts of a network of no more than so many bytes, in order, but those that are small."""
    weights = (own for layer in network.modules() for own in layer._parameters.values() if own is not None)
    uses = Counter(map(id, weights))

    def stays(layer: nn.Module) -> bool:
        # Of an embedding few rows are read, some of them elsewhere; a weight that others share is of no one block.
        return isinstance(layer, nn.Embedding) or any(uses[id(own)] > 1 for own in layer._parameters.values())

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
    """The blocks of a network that stream, taken off its files, and the slots that they come to.

    dtype: that the weights are to be in, None: as they are.
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
        """The layers whose weights stay on the card."""
        self.nbytes = _nbytes(weights_of(self.resident, dtype)) + SLOTS * max(block.nbytes for block in blocks)
        """How much of the card the network takes."""
        self._blocks = blocks
        self._device = device
        self._copies = copies
        self._counters = counters
        self._starts = [sum(block.nbytes for block in blocks[:number]) for number in range(len(blocks))]
        # As the network has run: which slot is a block's, and which block followed which.
        self._slot_of: dict[int, int] = {}
        self._after: dict[int | None, int] = {}
        self._slots: list[Tensor] = []
        self._clear()
        for number, block in enumerate(blocks):
            self._write(number, dtype)
            arrival = _Arrival(self, number)
            for layer in block.layers:
                layer.__dict__[_ARRIVAL] = arrival
                layer.register_forward_pre_hook(arrival)

    def allocate_slots(self) -> None:
        """Take the slots on the card. Errors: torch.OutOfMemoryError."""
        nbytes = max(block.nbytes for block in self._blocks)
        self._slots = [torch.empty(nbytes, dtype=torch.uint8, device=self._device) for _ in range(SLOTS)]
        for slot in self._slots:
            self._copies.keep(slot)
        for number in range(len(self._blocks)):
            self._place(number, self._slot_of.get(number, 0))

    def leave(self) -> None:
        """Give the slots back; the network cannot run until it settles again."""
        self._clear()
        for block in self._blocks:
            self._each(block, lambda tensor, at: torch.empty(tensor.shape, dtype=tensor.dtype, device="meta"))

    def _clear(self) -> None:
        self._slots = []
        self._in: list[int | None] = [None] * SLOTS
        self._current: int | None = None

    def _write(self, number: int, dtype: torch.dtype | None) -> None:
        start = self._starts[number]

        def write(tensor: Tensor, at: int) -> Tensor:
            self.memory.write(start + at, tensor)
            return torch.empty(tensor.shape, dtype=tensor.dtype, device="meta")

        self._each(self._blocks[number], write, dtype)

    def _place(self, number: int, slot: int) -> None:
        """Have a block's weights lie in a slot."""
        memory = self._slots[slot]
        self._each(self._blocks[number], lambda tensor, at: _view(memory, at, tensor))

    def _each(self, block: Block, place: Callable[[Tensor, int], Tensor], dtype: torch.dtype | None = None) -> None:
        """Put what `place` returns for a weight, and the byte of the slot at which it begins, in its place."""
        at = 0

        def send(tensor: Tensor, dtype: torch.dtype | None = None) -> Tensor:
            nonlocal at
            begins, tensor = at, tensor if dtype is None else tensor.to(dtype)
            at += _slot_bytes(tensor)
            return place(tensor, begins)

        move_weights(block.layers, send, self._device, dtype)

    def arrive(self, number: int) -> None:
        """Have what this thread asks the device for next find a block's weights in their place."""
        if number == self._current:
            return
        if number not in self._slot_of:
            # In turn as they first run, so that those that run one after another have different ones.
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
        """Copy a block to its slot, unless it is there, once the device has done what it was asked for by now."""
        slot = self._slot_of[number]
        if self._in[slot] == number:
            return
        nbytes = self._blocks[number].nbytes
        self._copies.follow()
        with self._copies.asked():
            self.memory.read(self._starts[number], self._slots[slot][:nbytes])
        self._in[slot] = number
        self._counters.blocks += 1
        self._counters.nbytes += nbytes

    def own(self, number: int, layer: nn.Module) -> nn.Module:
        """Return a layer of a block with weights of its own on the card, wherever the block's are."""
        made = copy.copy(layer)
        made._parameters = dict(layer._parameters)

        def send(tensor: Tensor, dtype: torch.dtype | None = None) -> Tensor:
            memory = torch.empty(_nbytes([tensor]), dtype=torch.uint8, device=self._device)
            self.memory.read(self._starts[number] + int(tensor.storage_offset()) * tensor.dtype.itemsize, memory)
            return _view(memory, 0, tensor)

        move_weights([made], send, self._device)
        return made


@dataclass(frozen=True, slots=True, eq=False)
class _Arrival:
    """What a layer of a block does before it runs."""

    streaming: Streaming
    number: int

    def __call__(self, layer: nn.Module, args: Any) -> None:
        self.streaming.arrive(self.number)


def with_own_weights(layer: nn.Module) -> nn.Module:
    """Return a layer whose weights are those of its numbers now: one that streams with weights of its own."""
    arrival: _Arrival | None = layer.__dict__.get(_ARRIVAL)
    return layer if arrival is None else arrival.streaming.own(arrival.number, layer)


def _nbytes(tensors: Sequence[Tensor]) -> int:
    return sum(tensor.numel() * tensor.dtype.itemsize for tensor in tensors)


def _slot_bytes(tensor: Tensor) -> int:
    return -(-_nbytes([tensor]) // ALIGNED) * ALIGNED


def _view(memory: Tensor, at: int, like: Tensor) -> Tensor:
    return memory[at : at + _nbytes([like])].view(like.dtype).view(like.shape)
