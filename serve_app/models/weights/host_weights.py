"""Weights in pinned host memory: networks evicted from a GPU, and blocks that stream to it during forwards.

One byte budget covers both; blocks that have no room in it stay in their files. An evicted network returns by copies
instead of from its files; the least recently evicted are dropped first, also to make room for streamed blocks. While
evicted, a network's tensors are views of chunks of pinned memory. LoRA sets made on it are dropped, with the hooks by
which layers add them.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Hashable, Iterable, Sequence
from dataclasses import dataclass
from threading import Lock

import torch
from torch import Tensor, nn

from serve_app import log
from serve_app.models.kernels.packing import move_weights, weights_of
from serve_app.models.lora.slots import remove_slots
from serve_app.models.quantization.quantized_linear import QuantizedLinear
from serve_app.models.weights.deallocation import free_tensors, tensors_of
from serve_app.models.weights.loading import Loaded
from serve_app.models.weights.pinned_memory import CHUNK_BYTES, Chunks, PinnedMemory
from serve_app.models.weights.streaming import StreamCounters, Streaming, streamed_blocks
from serve_app.models.weights.upload import ALIGNED, Copies, copies_of

_log = log.get("models")


@dataclass(frozen=True, slots=True, eq=False)
class _Kept:
    """An evicted part with its tensors in host memory. nbytes: without blocks that stream."""

    loaded: Loaded
    nbytes: int


class HostWeights:
    """Evicted parts of one GPU. Thread-safe; work on one part is exclusive.

    budget_bytes: of pinned memory, 0 for none. copies: the GPU's copy stream, if it has one.
    """

    def __init__(
        self,
        device: torch.device,
        budget_bytes: int,
        copies: Copies | None = None,
        chunk_bytes: int = CHUNK_BYTES,
    ) -> None:
        self.hits = self.misses = 0
        """How many requested parts were found here."""
        self.streamed = StreamCounters()
        self._device = device
        self._budget_bytes = budget_bytes
        self._copies = copies
        self._chunk_bytes = chunk_bytes
        self._kept: dict[Hashable, _Kept] = {}
        self._streams: list[PinnedMemory] = []
        self._lock = Lock()

    @property
    def nbytes(self) -> int:
        """Bytes of pinned memory in use."""
        kept = sum(kept.nbytes for kept in [*self._kept.values()])
        return kept + sum(memory.nbytes for memory in [*self._streams])

    def stream(self, room_bytes: int, network: nn.Module, dtype: torch.dtype | None, name: str) -> Streaming:
        """Have blocks of a network stream, so that it takes at most `room_bytes` on the GPU.

        As many as there is room for move from its files to pinned memory; the others are read as they are needed.
        dtype: to run in, None: as stored. name: of the part, for the log.
        """
        blocks = streamed_blocks(network, dtype, room_bytes)
        memory = self._memory_for(sum(block.nbytes for block in blocks), name)
        _log.info("%s streams: blocks=%d pinned_mb=%d", name, len(blocks), memory.nbytes >> 20)
        copies = self._copies or copies_of(self._device)
        try:
            return Streaming(network, blocks, dtype, memory, self._device, copies, self.streamed)
        except BaseException:
            memory.close()
            raise

    def _memory_for(self, nbytes: int, name: str) -> PinnedMemory:
        """Return pinned memory for the first of `nbytes`: all of them, or whole chunks within the budget."""
        memory = PinnedMemory(nbytes, self._chunk_bytes)
        with self._lock:
            self._let_go(memory.nbytes)
            if memory.nbytes > (left := self._budget_bytes - self.nbytes):
                memory = PinnedMemory(max(0, left) // self._chunk_bytes * self._chunk_bytes, self._chunk_bytes)
            try:
                memory.allocate()
            except RuntimeError as error:
                _log.warning("%s streams from its files: this host pins too little: error=%s", name, repr(error))
                memory.close()
                memory = PinnedMemory(0, self._chunk_bytes)
            self._streams = [other for other in self._streams if other.nbytes] + [memory]
        return memory

    def _let_go(self, nbytes: int) -> None:
        """Drop the least recently evicted parts until `nbytes` more fit, or none is left."""
        while self._kept and self.nbytes + nbytes > self._budget_bytes:
            gone = self._kept.pop(next(iter(self._kept)))
            _log.info("let go of %s in host memory: mb=%d", gone.loaded.name, gone.nbytes >> 20)
            gone.loaded.close()

    def keep(self, loaded: Loaded) -> bool:
        """Take a part that nobody uses off the card, and free its memory there; False if there is no room for it.

        What was kept before makes way for it.
        """
        network, streaming = loaded.module, loaded.streaming
        if not self._budget_bytes or not isinstance(network, nn.Module) or not _all_moves(network, self._device):
            return False
        with self._lock:
            remove_slots(network)
            chunks = _Places([_nbytes(tensor) for tensor in weights_of(_resident(loaded))], self._chunk_bytes)
            nbytes = chunks.nbytes
            if nbytes + (0 if streaming is None else streaming.memory.nbytes) > self._budget_bytes:
                return False
            self._let_go(nbytes)
            if self.nbytes + nbytes > self._budget_bytes:
                return False
            try:
                chunks.allocate()
            except RuntimeError as error:
                _log.warning("%s could not be kept in host memory: error=%s", loaded.name, repr(error))
                return False
            if streaming is not None:
                streaming.leave()
            on_card = tensors_of(_resident(loaded))
            self._move(_resident(loaded), chunks.place, torch.device("cpu"))
            free_tensors(on_card)
            self._kept[loaded.key] = _Kept(loaded, nbytes)
            return True

    def take(self, key: Hashable) -> Loaded | None:
        """Move a part back to the GPU and return it; None if it is not here.

        Errors: torch.OutOfMemoryError; the part is dropped then.
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
        """Copy layers' weights to their places, and wait for that copy alone."""
        if self._copies is None:
            self._copies = copies_of(self._device)
        copies = self._copies
        pairs: list[tuple[Tensor, Tensor]] = []

        def send(tensor: Tensor, _: torch.dtype | None = None) -> Tensor:
            pairs.append((place(tensor), tensor))
            return pairs[-1][0]

        move_weights(layers, send, device)
        # GPU memory comes from the pool of forwards, and may have been in use until its allocation.
        copies.follow()
        try:
            with copies.enqueueing():
                for target, source in pairs:
                    target.copy_(source, non_blocking=True)
        finally:
            copies.mark()()


def _resident(loaded: Loaded) -> Iterable[nn.Module]:
    """Return the layers of a network whose weights are on the GPU while it is resident."""
    network: nn.Module = loaded.module
    return network.modules() if loaded.streaming is None else loaded.streaming.resident


def _all_moves(network: nn.Module, device: torch.device) -> bool:
    """Whether a network has nothing on a device but its weights."""
    layers = (layer for layer in network.modules() if not isinstance(layer, QuantizedLinear))
    others = (other for layer in layers for other in [*vars(layer).values(), *layer._buffers.values()])
    return not any(isinstance(other, Tensor) and other.device.type == device.type for other in others)


class _Places(Chunks):
    """Places for tensors of the given sizes, requested in that order, in chunks of pinned memory."""

    def __init__(self, sizes: Sequence[int], chunk_bytes: int) -> None:
        used: list[int] = []
        places: dict[int, tuple[int, int]] = {}
        # The largest first: small ones then fill the gaps.
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
