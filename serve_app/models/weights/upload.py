"""The way of weights onto a GPU during other work: through pinned memory, on a copy stream (`uploading`).

Whatever is loaded takes it: models from files and from host memory, LoRAs, ControlNets, upscalers, merges. A copy from
pageable memory would make the host wait for all forwards enqueued, once a tensor.

Tensors in pinned memory are copied from there. All others go through a ring of pinned buffers. Several threads fill the
buffers, as one alone reads no faster than a core copies. Each buffer is sent by one asynchronous copy, and the device
scatters tensors to their places and dtypes. Weights share the memory pool of forwards; so copies wait for the work that
was enqueued before their memory was allocated.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from threading import Lock
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor

from serve_app.models.files.file_tensor import FileTensor, held

BUFFER_BYTES = 32 * 2**20
BUFFERS = 4
"""Buffers of the ring; each is filled by a thread of its own."""
ALIGNED = 16
"""Alignment of every tensor in a buffer, in bytes, as its dtype may require."""
PENDING_BYTES = 2**30
"""Most bytes of host memory that tensors take which wait to be sent, but for those in files."""


class Copies(Protocol):
    """A copy stream of a device."""

    def follow(self) -> None:
        """Make later copies wait for all work enqueued so far."""
        ...

    def lead(self) -> None:
        """Make this thread's later work wait for all copies enqueued so far."""
        ...

    def keep(self, tensor: Tensor) -> None:
        """Keep the memory of a tensor made elsewhere until copies are done with it."""
        ...

    def enqueueing(self) -> AbstractContextManager[Any]:
        """Return a context in which work is enqueued on this stream."""
        ...

    def mark(self) -> Callable[[], object]:
        """Return a function that waits for all copies enqueued so far."""
        ...


class HostCopies:
    """Copies of a device that works synchronously, such as a CPU."""

    def follow(self) -> None:
        """Do nothing."""

    def lead(self) -> None:
        """Do nothing."""

    def keep(self, tensor: Tensor) -> None:
        """Do nothing."""

    def enqueueing(self) -> AbstractContextManager[Any]:
        """Return a null context."""
        return nullcontext()

    def mark(self) -> Callable[[], object]:
        """Return a function that does nothing."""
        return lambda: None


class CudaCopies:
    """Copies of a GPU, on a CUDA stream."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._stream: Any = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]

    def follow(self) -> None:
        """Make the stream wait for this thread's stream, which is also the engine's."""
        self._stream.wait_stream(torch.cuda.current_stream(self._device))

    def lead(self) -> None:
        """Make this thread's stream wait for the copy stream."""
        torch.cuda.current_stream(self._device).wait_stream(self._stream)

    def keep(self, tensor: Tensor) -> None:
        """Record the stream with the allocator."""
        tensor.record_stream(self._stream)

    def enqueueing(self) -> AbstractContextManager[Any]:
        """Return the stream's context."""
        context: AbstractContextManager[Any] = torch.cuda.stream(self._stream)
        return context

    def mark(self) -> Callable[[], object]:
        """Return a wait for an event, which releases the GIL."""
        event: Any = torch.cuda.Event(blocking=True)  # type: ignore[no-untyped-call]
        event.record(self._stream)
        wait: Callable[[], object] = event.synchronize
        return wait


def copies_of(device: torch.device) -> Copies:
    """Return the copies of a device."""
    return CudaCopies(device) if device.type == "cuda" else HostCopies()


class _Piece(NamedTuple):
    """Consecutive numbers of a tensor, and their destination. at: their offset in the buffer in bytes."""

    source: Tensor
    target: Tensor
    at: int


@dataclass(slots=True)
class _Buffer:
    """memory: uint8, pinned. free: waits until the device has read it."""

    memory: Tensor
    free: Callable[[], object]


class SendTensor(Protocol):
    """Moves a tensor to a device, in a dtype; None: its own."""

    def __call__(self, tensor: Tensor, dtype: torch.dtype | None = None, /) -> Tensor: ...


@contextmanager
def uploading(device: torch.device, ring: Ring | None) -> Iterator[SendTensor]:
    """Yield a function that returns tensors on a device, whose numbers are valid once the context ends.

    ring: of a GPU; without one each tensor is moved at once. Several threads may upload.
    """
    if ring is None:
        yield lambda tensor, dtype=None: held(tensor.to(device, dtype or tensor.dtype))
        return
    upload = _Upload(ring)
    yield upload.send
    upload.finish()


class _Upload:
    """Tensors on their way to a GPU."""

    def __init__(self, ring: Ring) -> None:
        self._ring = ring
        self._pairs: list[tuple[Tensor, Tensor]] = []
        self._pending_bytes = 0

    def send(self, tensor: Tensor, dtype: torch.dtype | None = None) -> Tensor:
        """Return the tensor on the device; its numbers are valid after `finish`. dtype: None: unchanged."""
        if tensor.device.type != "cpu":
            return tensor.to(self._ring.device, dtype or tensor.dtype)
        if not isinstance(tensor, FileTensor):
            self._pending_bytes += tensor.numel() * tensor.dtype.itemsize
            if self._pending_bytes > PENDING_BYTES:
                self.finish()
        target = torch.empty(tensor.shape, dtype=dtype or tensor.dtype, device=self._ring.device)
        turned = tensor.ndim == 2 and not tensor.is_contiguous() and tensor.mT.is_contiguous()
        if turned and tensor.shape[0] * tensor.dtype.itemsize <= self._ring.buffer_bytes:
            # Read in memory order, and transposed by the device.
            self._pairs.append((tensor.mT, target.mT))
        else:
            self._pairs.append((tensor, target))
        return target

    def finish(self) -> None:
        """Copy all tensors sent, and wait for that."""
        pairs, self._pairs, self._pending_bytes = self._pairs, [], 0
        self._ring.copy(pairs)


