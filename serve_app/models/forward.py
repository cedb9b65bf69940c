"""Forwards that are replayed: rows filled up to a bucket, inputs at fixed places, and the network's call recorded once.

A network's kernels, and how they round, depend on how many rows there are. Filled up to one of few numbers, a forward
meets shapes it has met before: within a bucket a row's bits do not depend on its neighbours, and where the device can
record a call, it is replayed without the host asking for each kernel. This module knows neither networks nor CUDA: a
family says what a forward is given (`Bare`), a recorder how its device replays (`cuda_graphs`).
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Hashable, Mapping, MutableMapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol, TypeAlias

import torch
from torch import Tensor
from torch.utils.weak import WeakIdKeyDictionary

from serve_app import log

ROW_BUCKETS = (1, 2, 4, 6, 8, 12, 16, 24, 32)
"""How many rows a forward is filled up to; one of more is as it is."""

EAGER = 2
"""So many forwards of a shape run before it is recorded: libraries choose and prepare their kernels in them."""

SHAPES_KEPT = 32
"""Of how many shapes of a network it is remembered how they are run."""

Inputs: TypeAlias = Mapping[Any, Tensor]
"""What a call is given, by names of its family's own, which are equal for what has the same part in it."""

_log = log.get("models")


@dataclass(frozen=True, slots=True, eq=False)
class Bare:
    """A forward for which all is prepared: what is left is the network's own call.

    run: from inputs like these to its outputs; it makes the host wait for nothing, and reads nothing else that changes
    between forwards of its variant. variant: equal for equal calls; None for one that is like no other. reads: a tensor
    that it reads where that lies beside the network's own, as others that are there as long.
    """

    inputs: Inputs
    run: Callable[[Inputs], Sequence[Tensor]]
    variant: Hashable | None = ()
    reads: Tensor | None = None


class Recording(Protocol):
    """A call that a device has recorded. outputs: where each replay leaves what it gives."""

    @property
    def outputs(self) -> Sequence[Tensor]: ...

    def replay(self) -> None:
        """Have the device do it again, with what its inputs hold by then."""
        ...


class Recorder(Protocol):
    """What records calls of a device."""

    def record(self, call: Callable[[], Sequence[Tensor]]) -> Recording:
        """Return a call recorded. Errors: RuntimeError where that cannot be done."""
        ...

    def idle_bytes(self) -> int:
        """Return how much memory is kept for replays alone, which nothing else can use and torch counts as free."""
        ...

    def most_bytes(self) -> int:
        """Return how much inputs and outputs of recordings may take."""
        ...


@dataclass(slots=True)
class ReplayCounters:
    """What was recorded, replayed, could not be recorded, and was dropped for want of memory."""

    recordings: int = 0
    replays: int = 0
    failures: int = 0
    dropped: int = 0


@dataclass(slots=True)
class _Shape:
    """Forwards of one variant with inputs of one size. eager: for good. used: which replay of all was its last."""

    forwards: int = 0
    eager: bool = False
    inputs: dict[Any, Tensor] = field(default_factory=dict)
    recording: Recording | None = None
    used: int = 0

    @property
    def nbytes(self) -> int:
        """How much its recording keeps to itself."""
        outputs = () if self.recording is None else self.recording.outputs
        return sum(tensor.numel() * tensor.dtype.itemsize for tensor in (*self.inputs.values(), *outputs))

    def forget(self) -> None:
        """Let its recording go."""
        self.recording, self.inputs, self.forwards = None, {}, 0


