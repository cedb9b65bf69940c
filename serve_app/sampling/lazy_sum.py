"""Lazy linear combinations of latents, computed together for all runs of a forward.

Nearly all arithmetic around a network has this form: scaling its input, D(x, sigma), guidance, inpainting, a sampler's
step. On a GPU it costs by the number of kernel launches. So a step is recorded as sums up to its next evaluation; then
the sums of all runs are computed by the same few operations, with one table of coefficients, whatever their samplers.
Numbers are added in double precision and rounded once.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Sequence
from dataclasses import dataclass
from typing import TypeAlias

import torch
from torch import Tensor

from serve_app.sampling.transfer import to_device

Latents: TypeAlias = "Tensor | LazySum"
"""What samplers compute with: (B,C,h,w), a tensor or a lazy sum."""


@dataclass(frozen=True, slots=True, eq=False)
class _Term:
    """One summand: leaf (B,…) times a factor and masks, each (1 or B,1 or C,…)."""

    leaf: Tensor
    factor: float
    masks: tuple[Tensor, ...] = ()

    @property
    def key(self) -> Hashable:
        return id(self.leaf), tuple(map(id, self.masks))

    def times(self, factor: float) -> _Term:
        return _Term(self.leaf, self.factor * factor, self.masks)

    def under(self, mask: Tensor) -> _Term:
        return _Term(self.leaf, self.factor, tuple(sorted((*self.masks, mask), key=id)))


class LazySum:
    """A linear combination of latents, not computed until `compute` or `value` is called.

    Adds, multiplies and divides like a tensor; factors are numbers, masks or tensors of one number.
    """

    __slots__ = ("_like", "_terms", "_value")

    def __init__(self, terms: Sequence[_Term], like: Tensor) -> None:
        self._terms = tuple(terms) or (_Term(like, 0.0),)
        self._like = like
        self._value: Tensor | None = None

    @classmethod
    def of(cls, latents: Latents) -> LazySum:
        """Wrap latents."""
        return latents if isinstance(latents, LazySum) else cls((_Term(latents, 1.0),), latents)

    @classmethod
    def zero(cls, like: Tensor) -> LazySum:
        """Return zeros of a tensor's shape."""
        return cls((), like)

    @property
    def shape(self) -> torch.Size:
        return self._like.shape

    @property
    def device(self) -> torch.device:
        return self._like.device

    @property
    def terms(self) -> tuple[_Term, ...]:
        """Its summands, one or more; a single one once it is computed."""
        return self._terms

    @property
    def value(self) -> Tensor:
        """Its tensor, computed alone if it is still pending."""
        if self._value is None:
            compute([self])
        assert self._value is not None, "compute gives all that it is given a value"
        return self._value

    @property
    def is_computed(self) -> bool:
        return self._value is not None

    def materialize(self, value: Tensor) -> None:
        """Store the computed tensor and release the summands."""
        self._value = self._like = value
        self._terms = (_Term(value, 1.0),)

    def __add__(self, other: Latents) -> LazySum:
        terms = {term.key: term for term in self._terms}
        for term in LazySum.of(other)._terms:
            known = terms.get(term.key)
            terms[term.key] = term if known is None else _Term(term.leaf, known.factor + term.factor, term.masks)
        return LazySum([term for term in terms.values() if term.factor], self._like)

    __radd__ = __add__

    def __neg__(self) -> LazySum:
        return self * -1.0

    def __sub__(self, other: Latents) -> LazySum:
        return self + LazySum.of(other) * -1.0

    def __rsub__(self, other: Tensor) -> LazySum:
        return LazySum.of(other) - self

    def __mul__(self, by: float | Tensor) -> LazySum:
        if isinstance(by, Tensor) and by.ndim:
            mask = by if by.ndim == self._like.ndim else by.view(*(1,) * (self._like.ndim - by.ndim), *by.shape)
            return LazySum([term.under(mask) for term in self._terms], self._like)
        factor = float(by)
        return LazySum([term.times(factor) for term in self._terms if factor], self._like)

    __rmul__ = __mul__

    def __truediv__(self, by: float | Tensor) -> LazySum:
        return self * (1 / float(by))


