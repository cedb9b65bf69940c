"""Weights from files onto a GPU, while it does other work: through a ring of pinned buffers, on a stream of copies.

Several threads fill the buffers, since one alone reads no faster than a core copies. Each is sent as it is in one copy
that the host does not wait for, and the device puts every tensor in its place, in its dtype. The memory of weights is
of the pool that forwards take theirs from; so copies follow what the device was asked for before they were made room.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor

BUFFER_BYTES = 32 * 2**20
BUFFERS = 4
"""Of the ring, each of which a thread of its own fills."""
ALIGNED = 16
"""Every tensor begins at a multiple of so many bytes in a buffer, as its dtype may ask for."""


class Copies(Protocol):
    """What a device is asked for beside its other work, in an order of its own."""

    def follow(self) -> None:
        """Have what comes next begin after all else that the device has been asked for by now."""
        ...

    def lead(self) -> None:
        """Have what this thread asks the device for next begin after all of these by now."""
        ...

    def keep(self, tensor: Tensor) -> None:
        """Have a tensor made elsewhere keep its memory, once it goes, until these are done with it."""
        ...

    def asked(self) -> AbstractContextManager[Any]:
        """Have what is asked for inside be of these."""
        ...

    def mark(self) -> Callable[[], object]:
        """Return what waits for all that was asked for inside by now."""
        ...


class HostCopies:
    """Of a device that does what it is asked for at once, as a CPU does."""

    def follow(self) -> None:
        """Nothing is under way."""

    def lead(self) -> None:
        """Nor is any of these."""

    def keep(self, tensor: Tensor) -> None:
        """None of these uses it any more."""

    def asked(self) -> AbstractContextManager[Any]:
        """Return a context without a meaning."""
        return nullcontext()

    def mark(self) -> Callable[[], object]:
        """Return what has nothing to wait for."""
        return lambda: None


class CudaCopies:
    """Of a GPU: a stream."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._stream: Any = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]

    def follow(self) -> None:
        """Have the stream wait for that of this thread, which the engine's is too."""
        self._stream.wait_stream(torch.cuda.current_stream(self._device))

    def lead(self) -> None:
        """Have that of this thread wait for the stream."""
        torch.cuda.current_stream(self._device).wait_stream(self._stream)

    def keep(self, tensor: Tensor) -> None:
        """Record the stream with the allocator."""
        tensor.record_stream(self._stream)

    def asked(self) -> AbstractContextManager[Any]:
        """Return the context in which the stream is asked."""
        context: AbstractContextManager[Any] = torch.cuda.stream(self._stream)
        return context

    def mark(self) -> Callable[[], object]:
        """Return the wait for an event, which lets other threads run."""
        event: Any = torch.cuda.Event(blocking=True)  # type: ignore[no-untyped-call]
        event.record(self._stream)
        wait: Callable[[], object] = event.synchronize
        return wait


def copies_of(device: torch.device) -> Copies:
    """Return the copies of a device."""
    return CudaCopies(device) if device.type == "cuda" else HostCopies()


class _Piece(NamedTuple):
    """Some of a tensor's numbers, in order, and where they go. at: the byte of its buffer at which they begin."""

    source: Tensor
    target: Tensor
    at: int


@dataclass(slots=True)
class _Buffer:
    """memory: uint8, pinned. free: waits until the device has read it."""

    memory: Tensor
    free: Callable[[], object]


class Upload:
    """Tensors on their way to a device. Several threads may make uploads; one at a time finishes."""

    def __init__(self, ring: Ring) -> None:
        self._ring = ring
        self._pairs: list[tuple[Tensor, Tensor]] = []

    def send(self, tensor: Tensor, dtype: torch.dtype | None = None) -> Tensor:
        """Return the tensor on the device; its numbers are there once `finish` has returned. dtype: None as it is."""
        if tensor.device.type != "cpu":
            return tensor.to(self._ring.device, dtype or tensor.dtype)
        target = torch.empty(tensor.shape, dtype=dtype or tensor.dtype, device=self._ring.device)
        turned = tensor.ndim == 2 and not tensor.is_contiguous() and tensor.mT.is_contiguous()
        if turned and tensor.shape[0] * tensor.dtype.itemsize <= self._ring.buffer_bytes:
            # Read as it lies, and turned by the device.
            self._pairs.append((tensor.mT, target.mT))
        else:
            self._pairs.append((tensor, target))
        return target

    def finish(self) -> None:
        """Copy all that was sent, and wait for it."""
        pairs, self._pairs = self._pairs, []
        self._ring.copy(pairs)


