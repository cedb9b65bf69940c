"""Weights in pinned host memory: those that were evicted from a card, and blocks that stream to it as they run.

Both are within one bound of bytes. What was evicted comes back by copies instead of from its files: whole parts, least
recently evicted out first, also for those that stream. A part is a network whose tensors are parts of chunks of pinned
memory meanwhile. What was made on it goes: sets of LoRAs, and the hooks by which layers add them.
"""

from __future__ import annotations

import gc
from collections import deque
from collections.abc import Callable, Hashable, Iterable, Sequence
from dataclasses import dataclass
from threading import Lock
from weakref import WeakSet

import torch
from torch import Tensor, nn

from serve_app import log
from serve_app.errors import DeviceMemoryError
from serve_app.models.kernels.packing import move_weights, weights_of
from serve_app.models.lora.slots import remove_slots
from serve_app.models.quantization.quantized_linear import QuantizedLinear
from serve_app.models.weights.loading import Loaded
from serve_app.models.weights.pinned_memory import CHUNK_BYTES, Chunks, PinnedMemory
from serve_app.models.weights.streaming import StreamCounters, Streaming, streamed_blocks
from serve_app.models.weights.upload import ALIGNED, Copies, copies_of

_log = log.get("models")

MB = 1024**2


@dataclass(frozen=True, slots=True, eq=False)
class _Kept:
    """A part whose tensors are in host memory, which takes so many bytes beside those of blocks that stream."""

    loaded: Loaded
    nbytes: int


class HostWeights:
    """The parts of one card. budget_bytes: of pinned memory, 0 for none. copies: the card's, if it has any by then.

    Any thread may call it; what it does with one part it does alone.
    """

    def __init__(
        self,
        device: torch.device,
        budget_bytes: int,
        copies: Copies | None = None,
        chunk_bytes: int = CHUNK_BYTES,
    ) -> None:
        self.hits = self.misses = 0
        """How many of the parts that were asked for were here."""
        self.streamed = StreamCounters()
        self._device = device
        self._budget_bytes = budget_bytes
        self._copies = copies
        self._chunk_bytes = chunk_bytes
        self._kept: dict[Hashable, _Kept] = {}
        self._streams: WeakSet[PinnedMemory] = WeakSet()
        self._lock = Lock()

    @property
    def nbytes(self) -> int:
        """How much pinned memory is taken."""
        kept = sum(kept.nbytes for kept in [*self._kept.values()])
        return kept + sum(memory.nbytes for memory in [*self._streams])

    def stream(self, room_bytes: int, network: nn.Module, dtype: torch.dtype | None, name: str) -> Streaming:
        """Take blocks of a network from its files, so that it takes no more than so many bytes of the card.

        dtype: that it is to run in, None: as it is. name: what errors call it. Errors: DeviceMemoryError where the
        host has not the memory.
        """
        blocks = streamed_blocks(network, dtype, room_bytes)
        memory = self._memory_for(sum(block.nbytes for block in blocks), room_bytes, name)
        _log.info("%s streams: blocks=%d host_mb=%d", name, len(blocks), memory.nbytes >> 20)
        copies = self._copies or copies_of(self._device)
        return Streaming(network, blocks, dtype, memory, self._device, copies, self.streamed)

    def _memory_for(self, nbytes: int, room_bytes: int, name: str) -> PinnedMemory:
        memory = PinnedMemory(nbytes, self._chunk_bytes)
        lacks = (
            f"{name} does not fit the {room_bytes // MB:,} MB that it may take of this card, and the rest streams from "
            f"{memory.nbytes // MB:,} MB of pinned host memory"
        )
        with self._lock:
            self._let_go(memory.nbytes)
            left = self._budget_bytes - self.nbytes
            if memory.nbytes > left:
                raise DeviceMemoryError(
                    f"{lacks}, of which this replica has {self._budget_bytes // MB:,} MB, {left // MB:,} of them free: "
                    "raise `host_bytes` of its pool, or `memory_bytes`; or `weights_bytes`, for more of the card"
                )
            try:
                memory.allocate()
            except RuntimeError as error:
                raise DeviceMemoryError(f"{lacks}, which this host has not got: {error}") from None
            self._streams.add(memory)
        return memory

    def _let_go(self, nbytes: int) -> None:
        """Have what was evicted longest ago go until there is room for so many bytes more, or nothing is left."""
        while self._kept and self.nbytes + nbytes > self._budget_bytes:
            gone = self._kept.pop(next(iter(self._kept)))
            _log.info("let go of %s in host memory: mb=%d", gone.loaded.name, gone.nbytes >> 20)
            streams = gone.loaded.streaming is not None
            del gone
            if streams:
                # Layers and what brings their weights hold each other.
                gc.collect()

    def keep(self, loaded: Loaded) -> None:
        """Take a part that nobody uses off the card. What is kept no longer than others goes if it has no room."""
        network, streaming = loaded.module, loaded.streaming
        if not self._budget_bytes or not isinstance(network, nn.Module) or not _all_moves(network, self._device):
            return
        with self._lock:
            remove_slots(network)
            chunks = _Places([_nbytes(tensor) for tensor in weights_of(_resident(loaded))], self._chunk_bytes)
            nbytes = chunks.nbytes
            if nbytes + (0 if streaming is None else streaming.memory.nbytes) > self._budget_bytes:
                return
            self._let_go(nbytes)
            if self.nbytes + nbytes > self._budget_bytes:
                return
            try:
                chunks.allocate()
            except RuntimeError as error:
                _log.warning("%s could not be kept in host memory: error=%s", loaded.name, repr(error))
                return
            if streaming is not None:
                streaming.leave()
            self._move(_resident(loaded), chunks.place, torch.device("cpu"))
            self._kept[loaded.key] = _Kept(loaded, nbytes)

    def take(self, key: Hashable) -> Loaded | None:
        """Return a part on the card that is kept here, and no longer is; None if there is none.

        Errors: torch.OutOfMemoryError; the part is gone then.
        """
        if not self._budget_bytes:
            return None
        with self._lock:
            kept = self._kept.pop(key, None)
            if kept is None:
                self.misses += 1
                return None
            self._move(_resident(kept.loaded), self._on_card, self._device)
            if kept.loaded.streaming is not None:
                kept.loaded.streaming.allocate_slots()
            self.hits += 1
            return kept.loaded

    def _on_card(self, tensor: Tensor) -> Tensor:
        return torch.empty(tensor.shape, dtype=tensor.dtype, device=self._device)

    def _move(self, layers: Iterable[nn.Module], place: Callable[[Tensor], Tensor], device: torch.device) -> None:
        """Copy the weights of layers to where each has its place, and wait for it alone."""
        if self._copies is None:
            self._copies = copies_of(self._device)
        copies = self._copies
        pairs: list[tuple[Tensor, Tensor]] = []

        def send(tensor: Tensor, _: torch.dtype | None = None) -> Tensor:
            pairs.append((place(tensor), tensor))
            return pairs[-1][0]

        move_weights(layers, send, device)
        # Memory of the card is of the pool that forwards take theirs from, and may have been used until it was taken.
        copies.follow()
        try:
            with copies.asked():
                for target, source in pairs:
                    target.copy_(source, non_blocking=True)
        finally:
            copies.mark()()


