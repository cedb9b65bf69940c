"""Weights that were evicted from a card, in pinned host memory: they come back by copies instead of from their files.

Whole parts, least recently evicted out first, within a bound of bytes. A part is a network whose tensors are parts of
chunks of pinned memory meanwhile. What was made on it goes: sets of LoRAs, and the hooks by which layers add them.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from threading import Lock

import torch
from torch import Tensor, nn

from serve_app import log
from serve_app.models.kept import KeptLinear
from serve_app.models.loading import Loaded
from serve_app.models.lora_slots import remove_slots
from serve_app.models.packing import move_weights, weights_of
from serve_app.models.upload import ALIGNED, Copies, copies_of

_log = log.get("models")

CHUNK_BYTES = 2**28
"""torch takes pinned memory in powers of two; tensors share chunks, so that little of it is lost."""


@dataclass(frozen=True, slots=True, eq=False)
class _Kept:
    """A part whose tensors are in host memory, which takes so many bytes."""

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
        self._device = device
        self._budget_bytes = budget_bytes
        self._copies = copies
        self._chunk_bytes = chunk_bytes
        self._kept: dict[Hashable, _Kept] = {}
        self._lock = Lock()

    @property
    def nbytes(self) -> int:
        """How much pinned memory is taken."""
        return sum(kept.nbytes for kept in [*self._kept.values()])

    def keep(self, loaded: Loaded) -> None:
        """Take a part that nobody uses off the card. What is kept no longer than others goes if it has no room."""
        network = loaded.module
        if not self._budget_bytes or not isinstance(network, nn.Module) or not _all_moves(network, self._device):
            return
        with self._lock:
            remove_slots(network)
            chunks = _Chunks([_nbytes(tensor) for tensor in weights_of(network)], self._chunk_bytes)
            nbytes = chunks.nbytes
            if nbytes > self._budget_bytes:
                return
            while self.nbytes + nbytes > self._budget_bytes:
                gone = self._kept.pop(next(iter(self._kept)))
                _log.info("let go of %s in host memory: mb=%d", gone.loaded.name, gone.nbytes >> 20)
                del gone
            try:
                chunks.allocate()
            except RuntimeError as error:
                _log.warning("%s could not be kept in host memory: error=%s", loaded.name, repr(error))
                return
            self._move(network, chunks.place, torch.device("cpu"))
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
            self._move(kept.loaded.module, self._on_card, self._device)
            self.hits += 1
            return kept.loaded

    def _on_card(self, tensor: Tensor) -> Tensor:
        return torch.empty(tensor.shape, dtype=tensor.dtype, device=self._device)

    def _move(self, network: nn.Module, place: Callable[[Tensor], Tensor], device: torch.device) -> None:
        """Copy a network's weights to where each has its place, and wait for it alone."""
        if self._copies is None:
            self._copies = copies_of(self._device)
        copies = self._copies
        pairs: list[tuple[Tensor, Tensor]] = []

        def send(tensor: Tensor, _: torch.dtype | None = None) -> Tensor:
            pairs.append((place(tensor), tensor))
            return pairs[-1][0]

        move_weights(network, send, device)
        # Memory of the card is of the pool that forwards take theirs from, and may have been used until it was taken.
        copies.follow()
        try:
            with copies.asked():
                for target, source in pairs:
                    target.copy_(source, non_blocking=True)
        finally:
            copies.mark()()


def _all_moves(network: nn.Module, device: torch.device) -> bool:
    """Whether a network has nothing on a device but its weights."""
    layers = (layer for layer in network.modules() if not isinstance(layer, KeptLinear))
    others = (other for layer in layers for other in [*vars(layer).values(), *layer._buffers.values()])
    return not any(isinstance(other, Tensor) and other.device.type == device.type for other in others)


class _Chunks:
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
        self.sizes = [1 << max(0, taken - 1).bit_length() for taken in used]
        """Of each chunk."""
        self._places = deque(places[number] for number in range(len(sizes)))
        self._memory: list[Tensor] = []

    @property
    def nbytes(self) -> int:
        """How much memory the chunks take."""
        return sum(self.sizes)

    def allocate(self) -> None:
        """Take the memory. Errors: RuntimeError where the host has not as much to pin."""
        self._memory = [torch.empty(size, dtype=torch.uint8, pin_memory=True) for size in self.sizes]

    def place(self, tensor: Tensor) -> Tensor:
        """Return the memory for the next tensor."""
        chunk, at = self._places.popleft()
        return self._memory[chunk][at : at + _nbytes(tensor)].view(tensor.dtype).view(tensor.shape)


def _nbytes(tensor: Tensor) -> int:
    return tensor.numel() * tensor.dtype.itemsize
