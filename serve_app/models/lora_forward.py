"""One forward of a network for rows that differ in their LoRAs, on weights that all of them share.

Changes of low rank are used as thin layers, so rows of many sets go through the shared layer together. All others,
and on a CPU those of a set that is long alone, are used as whole layers, for the set's rows in place of the shared one.
On a GPU the thin layers of all rows are two kernels (`lora_slots`), and nothing is merged.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import TypeAlias

import torch
from torch import Tensor, nn

from serve_app.models.lora_layers import LoraLayer, LoraSet
from serve_app.models.lora_slots import Composition, Filled, filled

Forward: TypeAlias = Callable[[Tensor], Tensor]


@dataclass(slots=True)
class _Span:
    """Neighbouring rows of one set. whole: they use whole layers where there are any."""

    start: int
    stop: int
    loras: LoraSet | None
    whole: bool = False


@contextmanager
def with_loras(pieces: Sequence[tuple[int, LoraSet | None]], *, merging: bool = True) -> Iterator[None]:
    """Make forwards inside the context treat each piece's rows as its set says.

    pieces: (rows, set) in the batch's order. The rows of a batch lie along dim 0 of every layer's input. merging False:
    the outcome does not depend on earlier forwards, to the bit. One thread at a time may use a network.
    """
    spans = _spans(pieces)
    sets = {id(span.loras): span.loras for span in spans if span.loras is not None}
    if not sets:
        yield
        return
    names = dict.fromkeys(name for loras in sets.values() for name in loras.layers)
    on_gpu = any(layer.on_gpu for loras in sets.values() for layer in loras.layers.values())
    if merging and not on_gpu:
        for loras in sets.values():
            loras.merge(alone=len(spans) == 1)
        spans[0].whole = len(spans) == 1
    composition = _composition(spans, names) if on_gpu else None
    slotted = set() if composition is None else {id(slots.layer) for slots in composition.filled}
    forwards: list[tuple[nn.Module, Forward]] = []
    for name in names:
        layers = [None if span.loras is None else span.loras.layers.get(name) for span in spans]
        base = next(layer.base for layer in layers if layer is not None)
        if id(base) not in slotted:
            forwards.append((base, _forward(base.forward, spans, layers)))
    try:
        if composition is not None:
            composition.use()
        for base, forward in forwards:
            # An instance's own forward goes before its class's: no wrapper stays in a network without LoRAs.
            base.__dict__["forward"] = forward
        yield
    finally:
        for base, _ in forwards:
            base.__dict__.pop("forward", None)
        if composition is not None:
            composition.leave()


def _composition(spans: Sequence[_Span], names: Iterable[str]) -> Composition:
    """Return the slots of all layers whose changes are of low rank, as they were for the last forward if that is equal.

    One of the sets keeps them, so that they go with it.
    """
    keeper = next(span.loras for span in spans if span.loras is not None)
    key = tuple((span.stop - span.start, None if span.loras is None else span.loras.key) for span in spans)
    if keeper.composition is not None and keeper.composition.key == key:
        return keeper.composition
    keeper.composition = None
    made: list[Filled] = []
    for name in names:
        layers = [None if span.loras is None else span.loras.layers.get(name) for span in spans]
        if any(layer is not None and layer.thin() is None for layer in layers):
            continue
        pairs = [
            (span.stop - span.start, None if layer is None else layer.pair())
            for span, layer in zip(spans, layers, strict=True)
        ]
        made.append(filled(next(layer.base for layer in layers if layer is not None), pairs))
    keeper.composition = Composition(key, made)
    return keeper.composition


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
    """Neighbouring rows that go through one layer. thin: what is added to which of them, counted from the first."""

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
        parts = [run(x) for run in runs]
        return parts[0] if len(parts) == 1 else torch.cat(parts)

    return forward