def _resident(loaded: Loaded) -> Iterable[nn.Module]:
    """Return the layers of a network whose weights are on the card while it is."""
    network: nn.Module = loaded.module
    return network.modules() if loaded.streaming is None else loaded.streaming.resident


def _all_moves(network: nn.Module, device: torch.device) -> bool:
    """Whether a network has nothing on a device but its weights."""
    layers = (layer for layer in network.modules() if not isinstance(layer, QuantizedLinear))
    others = (other for layer in layers for other in [*vars(layer).values(), *layer._buffers.values()])
    return not any(isinstance(other, Tensor) and other.device.type == device.type for other in others)


class _Places(Chunks):
    """Places for tensors of so many bytes, which are asked for in that order, in chunks of pinned memory."""

    def __init__(self, sizes: Sequence[int], chunk_bytes: int) -> None:
        used: list[int] = []
        places: dict[int, tuple[int, int]] = {}
        # The largest first: small ones then fill what those leave.
        for number in sorted(range(len(sizes)), key=lambda number: -sizes[number]):
            fits = (chunk for chunk, taken in enumerate(used) if taken + sizes[number] <= chunk_bytes)
            if (chunk := next(fits, len(used))) == len(used):
                used.append(0)
            places[number] = chunk, used[chunk]
            used[chunk] += -(-sizes[number] // ALIGNED) * ALIGNED
        super().__init__(used)
        self._places = deque(places[number] for number in range(len(sizes)))

    def place(self, tensor: Tensor) -> Tensor:
        """Return the memory for the next tensor."""
        chunk, at = self._places.popleft()
        return self._chunks[chunk][at : at + _nbytes(tensor)].view(tensor.dtype).view(tensor.shape)


def _nbytes(tensor: Tensor) -> int:
    return tensor.numel() * tensor.dtype.itemsize
