"""Weights in pinned host memory: copies of networks evicted from a GPU, and blocks that stream to it during forwards.

One byte budget covers both; blocks that have no room in it stay in their files. Which copies stay is decided by
`host_cache`. An evicted network returns by copies from here, and from its files as far as it is not here. Its copy
stays meanwhile, as weights do not change: the next eviction frees the GPU's memory at once. LoRA sets made on it are
dropped, with the hooks by which layers add them.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Sequence
from dataclasses import dataclass, field
from threading import Lock

import torch
from torch import Tensor, nn

from serve_app import log
from serve_app.models.kernels.packing import move_weights, weights_of
from serve_app.models.lora.slots import remove_slots
from serve_app.models.quantization.quantized_linear import QuantizedLinear
from serve_app.models.weights.deallocation import free_tensors, tensors_of
from serve_app.models.weights.host_cache import HostCache, HostCopy
from serve_app.models.weights.loading import Loaded
from serve_app.models.weights.pinned_memory import CHUNK_BYTES, Layout, PinnedMemory, pinned
from serve_app.models.weights.sharded_blocks import ShardedBlocks
from serve_app.models.weights.streaming import StreamCounters, Streaming, streamed_blocks
from serve_app.models.weights.upload import Copies, Ring, copies_of, uploading
from serve_app.recipe.recipe import Part

_log = log.get("models")


@dataclass(slots=True, eq=False)
class _Part:
    """A part that has a copy. chunks: those of its layout that are there, the first ones.

    evicted: it is not on the GPU; its tensors have no numbers then.
    """

    loaded: Loaded
    layout: Layout
    chunks: list[Tensor] = field(default_factory=list)
    evicted: bool = False

    def source(self, number: int, like: Tensor) -> Tensor:
        """Return a weight as host memory has it, or else its file."""
        if self.layout.chunk(number) < len(self.chunks):
            return self.layout.view(self.chunks, number, like)
        source = self.loaded.source(number)
        assert source is not None, "what no file has is in the chunks that are required"
        return source


class HostWeights:
    """Evicted parts of one GPU. Thread-safe; work on one part is exclusive.

    budget_bytes: of pinned memory, 0 for none. copies: makes a copy stream of the GPU. ring: its upload ring.
    """

    def __init__(
        self,
        device: torch.device,
        budget_bytes: int,
        copies: Callable[[], Copies] | None = None,
        chunk_bytes: int = CHUNK_BYTES,
        ring: Ring | None = None,
    ) -> None:
        self.hits = self.misses = 0
        """How many requested parts were found here."""
        self.copied_bytes = 0
        """How many bytes were copied from the GPU."""
        self.streamed = StreamCounters()
        self._device = device
        self._new_copies = copies or (lambda: copies_of(device))
        # One for all that streams in forwards, one for what streams beside them, one for evictions.
        self._copies: dict[str, Copies] = {}
        self._ring = ring or Ring(device)
        self._chunk_bytes = chunk_bytes
        self._parts: dict[Hashable, _Part] = {}
        self._streams: list[PinnedMemory] = []
        self._cache = HostCache(budget_bytes, self._streamed_bytes, self._shrunk)
        self._lock = Lock()

    @property
    def nbytes(self) -> int:
        """Bytes of pinned memory in use."""
        return self._cache.nbytes

    def _streamed_bytes(self) -> int:
        return sum(memory.nbytes for memory in [*self._streams])

    def _copies_for(self, use: str) -> Copies:
        if (copies := self._copies.get(use)) is None:
            copies = self._copies[use] = self._new_copies()
        return copies

    def stream(
        self, part: Part, room_bytes: int, network: nn.Module, dtype: torch.dtype | None, name: str
    ) -> Streaming:
        """Have blocks of a network stream, so that it takes at most `room_bytes` on the GPU.

        As many as there is room for move from its files to pinned memory; the others are read as they are needed. Each
        kind of part has a copy stream of its own: on one for both, forwards would wait for what texts wait for.
        dtype: to run in, None: as stored. name: of the part, for the log.
        """
        blocks = streamed_blocks(network, dtype, room_bytes)
        memory = self._memory_for(sum(block.nbytes for block in blocks), name)
        _log.info("%s streams: blocks=%d pinned_mb=%d", name, len(blocks), memory.nbytes >> 20)
        try:
            return Streaming(network, blocks, dtype, memory, self._device, self._copies_for(part), self.streamed)
        except BaseException:
            memory.close()
            raise

    def _memory_for(self, nbytes: int, name: str) -> PinnedMemory:
        """Return pinned memory for the first of `nbytes`: all of them, or whole chunks within the budget."""
        memory = PinnedMemory(nbytes, self._chunk_bytes)
        with self._lock:
            self._cache.make_room(memory.nbytes)
            if memory.nbytes > (left := self._cache.budget_bytes - self.nbytes):
                memory = PinnedMemory(max(0, left) // self._chunk_bytes * self._chunk_bytes, self._chunk_bytes)
            try:
                memory.allocate()
            except RuntimeError as error:
                _log.warning("%s streams from its files: this host pins too little: error=%s", name, repr(error))
                memory.close()
                memory = PinnedMemory(0, self._chunk_bytes)
            self._streams = [other for other in self._streams if other.nbytes] + [memory]
        return memory

    def keep(self, loaded: Loaded) -> bool:
        """Take a part that nobody uses off the card, and free its memory there; False if there is no room for it.

        Others make way for it, as far as `host_cache` says. Only what is not here yet is copied.
        """
        with self._lock:
            kept = self._keep(loaded)
            if not kept:
                self._forget(loaded.key)
            return kept

    def _keep(self, loaded: Loaded) -> bool:
        network, streaming = loaded.module, loaded.streaming
        if isinstance(streaming, ShardedBlocks):
            return False
        if not self._cache.budget_bytes or not isinstance(network, nn.Module) or not _all_moves(network, self._device):
            return False
        remove_slots(network)
        layers = [*_resident(loaded)]
        weights = weights_of(layers)
        part = self._parts.get(loaded.key)
        if part is None or part.loaded is not loaded:
            self._forget(loaded.key)
            part = _Part(loaded, self._layout(loaded, weights))
        fixed_bytes = 0 if streaming is None else streaming.memory.nbytes
        copy = self._cache.evict(loaded.key, part.layout.sizes, part.layout.first, fixed_bytes)
        if copy is None or not self._fill(part, copy, weights):
            return False
        if streaming is not None:
            streaming.leave()
        on_card = tensors_of(layers)
        move_weights(layers, _without_numbers, torch.device("cpu"))
        free_tensors(on_card)
        part.evicted = True
        self._parts[loaded.key] = part
        return True

    def _layout(self, loaded: Loaded, weights: Sequence[Tensor]) -> Layout:
        required = [loaded.source(number) is None for number in range(len(weights))]
        return Layout([tensor.numel() * tensor.dtype.itemsize for tensor in weights], required, self._chunk_bytes)

    def _fill(self, part: _Part, copy: HostCopy, weights: Sequence[Tensor]) -> bool:
        """Copy what a part's copy may have and has not yet; return whether that is enough for it to return."""
        here = len(part.chunks)
        try:
            part.chunks += [pinned(size) for size in part.layout.sizes[here : copy.present]]
        except RuntimeError as error:
            _log.warning("%s could not be kept in host memory: error=%s", part.loaded.name, repr(error))
            self._cache.limit(copy, len(part.chunks))
            if copy.key not in self._cache:
                return False
        new = [number for number in range(len(weights)) if here <= part.layout.chunk(number) < len(part.chunks)]
        copies = self._copies_for("eviction")
        copies.follow()
        try:
            with copies.enqueueing():
                for number in new:
                    part.layout.view(part.chunks, number, weights[number]).copy_(weights[number], non_blocking=True)
                    self.copied_bytes += weights[number].numel() * weights[number].dtype.itemsize
        finally:
            copies.mark()()
        return True

    def take(self, key: Hashable) -> Loaded | None:
        """Move a part back to the GPU and return it; None if it is not here.

        Errors: torch.OutOfMemoryError, or ModelFileError where its file was changed; the part is dropped then.
        """
        if not self._cache.budget_bytes:
            return None
        with self._lock:
            part = self._parts.get(key)
            if part is None or not part.evicted:
                self.misses += 1
                return None
            self._cache.take(key)
            try:
                self._return(part)
            except BaseException:
                self._forget(key)
                raise
            self.hits += 1
            return part.loaded

    def _return(self, part: _Part) -> None:
        number = 0
        with uploading(self._device, self._ring) as send:

            def sent(tensor: Tensor, _: torch.dtype | None = None) -> Tensor:
                nonlocal number
                source, number = part.source(number, tensor), number + 1
                return send(source, tensor.dtype)

            move_weights(_resident(part.loaded), sent, self._device)
        if part.loaded.streaming is not None:
            part.loaded.streaming.allocate_slots()
        part.evicted = False

    def _shrunk(self, copy: HostCopy) -> None:
        """Give back the memory of chunks that a copy has lost, and the part if the copy is gone."""
        if (part := self._parts.get(copy.key)) is not None:
            del part.chunks[copy.present :]
            if copy.key not in self._cache:
                _log.info("%s is no longer in host memory", part.loaded.name)
                self._forget(copy.key)

    def _forget(self, key: Hashable) -> None:
        """Drop the copy of a part, and the part if it is not on the GPU."""
        self._cache.forget(key)
        if (part := self._parts.pop(key, None)) is not None and part.evicted:
            part.loaded.close()


def _resident(loaded: Loaded) -> Iterable[nn.Module]:
    """Return the layers of a network whose weights are on the GPU while it is resident."""
    network: nn.Module = loaded.module
    return network.modules() if loaded.streaming is None else loaded.streaming.resident


def _without_numbers(tensor: Tensor, _: torch.dtype | None = None) -> Tensor:
    return torch.empty(tensor.shape, dtype=tensor.dtype, device="meta")


def _all_moves(network: nn.Module, device: torch.device) -> bool:
    """Whether a network has nothing on a device but its weights."""
    layers = (layer for layer in network.modules() if not isinstance(layer, QuantizedLinear))
    others = (other for layer in layers for other in [*vars(layer).values(), *layer._buffers.values()])
    return not any(isinstance(other, Tensor) and other.device.type == device.type for other in others)