class Ring:
    """The buffers through which everything goes that a process loads onto one device."""

    def __init__(self, device: torch.device, copies: Copies | None = None, buffer_bytes: int = BUFFER_BYTES) -> None:
        self.device = device
        self.buffer_bytes = buffer_bytes
        self._copies = copies
        self._buffers: list[_Buffer] = []
        self._landing: Tensor | None = None

    def copy(self, pairs: Sequence[tuple[Tensor, Tensor]]) -> None:
        """Copy tensors into those of the device, and wait for it."""
        if not pairs:
            return
        if self._copies is None:
            self._copies = copies_of(self.device)
        copies = self._copies
        if self._landing is None:
            pinned = self.device.type == "cuda"
            memory = [torch.empty(self.buffer_bytes, dtype=torch.uint8, pin_memory=pinned) for _ in range(BUFFERS)]
            self._buffers = [_Buffer(buffer, lambda: None) for buffer in memory]
            with copies.asked():
                self._landing = torch.empty(self.buffer_bytes, dtype=torch.uint8, device=self.device)
        copies.follow()
        filled: deque[tuple[Future[int], _Buffer, list[_Piece]]] = deque()
        try:
            with ThreadPoolExecutor(BUFFERS, "reads") as readers:
                for number, pieces in enumerate(_loads(pairs, self.buffer_bytes)):
                    if len(filled) == BUFFERS:
                        self._send(copies, self._landing, *filled.popleft())
                    buffer = self._buffers[number % BUFFERS]
                    filled.append((readers.submit(_fill, buffer, pieces), buffer, pieces))
                while filled:
                    self._send(copies, self._landing, *filled.popleft())
        finally:
            # Until then the device may write to what is let go of where this fails.
            copies.mark()()

    def _send(
        self, copies: Copies, landing: Tensor, filled: Future[int], buffer: _Buffer, pieces: Sequence[_Piece]
    ) -> None:
        used = filled.result()
        with copies.asked():
            landed = landing[:used].copy_(buffer.memory[:used], non_blocking=True)
            buffer.free = copies.mark()
            for source, target, at in pieces:
                target.copy_(_view(landed, at, source))


def _loads(pairs: Sequence[tuple[Tensor, Tensor]], room: int) -> Iterator[list[_Piece]]:
    """Yield what goes into each buffer of so many bytes: many small tensors, or some rows of a large one."""
    pieces: list[_Piece] = []
    at = 0
    for source, target in pairs:
        for part, there in _parts(source, target, room):
            nbytes = part.numel() * part.dtype.itemsize
            if pieces and at + nbytes > room:
                yield pieces
                pieces, at = [], 0
            pieces.append(_Piece(part, there, at))
            at += -(-nbytes // ALIGNED) * ALIGNED
    if pieces:
        yield pieces


def _parts(source: Tensor, target: Tensor, room: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield rows of a tensor, as many as fit into so many bytes, and where they go."""
    if not source.ndim:
        source, target = source.view(1), target.view(1)
    while (row := source[:1].numel() * source.dtype.itemsize) > room:
        source, target = source.flatten(0, 1), target.flatten(0, 1)
    step = max(1, room // max(1, row))
    yield from zip(torch.split(source, step), torch.split(target, step), strict=True)


def _fill(buffer: _Buffer, pieces: Sequence[_Piece]) -> int:
    """Read tensors into a buffer, once the device has read what was in it; return how many bytes that took."""
    buffer.free()
    with torch.no_grad():
        for source, _, at in pieces:
            _view(buffer.memory, at, source).copy_(source)
    last = pieces[-1]
    return last.at + last.source.numel() * last.source.dtype.itemsize


def _view(memory: Tensor, at: int, like: Tensor) -> Tensor:
    """Return a part of memory as a tensor of the shape and dtype of another."""
    return memory[at : at + like.numel() * like.dtype.itemsize].view(like.dtype).view(like.shape)
