"""One forward of a network for rows with different LoRAs, on shared weights.

Low-rank changes run as additional layers, so rows of many sets go through the shared layer together. All other changes,
and those of a set that has long been alone, run as merged layers, for the set's rows instead of the shared one. On a
GPU the low-rank layers of all rows are two kernels (`slots`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import TypeAlias

import torch
from torch import Tensor, nn

from serve_app.models.lora.layers import LoraLayer, LoraSet
from serve_app.models.lora.slots import Pair, Slots, Slotted, layout, slot_rank

Forward: TypeAlias = Callable[[Tensor], Tensor]


@dataclass(slots=True)
class _Span:
    """Neighbouring rows of one LoRA set. whole: they use merged layers where there are any."""

    start: int
    stop: int
    loras: LoraSet | None
    whole: bool = False


@contextmanager
def with_loras(
    pieces: Sequence[tuple[int, LoraSet | None]], *, merging: bool = True, steps_left: int = 0
) -> Iterator[tuple[Tensor, ...] | None]:
    """Apply each piece's LoRA set to its rows in forwards inside the context.

    pieces: (rows, set) in the batch's order. The rows of a batch lie along dim 0 of every layer's input; further
    entries there repeat the same rows, from the first on. merging False: outputs do not depend, to the bit, on earlier
    forwards. steps_left: of the run that has most. One thread at a time may use a network.

    Yields the LoRA slot tensors that the forward reads. A CUDA graph may be replayed as long as these are the same
    objects. None: the changes are not only in tensors, do not record.
    """
    spans = _spans(pieces)
    sets = {id(span.loras): span.loras for span in spans if span.loras is not None}
    if not sets:
        yield ()
        return
    names = dict.fromkeys(name for loras in sets.values() for name in loras.layers)
    on_gpu, alone = any(loras.on_gpu for loras in sets.values()), len(spans) == 1
    if merging:
        for loras in sets.values():
            loras.merge(alone, steps_left)
        [first, *_] = sets.values()
        if on_gpu and alone and (merged := first.merged_layers()):
            with _in_place(first, merged):
                yield (first.merged_weight(merged),)
            return
        spans[0].whole = alone and not on_gpu
    slots = _slots(spans, names) if on_gpu else None
    slotted = set() if slots is None else {name for name, _ in slots.layout}
    forwards: list[tuple[nn.Module, Forward]] = []
    for name in names:
        if name not in slotted:
            layers = _layers(spans, name)
            base = next(layer.base for layer in layers if layer is not None)
            forwards.append((base, _forward(base.forward, spans, layers)))
    try:
        if slots is not None:
            slots.use(spans[-1].stop)
        for base, forward in forwards:
            # An instance's own forward takes precedence over its class's: no wrapper stays in a network without LoRAs.
            base.__dict__["forward"] = forward
        yield (slots.first,) if slots is not None and not forwards else None
    finally:
        for base, _ in forwards:
            base.__dict__.pop("forward", None)
        if slots is not None:
            slots.leave()


@contextmanager
def _in_place(loras: LoraSet, merged: Mapping[str, nn.Module]) -> Iterator[None]:
    """Run a set's merged layers in place of the network's, for all rows of forwards inside the context."""
    bases = {name: loras.layers[name].base for name in merged}
    try:
        for name, base in bases.items():
            base.__dict__["forward"] = merged[name].forward
        yield
    finally:
        for base in bases.values():
            base.__dict__.pop("forward", None)


def _slots(spans: Sequence[_Span], names: Iterable[str]) -> Slots | None:
    """Return the slots of all layers with low-rank changes, filled for these rows; None if there are none.

    The first of the sets owns them, so that they are freed with it; it drops other slots of its own.
    """
    keeper = next(span.loras for span in spans if span.loras is not None)
    key, rows = tuple((span.stop, None if span.loras is None else span.loras.key) for span in spans), spans[-1].stop
    if (kept := keeper.slots) is not None and kept.key == key:
        return kept
    # In one order, whichever set comes first.
    layers = [slotted for name in sorted(names) if (slotted := _slotted(name, _layers(spans, name))) is not None]
    if not layers:
        return None
    known, wanted = keeper.slots_of_network, layout(layers)
    slots = known.get(wanted)
    if slots is None or slots.rows < rows:
        # Unused slots are freed before others are allocated.
        for old in (kept, slots):
            if old is not None:
                old.let_go()
        kept = slots = old = None
        slots = known[wanted] = Slots(layers, rows)
    by_row = [span.loras for span in spans for _ in range(span.start, span.stop)]

    def pair(row: int, name: str) -> Pair | None:
        loras = by_row[row]
        layer = None if loras is None else loras.layers.get(name)
        return None if layer is None else layer.pair()

    slots.fill(key, [None if loras is None else loras.key for loras in by_row], pair)
    keeper.keep(slots)
    return slots


def _slotted(name: str, layers: Sequence[LoraLayer | None]) -> Slotted | None:
    """Return a layer's slot requirements for the spans' changes; None if they are not low-rank."""
    changed = [layer for layer in layers if layer is not None]
    if any(layer.thin() is None for layer in changed):
        return None
    pairs = [layer.pair() for layer in changed]
    return Slotted(name, changed[0].base, slot_rank(max(len(pair.down) for pair in pairs)), pairs[0])


def _layers(spans: Sequence[_Span], name: str) -> list[LoraLayer | None]:
    """Return the changes of each span in a layer."""
    return [None if span.loras is None else span.loras.layers.get(name) for span in spans]


def _spans(pieces: Sequence[tuple[int, LoraSet | None]]) -> list[_Span]:
    spans: list[_Span] = []
    stop = 0
    for rows, loras in pieces:
        start, stop = stop, stop + rows
        last = spans[-1].loras if spans else None
        if spans and (None if last is None else last.key) == (None if loras is None else loras.key):
            spans[-1].stop = stop
        else:
            spans.append(_Span(start, stop, loras))
    return spans


@dataclass(frozen=True, slots=True)
class _Through:
    """Neighbouring rows that go through one layer. thin: low-rank layers with their rows, counted from the first."""

    start: int
    stop: int
    forward: Forward
    thin: list[tuple[slice, nn.Module]] = field(default_factory=list)

    def __call__(self, x: Tensor) -> Tensor:
        mine = x[self.start : self.stop]
        output = self.forward(mine)
        for rows, layer in self.thin:
            output[rows] += layer(mine[rows])
        return output


def _forward(shared: Forward, spans: Sequence[_Span], layers: Sequence[LoraLayer | None]) -> Forward:
    """Return one layer's forward for these rows."""
    runs: list[_Through] = []
    for span, layer in zip(spans, layers, strict=True):
        thin = None if layer is None or (span.whole and layer.is_merged) else layer.thin()
        if layer is not None and thin is None:
            runs.append(_Through(span.start, span.stop, layer.whole().forward))
            continue
        if runs and runs[-1].forward is shared:
            runs[-1] = replace(runs[-1], stop=span.stop)
        else:
            runs.append(_Through(span.start, span.stop, shared))
        if thin is not None:
            first = runs[-1].start
            runs[-1].thin.append((slice(span.start - first, span.stop - first), thin))

    def forward(x: Tensor) -> Tensor:
        parts = [run(rows) for rows in torch.split(x, spans[-1].stop) for run in runs]
        return parts[0] if len(parts) == 1 else torch.cat(parts)

    return forward