class Ring:
    """The pinned buffers for all uploads of a process to one device."""

    def __init__(self, device: torch.device, copies: Copies | None = None, buffer_bytes: int = BUFFER_BYTES) -> None:
        self.device = device
        self.buffer_bytes = buffer_bytes
        self._copies = copies
        self._buffers: list[_Buffer] = []
        self.landing: Tensor | None = None
        """The memory of the device that buffers are sent to, from the first copy on."""
        self._lock = Lock()

    def copy(self, pairs: Sequence[tuple[Tensor, Tensor]]) -> None:
        """Copy tensors to their destinations on the device, and wait for that."""
        if pairs:
            with self._lock:
                self._copy(pairs)

    def _copy(self, pairs: Sequence[tuple[Tensor, Tensor]]) -> None:
        if self._copies is None:
            self._copies = copies_of(self.device)
        copies = self._copies
        copies.follow()
        try:
            with copies.enqueueing():
                for source, target in pairs:
                    if _is_direct(source, target):
                        target.copy_(source, non_blocking=True)
            if through := [pair for pair in pairs if not _is_direct(*pair)]:
                self._copy_through(copies, self._landed(copies), through)
        finally:
            # Until then the device may still write to destinations that are freed when this fails.
            copies.mark()()

    def _landed(self, copies: Copies) -> Tensor:
        """Return the memory of the device that buffers are sent to; on first use it and the buffers are allocated."""
        if self.landing is None:
            pinned = self.device.type == "cuda"
            memory = [torch.empty(self.buffer_bytes, dtype=torch.uint8, pin_memory=pinned) for _ in range(BUFFERS)]
            self._buffers = [_Buffer(buffer, lambda: None) for buffer in memory]
            with copies.enqueueing():
                self.landing = torch.empty(self.buffer_bytes, dtype=torch.uint8, device=self.device)
        return self.landing

    def _copy_through(self, copies: Copies, landing: Tensor, pairs: Sequence[tuple[Tensor, Tensor]]) -> None:
        filled: deque[tuple[Future[int], _Buffer, list[_Piece]]] = deque()
        with ThreadPoolExecutor(BUFFERS, "reads") as readers:
            for number, pieces in enumerate(_loads(pairs, self.buffer_bytes)):
                if len(filled) == BUFFERS:
                    self._send(copies, landing, *filled.popleft())
                buffer = self._buffers[number % BUFFERS]
                filled.append((readers.submit(_fill, buffer, pieces), buffer, pieces))
            while filled:
                self._send(copies, landing, *filled.popleft())

    def _send(
        self, copies: Copies, landing: Tensor, filled: Future[int], buffer: _Buffer, pieces: Sequence[_Piece]
    ) -> None:
        used = filled.result()
        with copies.enqueueing():
            landed = landing[:used].copy_(buffer.memory[:used], non_blocking=True)
            buffer.free = copies.mark()
            for source, target, at in pieces:
                target.copy_(_view(landed, at, source))


def _is_direct(source: Tensor, target: Tensor) -> bool:
    """Whether a tensor is copied from where it lies: in pinned memory, as it will be."""
    alike = source.dtype == target.dtype and source.is_contiguous()
    return alike and not isinstance(source, FileTensor) and source.is_pinned()


def _loads(pairs: Sequence[tuple[Tensor, Tensor]], room: int) -> Iterator[list[_Piece]]:
    """Yield the contents of each buffer of `room` bytes: many small tensors, or some rows of a large one."""
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
    """Yield rows of a tensor, as many as fit into `room` bytes, and their destinations."""
    if not source.ndim:
        source, target = source.view(1), target.view(1)
    while (row := source[:1].numel() * source.dtype.itemsize) > room:
        source, target = source.flatten(0, 1), target.flatten(0, 1)
    step = max(1, room // max(1, row))
    yield from zip(torch.split(source, step), torch.split(target, step), strict=True)


def _fill(buffer: _Buffer, pieces: Sequence[_Piece]) -> int:
    """Read tensors into a buffer once the device has read its previous content; return the number of bytes."""
    buffer.free()
    with torch.no_grad():
        for source, _, at in pieces:
            _view(buffer.memory, at, source).copy_(source)
    last = pieces[-1]
    return last.at + last.source.numel() * last.source.dtype.itemsize


def _view(memory: Tensor, at: int, like: Tensor) -> Tensor:
    """Return a range of memory as a tensor shaped and typed like another."""
    return memory[at : at + like.numel() * like.dtype.itemsize].view(like.dtype).view(like.shape)
