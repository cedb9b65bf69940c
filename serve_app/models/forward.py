"""Runs networks at fixed batch sizes, so that the device can replay a recorded call (a CUDA graph).

Which kernels run, and how they round, depends on the number of rows. Padded to a few batch sizes, forwards repeat
shapes: within a batch bucket a row's bits do not depend on its neighbours, and a recorded call is replayed without the
host launching each kernel. This module knows neither networks nor CUDA: a family makes a `CapturableCall`, and a
`Recorder` knows how its device replays (`cuda_graphs`).
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Hashable, Mapping, MutableMapping, Sequence
from dataclasses import dataclass, field
from threading import RLock
from typing import Any, Protocol, TypeAlias

import torch
from torch import Tensor
from torch.utils.weak import WeakIdKeyDictionary

from serve_app import log

ROW_BUCKETS = (1, 2, 4, 6, 8, 12, 16, 24, 32)
"""Batch sizes that forwards are padded to; larger batches are not padded."""

EAGER = 2
"""How many forwards of a shape run eagerly before it is recorded: libraries choose and prepare kernels in them."""

SHAPES_KEPT = 32
"""How many input shapes are remembered for each network."""

Inputs: TypeAlias = Mapping[Any, Tensor]
"""Input tensors of a call, by the family's own names. Equal names mean equal roles."""

_log = log.get("models")


@dataclass(frozen=True, slots=True, eq=False)
class CapturableCall:
    """A forward with all inputs prepared: only the network's own call is left, which a CUDA graph can capture.

    run: from inputs to outputs, without a synchronisation; it reads nothing else that changes between forwards of its
    variant. variant: equal for calls that run the same kernels; None: never recorded. reads: a further tensor that the
    call reads in place, such as LoRA slots; a recording lives no longer than it.
    """

    inputs: Inputs
    run: Callable[[Inputs], Sequence[Tensor]]
    variant: Hashable | None = ()
    reads: Tensor | None = None


class Recording(Protocol):
    """A recorded call of a device. outputs: the tensors that each replay writes."""

    @property
    def outputs(self) -> Sequence[Tensor]: ...

    def replay(self) -> None:
        """Run the recorded kernels again on what the inputs contain by then."""
        ...

    def reset(self) -> None:
        """Free what it keeps of the device; it cannot be replayed after that."""
        ...


class Recorder(Protocol):
    """Records calls of one device."""

    def record(self, call: Callable[[], Sequence[Tensor]]) -> Recording:
        """Record a call. Errors: RuntimeError where that cannot be done."""
        ...

    def idle_bytes(self) -> int:
        """Return the bytes reserved for replays alone, which torch counts as free and nothing else can use."""
        ...

    def most_bytes(self) -> int:
        """Return how many bytes inputs and outputs of recordings may take."""
        ...


@dataclass(slots=True)
class ReplayCounters:
    """Counters of recordings, replays, failed recordings, and recordings dropped for want of memory."""

    recordings: int = 0
    replays: int = 0
    failures: int = 0
    dropped: int = 0


@dataclass(slots=True)
class _Shape:
    """Forwards of one variant and one input size. eager: never recorded. used: number of its last replay, for LRU."""

    forwards: int = 0
    eager: bool = False
    inputs: dict[Any, Tensor] = field(default_factory=dict)
    recording: Recording | None = None
    used: int = 0

    @property
    def nbytes(self) -> int:
        """Bytes of its recording's inputs and outputs."""
        outputs = () if self.recording is None else self.recording.outputs
        return sum(tensor.numel() * tensor.dtype.itemsize for tensor in (*self.inputs.values(), *outputs))

    def forget(self) -> None:
        """Reset its recording."""
        if self.recording is not None:
            self.recording.reset()
        self.recording, self.inputs, self.forwards = None, {}, 0