def value(latents: Latents) -> Tensor:
    """Return latents as a tensor."""
    return latents.value if isinstance(latents, LazySum) else latents


def mixed(start: Latents, end: Latents, share: float | Tensor) -> Latents:
    """Return start + share·(end − start). share: a number or a mask."""
    if isinstance(start, Tensor) and isinstance(end, Tensor):
        return torch.lerp(start, end, share)
    return start + (end - start) * share


def compute(sums: Iterable[Latents]) -> None:
    """Compute pending sums, those of equally shaped rows by the same operations.

    The bits of each depend on its own terms alone.
    """
    groups: dict[Hashable, list[LazySum]] = {}
    for lazy_sum in sums:
        if isinstance(lazy_sum, Tensor) or lazy_sum.is_computed:
            continue
        match lazy_sum.terms:
            case (_Term(leaf, 1.0, ()),):
                lazy_sum.materialize(leaf)
            case (first, *_):
                kind = first.leaf.shape[1:], first.leaf.dtype, first.leaf.device
                group = groups.setdefault(kind, [])
                if not any(lazy_sum is other for other in group):
                    group.append(lazy_sum)
    if not groups:
        return
    tables = [_table(group) for group in groups.values()]
    device = next(iter(groups.values()))[0].device
    sizes = [len(table) * len(table[0]) for table in tables]
    flat = torch.tensor([number for table in tables for row in table for number in row], dtype=torch.float64)
    for group, table, numbers in zip(groups.values(), tables, torch.split(to_device(flat, device), sizes), strict=True):
        _compute(group, numbers.view(len(table), len(table[0])))


def _table(group: Sequence[LazySum]) -> list[list[float]]:
    """Return the factors (K,R) of a group's terms for each of their R rows, padded with zeros.

    K is a power of two, as terms are added pairwise, by halves.
    """
    most = max(len(lazy_sum.terms) for lazy_sum in group)
    table: list[list[float]] = []
    for k in range(1 << (most - 1).bit_length()):
        row: list[float] = []
        for lazy_sum in group:
            terms = lazy_sum.terms
            row += [terms[k].factor if k < len(terms) else 0.0] * lazy_sum.shape[0]
        table.append(row)
    return table


def _compute(group: Sequence[LazySum], table: Tensor) -> None:
    """Materialize sums whose rows are shaped alike. table: (K,R), as `_table`."""
    # Padding repeats each sum's own first term: another's could be NaN, and NaN · 0 is NaN.
    terms = [(c.terms[k] if k < len(c.terms) else c.terms[0]) for k in range(len(table)) for c in group]
    leaves = _whole([term.leaf for term in terms])
    row = leaves.shape[1:]
    total = leaves.view(*table.shape, *row) * table.view(*table.shape, *(1,) * len(row))
    for depth in range(max(len(term.masks) for term in terms)):
        masks = [term.masks[depth] if depth < len(term.masks) else _whole_mask(term.leaf) for term in terms]
        channels = max(mask.shape[1] for mask in masks)
        wide = [m.expand(t.leaf.shape[0], channels, *row[1:]) for m, t in zip(masks, terms, strict=True)]
        total = total * torch.cat(wide).view(*table.shape, channels, *row[1:])
    while len(total) > 1:
        half = len(total) // 2
        total = total[:half] + total[half:]
    rounded = torch.split(total[0].to(leaves.dtype), [lazy_sum.shape[0] for lazy_sum in group])
    for lazy_sum, made in zip(group, rounded, strict=True):
        lazy_sum.materialize(made)


_ONES: dict[tuple[torch.device, torch.dtype], Tensor] = {}


def _whole_mask(leaf: Tensor) -> Tensor:
    """Return a cached mask of ones for a leaf: making one for every step would cost a kernel launch."""
    key = leaf.device, leaf.dtype
    if key not in _ONES:
        _ONES[key] = torch.ones(1, dtype=leaf.dtype, device=leaf.device)
    return _ONES[key].view(*(1,) * leaf.ndim)


def _whole(parts: Sequence[Tensor]) -> Tensor:
    return parts[0] if len(parts) == 1 else torch.cat(list(parts))
