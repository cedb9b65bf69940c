"""The local error of an adaptive sampler's step, which the host reads to choose the next step length.

Reading synchronises with a GPU. So estimates are recorded like lazy sums, computed by the same few operations for all
runs of a forward, and read at once.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Sequence
from dataclasses import dataclass, field
from math import sqrt

import torch
from torch import Tensor

from serve_app.sampling.lazy_sum import Latents, value
from serve_app.sampling.transfer import to_device


@dataclass(slots=True, eq=False)
class ErrorEstimate:
    """Scaled difference of two orders of a step: √mean(((low − high) / allowed)²).

    low, high, before: latents (B,C,…), materialized or pending. allowed = max(atol, rtol·max(|low|, |before|)).
    """

    low: Latents
    high: Latents
    before: Latents
    rtol: float
    atol: float
    _number: float | None = field(default=None, init=False)

    @property
    def number(self) -> float:
        """The estimate, computed and read alone if still pending."""
        if self._number is None:
            read([self])
        assert self._number is not None, "read gives all that it is given a number"
        return self._number

    def set(self, number: float) -> None:
        """Store the estimate."""
        self._number = number


def read(estimates: Iterable[ErrorEstimate]) -> None:
    """Compute all estimates, those of equally shaped rows by the same operations, with one synchronisation.

    The bits of each depend on its own latents alone.
    """
    groups: dict[Hashable, list[ErrorEstimate]] = {}
    for one in estimates:
        low = value(one.low)
        groups.setdefault((low.shape[1:], low.dtype, low.device), []).append(one)
    if not groups:
        return
    norms = torch.stack([norm for group in groups.values() for norm in _norms(group)])
    ordered = (one for group in groups.values() for one in group)
    for one, norm in zip(ordered, norms.tolist(), strict=True):
        one.set(norm / sqrt(value(one.low).numel()))


def _norms(group: Sequence[ErrorEstimate]) -> list[Tensor]:
    """Return ‖(low − high) / allowed‖ of each; their rows are shaped alike."""
    rows = [value(one.low).shape[0] for one in group]
    kinds = zip(*((one.low, one.before, one.high) for one in group), strict=True)
    latents = torch.cat([value(of_one) for kind in kinds for of_one in kind])
    latents = latents.view(3, -1, *latents.shape[1:])
    limits = [(one.rtol, one.atol) for one, count in zip(group, rows, strict=True) for _ in range(count)]
    table = to_device(torch.tensor(limits, dtype=latents.dtype), latents.device)
    rtol, atol = table.view(-1, 2, *(1,) * (latents.ndim - 2)).unbind(1)
    of_low, of_before = latents[:2].abs()
    allowed = (of_low.maximum(of_before) * rtol).maximum(atol)
    relative = (latents[0] - latents[2]) / allowed
    # Each norm is reduced by itself: a library's order of additions depends on the shape, which then is the run's.
    return [own.norm() for own in relative.split(rows)]