class Replays:
    """The forwards of one device's networks. One thread at a time runs them; any may `forget`.

    recorder: None: nothing is recorded, as on a CPU. buckets: ascending batch sizes; empty: no padding. records: set to
    False to run all calls eagerly from then on.
    """

    def __init__(self, recorder: Recorder | None = None, buckets: Sequence[int] = ()) -> None:
        self.counters = ReplayCounters()
        self.records = True
        self._recorder = recorder
        self._buckets = tuple(buckets)
        # By the tensors that a recording reads, of the weights and beside them, as objects. Whoever frees one calls
        # `forget`.
        self._lock = RLock()
        self._shapes: MutableMapping[Tensor, MutableMapping[Tensor, OrderedDict[Hashable, _Shape]]]
        self._shapes = WeakIdKeyDictionary()
        self._idle_bytes = 0, (0, 0)

    def padded_rows(self, rows: int) -> int:
        """Return the batch size that a batch of `rows` is padded to."""
        return next((bucket for bucket in self._buckets if bucket >= rows), rows)

    def answer(self, weight: Tensor, call: CapturableCall, dtype: torch.dtype | None = None) -> list[Tensor]:
        """Run a network's call and return its outputs, in memory that later calls do not touch.

        weight: one of the network's, a different tensor once the weights have moved. dtype: of the outputs; None: as
        computed.
        """
        if self._recorder is None or not self.records or call.variant is None:
            return [output.to(dtype or output.dtype) for output in call.run(call.inputs)]
        shape = self._shape(weight, call)
        if shape.recording is None and not shape.eager and shape.forwards >= EAGER:
            self._record(self._recorder, shape, call)
        shape.forwards += 1
        if (recording := shape.recording) is None:
            return [output.to(dtype or output.dtype) for output in call.run(call.inputs)]
        _fill(shape.inputs, call.inputs)
        recording.replay()
        self.counters.replays += 1
        shape.used = self.counters.replays
        # Recordings share memory, so the next replay may overwrite these outputs.
        kept = [torch.empty_like(output, dtype=dtype) for output in recording.outputs]
        torch._foreach_copy_(kept, [*recording.outputs])
        return kept

    def idle_bytes(self) -> int:
        """Return the bytes reserved for replays alone."""
        known, alive = self._idle_bytes[1], (self.counters.recordings, len(self._recorded()))
        if self._recorder is not None and alive != known:
            self._idle_bytes = self._recorder.idle_bytes(), alive
        return self._idle_bytes[0]

    def forget(self, tensor: Tensor) -> None:
        """Reset recordings of forwards that read a tensor, of the weights or beside them: it is about to be freed."""
        with self._lock:
            gone = list(self._shapes.pop(tensor, {}).values())
            gone += [shapes.pop(tensor) for shapes in self._shapes.values() if tensor in shapes]
            for shape in (shape for shapes in gone for shape in shapes.values()):
                shape.forget()

    def drop(self) -> int:
        """Drop all recordings to free memory, and return their number.

        Their shapes are never recorded again, as the memory for them is lacking.
        """
        recorded = self._recorded()
        for shape in recorded:
            shape.forget()
            shape.eager = True
        self.counters.dropped += len(recorded)
        return len(recorded)

    def _recorded(self) -> list[_Shape]:
        with self._lock:
            by_reads = [shapes for by_weight in self._shapes.values() for shapes in by_weight.values()]
            return [shape for shapes in by_reads for shape in shapes.values() if shape.recording]

    def _shape(self, weight: Tensor, call: CapturableCall) -> _Shape:
        reads = weight if call.reads is None else call.reads
        key = (call.variant, *((name, tensor.shape, tensor.dtype) for name, tensor in call.inputs.items()))
        with self._lock:
            shapes = self._shapes.setdefault(weight, WeakIdKeyDictionary()).setdefault(reads, OrderedDict())
            shape = shapes.setdefault(key, _Shape())
            shapes.move_to_end(key)
            if len(shapes) > SHAPES_KEPT:
                shapes.popitem(last=False)[1].forget()
        return shape

    def _keep_within(self, most_bytes: int) -> None:
        """Drop least recently used recordings until the others take at most `most_bytes`; the newest always stays."""
        kept = sorted(self._recorded(), key=lambda shape: shape.used)
        taken = sum(shape.nbytes for shape in kept)
        for shape in kept[:-1]:
            if taken <= most_bytes:
                return
            taken -= shape.nbytes
            shape.forget()

    def _record(self, recorder: Recorder, shape: _Shape, call: CapturableCall) -> None:
        # Same strides as the originals, as kernels' rounding depends on them.
        inputs = {name: tensor.clone() for name, tensor in call.inputs.items()}
        # Bind `run` alone, so that the recording does not keep the call's `reads` alive.
        run = call.run
        try:
            shape.recording = recorder.record(lambda: run(inputs))
        except RuntimeError as error:
            said = str(error).partition("\n")[0]
        else:
            shape.inputs = inputs
            self.counters.recordings += 1
            shape.used = self.counters.replays + 1
            self._keep_within(recorder.most_bytes())
            return
        # An error of the device itself is raised again by the eager forward that follows.
        shape.eager = True
        self.counters.failures += 1
        _log.warning("a forward could not be recorded and runs as it is from now on: error=%s", said)


def _fill(places: Inputs, inputs: Inputs) -> None:
    """Copy inputs to their fixed places, with one kernel for each dtype where layouts agree."""
    for dtype in dict.fromkeys(tensor.dtype for tensor in inputs.values()):
        names = [name for name, tensor in inputs.items() if tensor.dtype == dtype]
        torch._foreach_copy_([places[name] for name in names], [inputs[name] for name in names])