class Replays:
    """The forwards of one device's networks. One thread at a time uses it.

    recorder: None where nothing is recorded, as on a CPU. buckets: rising; without any, rows are as they are. records:
    false has calls run as they are from then on.
    """

    def __init__(self, recorder: Recorder | None = None, buckets: Sequence[int] = ()) -> None:
        self.counters = ReplayCounters()
        self.records = True
        self._recorder = recorder
        self._buckets = tuple(buckets)
        # By tensors that a recording reads, of the weights and beside them: once one is gone, or elsewhere, so is what
        # was recorded.
        self._shapes: MutableMapping[Tensor, MutableMapping[Tensor, OrderedDict[Hashable, _Shape]]]
        self._shapes = WeakIdKeyDictionary()
        self._idle_bytes = 0, (0, 0)

    def filled(self, rows: int) -> int:
        """Return how many rows a forward of so many is filled up to."""
        return next((bucket for bucket in self._buckets if bucket >= rows), rows)

    def answer(self, weight: Tensor, bare: Bare, dtype: torch.dtype | None = None) -> list[Tensor]:
        """Return the outputs of a network's call; later calls leave them as they are.

        weight: one of the network's, which is another tensor once they have moved. dtype: of the outputs; None: as the
        call gives them.
        """
        if self._recorder is None or not self.records or bare.variant is None:
            return [output.to(dtype or output.dtype) for output in bare.run(bare.inputs)]
        shape = self._shape(weight, bare)
        if shape.recording is None and not shape.eager and shape.forwards >= EAGER:
            self._record(self._recorder, shape, bare)
        shape.forwards += 1
        if (recording := shape.recording) is None:
            return [output.to(dtype or output.dtype) for output in bare.run(bare.inputs)]
        _fill(shape.inputs, bare.inputs)
        recording.replay()
        self.counters.replays += 1
        shape.used = self.counters.replays
        # What another call is replayed in may be the same memory.
        kept = [torch.empty_like(output, dtype=dtype) for output in recording.outputs]
        torch._foreach_copy_(kept, [*recording.outputs])
        return kept

    def idle_bytes(self) -> int:
        """Return how much memory is kept for replays alone."""
        known, alive = self._idle_bytes[1], (self.counters.recordings, len(self._recorded()))
        if self._recorder is not None and alive != known:
            self._idle_bytes = self._recorder.idle_bytes(), alive
        return self._idle_bytes[0]

    def drop(self) -> int:
        """Forget all recordings, for want of memory, and return how many there were.

        Their shapes are not recorded again: what one needs is not there beside all else.
        """
        recorded = self._recorded()
        for shape in recorded:
            shape.forget()
            shape.eager = True
        self.counters.dropped += len(recorded)
        return len(recorded)

    def _recorded(self) -> list[_Shape]:
        beside = [shapes for by_weight in [*self._shapes.values()] for shapes in [*by_weight.values()]]
        return [shape for shapes in beside for shape in shapes.values() if shape.recording]

    def _shape(self, weight: Tensor, bare: Bare) -> _Shape:
        reads = weight if bare.reads is None else bare.reads
        shapes = self._shapes.setdefault(weight, WeakIdKeyDictionary()).setdefault(reads, OrderedDict())
        key = (bare.variant, *((name, tensor.shape, tensor.dtype) for name, tensor in bare.inputs.items()))
        shape = shapes.setdefault(key, _Shape())
        shapes.move_to_end(key)
        if len(shapes) > SHAPES_KEPT:
            shapes.popitem(last=False)
        return shape

    def _keep_within(self, most_bytes: int) -> None:
        """Let recordings go until the others take no more than so much, least recently used first, but not the last."""
        kept = sorted(self._recorded(), key=lambda shape: shape.used)
        taken = sum(shape.nbytes for shape in kept)
        for shape in kept[:-1]:
            if taken <= most_bytes:
                return
            taken -= shape.nbytes
            shape.forget()

    def _record(self, recorder: Recorder, shape: _Shape, bare: Bare) -> None:
        # Laid out as they are, for kernels round by that too.
        inputs = {name: tensor.clone() for name, tensor in bare.inputs.items()}
        # Of the call alone: what it reads beside its inputs is not kept by having been recorded.
        run = bare.run
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
        # An error of the device itself is met again by the forward that now runs as it is.
        shape.eager = True
        self.counters.failures += 1
        _log.warning("a forward could not be recorded and runs as it is from now on: error=%s", said)


def _fill(places: Inputs, inputs: Inputs) -> None:
    """Copy inputs to their places, those of one dtype by one kernel where they lie alike."""
    for dtype in dict.fromkeys(tensor.dtype for tensor in inputs.values()):
        names = [name for name, tensor in inputs.items() if tensor.dtype == dtype]
        torch._foreach_copy_([places[name] for name in names], [inputs[name] for name in names])
