"""Controls at work: which ControlNets act on which rows of a forward, and what all of them add together.

One forward of a backbone holds rows of many jobs, each with a chain of controls of its own; rows that are under the
same ControlNet, of whichever job, are one forward of it. A hint is read once per run and size. What a network of a
family is like, and where its backbone takes what is added, is the family's.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import torch
from torch import Tensor

from serve_app.images import resize
from serve_app.sampling.forward import to_batch
from serve_app.sampling.levels import Levels, single
from serve_app.values import Conditioning, Control, HintKind, Recipe

Conds: TypeAlias = Mapping[str, Conditioning]


class ControlNet(ABC):
    """A network on its device whose answers are added inside a backbone.

    key: equal for equal weights. name: what errors call it. adds_to: where in the backbone, by the family's names.
    """

    adds_to: str

    def __init__(self, key: Hashable, name: str) -> None:
        self.key = key
        self.name = name

    @abstractmethod
    def check(self, hint: Tensor, kind: int | None, backbone: Any) -> None:
        """Errors: NodeError for a hint (N,H,W,C), a kind of hint, or a family's backbone that it does not go with."""

    @abstractmethod
    def read(self, hint: Tensor, kind: int | None, height: int, width: int) -> list[Tensor]:
        """Return what a hint (N,H,W,C) says for latents of height×width, (N,…) each; it holds for a whole run."""

    @abstractmethod
    def residuals(self, call: Any, index: Tensor, read: Sequence[Tensor]) -> list[Tensor]:
        """Return what is added to some rows of a forward.

        call: what the family's backbone is given for all its rows. index: which rows, (R',). read: as `read` gives it,
        for these rows.
        """


def resized(hint: Tensor, height: int, width: int) -> Tensor:
    """Return a hint (N,H,W,C) as (N,C,height,width), its middle where the proportions differ."""
    return resize(hint.float(), width, height, "nearest-exact", "center").movedim(-1, 1)


@dataclass(frozen=True, slots=True, eq=False)
class ActiveControl:
    """One control in one run. It acts from sigma `above` down to sigma `below`."""

    net: ControlNet
    control: Control
    above: float
    below: float
    _read: dict[tuple[int, int], list[Tensor]] = field(default_factory=dict)

    def acts(self, sigma: float) -> bool:
        """Whether it acts at a level."""
        return self.below <= single(sigma) <= self.above

    def read(self, height: int, width: int) -> list[Tensor]:
        """Return what its hint says for latents of a size; an area of a canvas is shown the whole hint."""
        if (height, width) not in self._read:
            self._read[height, width] = self.net.read(self.control.hint, kind_of(self.control.recipe), height, width)
        return self._read[height, width]


def kind_of(recipe: Recipe) -> int | None:
    """Return the kind of hint that a recipe names last; None leaves it open."""
    named = recipe.last(HintKind)
    return None if named is None else named.kind


def recipes(conds: Conds) -> tuple[Recipe, ...]:
    """Return the recipes of all the ControlNets that conditionings are under, each once."""
    controls = (options.get("control") for conditioning in conds.values() for _, options in conditioning)
    return tuple(dict.fromkeys(control.recipe for last in controls for control in _chain(last)))


def activated(
    conds: Conds, nets: Mapping[Recipe, ControlNet], backbone: Any, levels: Levels
) -> dict[str, Conditioning]:
    """Return the conditionings with each "control" as the ActiveControls of its chain, first applied first.

    backbone: the family's, that they are to control. A control of several entries is one ActiveControl, so its hint is
    read once. Errors: NodeError as `ControlNet.check`.
    """
    made: dict[Control, ActiveControl] = {}
    controlled: dict[str, Conditioning] = {}
    # Loops, not closures: an error that is kept would keep what they close over, and these networks would stay in use.
    for role, conditioning in conds.items():
        controlled[role] = []
        for cond, options in conditioning:
            if options.get("control") is None:
                controlled[role].append((cond, options))
                continue
            chain = list(_chain(options["control"]))[::-1]
            for control in chain:
                if control not in made:
                    made[control] = _activated(control, nets[control.recipe], backbone, levels)
            controlled[role].append((cond, {**options, "control": tuple(map(made.__getitem__, chain))}))
    return controlled


def _activated(control: Control, net: ControlNet, backbone: Any, levels: Levels) -> ActiveControl:
    net.check(control.hint, kind_of(control.recipe), backbone)
    return ActiveControl(
        net, control, levels.at_progress(control.start_percent), levels.at_progress(control.end_percent)
    )


def _chain(control: Control | None) -> Iterator[Control]:
    while control is not None:
        yield control
        control = control.previous


@dataclass(frozen=True, slots=True, eq=False)
class Controlled:
    """Neighbouring rows of a forward at one level, and what they are under."""

    count: int
    sigma: float
    controls: Sequence[ActiveControl]


@dataclass(frozen=True, slots=True, eq=False)
class _Acting:
    """A control, and the rows of a forward that it acts on."""

    rows: range
    control: ActiveControl


def control_residuals(rows: Sequence[Controlled], call: Any, x: Tensor) -> dict[str, list[Tensor]]:
    """Return what all controls add to the rows of a forward, by where: (R,…) each.

    rows: all of them, in order. call: what `ControlNet.residuals` is given. x: (R,C,h,w). Nowhere if no control acts;
    rows without one are added zeros.
    """
    sums: dict[str, list[Tensor]] = {}
    for net, acting in _by_net(rows).items():
        index = torch.tensor([i for part in acting for i in part.rows], device=x.device)
        strength = torch.tensor([p.control.control.strength for p in acting for _ in p.rows], device=x.device)
        added = net.residuals(call, index, _read(acting, x.shape[-2], x.shape[-1]))
        _add(sums.setdefault(net.adds_to, []), added, index, strength, x)
    return sums


def _by_net(rows: Sequence[Controlled]) -> dict[ControlNet, list[_Acting]]:
    under: dict[ControlNet, list[_Acting]] = {}
    first = 0
    for some in rows:
        for control in some.controls:
            if control.acts(some.sigma):
                under.setdefault(control.net, []).append(_Acting(range(first, first + some.count), control))
        first += some.count
    return under


def _read(acting: Sequence[_Acting], height: int, width: int) -> list[Tensor]:
    """Return what the hints say for all the rows, (R',…) each."""
    each = [[to_batch(part, len(a.rows)) for part in a.control.read(height, width)] for a in acting]
    return [torch.cat(parts) for parts in zip(*each, strict=True)]


def _add(sums: list[Tensor], added: Sequence[Tensor], index: Tensor, strength: Tensor, x: Tensor) -> None:
    """Add to the sums, (R,…) each, what some rows are given. index: which, (R',); strength: (R',)."""
    scale = strength[:, None, None, None]
    if not sums:
        sums += [a.new_zeros(x.shape[0], *a.shape[1:]) for a in added]
    for total, one in zip(sums, added, strict=True):
        total.index_add_(0, index, one * scale.to(one.dtype))
