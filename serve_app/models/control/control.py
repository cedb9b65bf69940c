"""Applies ControlNets to the rows of a forward and sums their outputs.

One forward of a backbone has rows of many jobs, each with its own chain of controls; rows with the same ControlNet, of
any job, are one batch of it. A hint is encoded once per run and size. The family says how a network works, and where
its backbone adds the outputs.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol, TypeAlias

import torch
from torch import Tensor

from serve_app.errors import NodeError
from serve_app.images import resize
from serve_app.recipe.controls import HintKind
from serve_app.recipe.recipe import Recipe
from serve_app.sampling.forward import to_batch
from serve_app.sampling.schedules.levels import Levels, single
from serve_app.sampling.transfer import to_device
from serve_app.values import Conditioning, Control

Conds: TypeAlias = Mapping[str, Conditioning]


class Autoencoder(Protocol):
    """Encodes hints for networks that read latents."""

    @property
    def factor(self) -> int: ...

    def encode(self, images: Tensor) -> Tensor:
        """Return the latents (B,c,h,w), unscaled, of images (B,H,W,C) in 0…1, on its device."""
        ...


@dataclass(frozen=True, slots=True, eq=False)
class Hint:
    """The input of a control. image: (N,H,W,C) in 0…1. kind: of the hint; None: unspecified.

    mask: (N,H,W), 1 where to repaint. vae: for networks that read latents.
    """

    image: Tensor
    kind: int | None = None
    mask: Tensor | None = None
    vae: Autoencoder | None = None


@dataclass(frozen=True, slots=True)
class Spread:
    """Assigns a control's outputs to blocks of one kind. answers: indices of outputs; blocks: the first n blocks.

    run: how many consecutive blocks share an output; 0: outputs take turns. once: only after the first of them.
    """

    kind: str
    answers: range
    blocks: int
    run: int = 0
    once: bool = False

    def answer(self, block: int) -> int | None:
        """Return the index of the output to add after a block; None for none."""
        if self.once and block % self.run:
            return None
        number = block // self.run if self.run else block % max(1, len(self.answers))
        return self.answers[number] if block < self.blocks and number < len(self.answers) else None


class ControlNet(ABC):
    """A control network on its device, whose outputs are added inside a backbone.

    key: equal for equal weights. name: for errors. adds_to: where in the backbone, as its family reads it; outputs of
    networks with equal adds_to are summed.
    """

    adds_to: Hashable

    def __init__(self, key: Hashable, name: str) -> None:
        self.key = key
        self.name = name

    @abstractmethod
    def check(self, hint: Hint, backbone: Any) -> None:
        """Errors: NodeError for an unsuitable hint or a backbone of another family."""

    def strength(self, asked: float) -> float:
        """Return the factor of its outputs at a control's strength."""
        return asked

    @abstractmethod
    def read(self, hint: Hint, height: int, width: int) -> list[Tensor]:
        """Return a hint's tensors for latents of height×width, (N,…) each; valid for a whole run."""

    def padded_rows(self, rows: int) -> int:
        """Return the batch size that a batch of `rows` is padded to; unpadded by default."""
        return rows

    @abstractmethod
    def residuals(self, call: Any, index: RowIndex, read: Sequence[Tensor], exclusive: bool) -> Sequence[Tensor]:
        """Return the outputs to add to some rows of a forward.

        call: the inputs of the family's backbone for all rows. index: these rows, (R',). read: as from `read`, for
        these rows. exclusive: outputs do not depend, to the bit, on earlier forwards.
        """


def of_another_family(name: str, made_for: str, backbone: Any) -> NodeError:
    """Return the error for a network used with another family's backbone. made_for: its own family."""
    return NodeError(f"'{name}' is made for {made_for}, and the model is {backbone.title}")


def resized(hint: Tensor, height: int, width: int) -> Tensor:
    """Return a hint (N,H,W,C) as (N,C,height,width), cropped to the centre where proportions differ."""
    return resize(hint.float(), width, height, "nearest-exact", "center").movedim(-1, 1)


@dataclass(frozen=True, slots=True, eq=False)
class ActiveControl:
    """One control in one run, active from sigma `above` down to sigma `below`."""

    net: ControlNet
    control: Control
    hint: Hint
    above: float
    below: float
    _read: dict[tuple[int, int], list[Tensor]] = field(default_factory=dict)

    def acts(self, sigma: float) -> bool:
        """Whether it is active at a level."""
        return self.below <= single(sigma) <= self.above

    def read(self, height: int, width: int) -> list[Tensor]:
        """Return its hint's tensors for latents of a size; an area of a canvas gets the whole hint."""
        if (height, width) not in self._read:
            self._read[height, width] = self.net.read(self.hint, height, width)
        return self._read[height, width]


def kind_of(recipe: Recipe) -> int | None:
    """Return the hint kind that a recipe's last HintKind sets; None: unspecified."""
    named = recipe.last(HintKind)
    return None if named is None else named.kind


def recipes(conds: Conds) -> tuple[Recipe, ...]:
    """Return the recipes of all ControlNets in conditionings, each once."""
    return tuple(dict.fromkeys(control.recipe for control in _all(conds)))


def vaes(conds: Conds) -> dict[Recipe, set[Recipe]]:
    """Return the recipes of ControlNets' VAEs, by the ControlNets' recipes."""
    given: dict[Recipe, set[Recipe]] = {}
    for control in _all(conds):
        if control.vae is not None:
            given.setdefault(control.recipe, set()).add(control.vae)
    return given


def activated(
    conds: Conds,
    nets: Mapping[Recipe, ControlNet],
    backbone: Any,
    levels: Levels,
    vaes: Mapping[Recipe, Autoencoder] | None = None,
) -> dict[str, Conditioning]:
    """Return the conditionings with each "control" as the ActiveControls of its chain, first applied first.

    backbone: of the family to control. vaes: those that encode hints. A control shared by entries is one ActiveControl,
    so its hint is encoded once. Errors: NodeError as `ControlNet.check`.
    """
    made: dict[Control, ActiveControl] = {}
    controlled: dict[str, Conditioning] = {}
    for role, conditioning in conds.items():
        controlled[role] = []
        for cond, options in conditioning:
            if options.get("control") is None:
                controlled[role].append((cond, options))
                continue
            chain = list(_chain(options["control"]))[::-1]
            for control in chain:
                if control not in made:
                    made[control] = _activated(control, nets[control.recipe], backbone, levels, vaes or {})
            controlled[role].append((cond, {**options, "control": tuple(map(made.__getitem__, chain))}))
    return controlled


def _activated(
    control: Control, net: ControlNet, backbone: Any, levels: Levels, vaes: Mapping[Recipe, Autoencoder]
) -> ActiveControl:
    vae = None if control.vae is None else vaes.get(control.vae)
    hint = Hint(control.hint, kind_of(control.recipe), control.mask, vae)
    net.check(hint, backbone)
    return ActiveControl(
        net, control, hint, levels.at_progress(control.start_percent), levels.at_progress(control.end_percent)
    )


def _all(conds: Conds) -> Iterator[Control]:
    for conditioning in conds.values():
        for _, options in conditioning:
            yield from _chain(options.get("control"))


def _chain(control: Control | None) -> Iterator[Control]:
    while control is not None:
        yield control
        control = control.previous


RowIndex: TypeAlias = Tensor | slice
"""Rows of a forward, as indices (R',) or a slice: indexes tensors (R,…)."""


@dataclass(frozen=True, slots=True, eq=False)
class Controlled:
    """Neighbouring rows of a forward at one level, with their controls. exclusive: as of `Rows`."""

    count: int
    sigma: float
    controls: Sequence[ActiveControl]
    exclusive: bool = False


@dataclass(frozen=True, slots=True, eq=False)
class _Acting:
    """A control, the rows of a forward that it acts on, and its hint's tensors for them."""

    rows: range
    control: ActiveControl
    read: list[Tensor]


def control_residuals(rows: Sequence[Controlled], call: Any, x: Tensor) -> dict[Any, list[Tensor]]:
    """Return the sums of all controls' outputs for the rows of a forward, by `ControlNet.adds_to`: (R,…) each.

    rows: all of them, in order. call: as for `ControlNet.residuals`. x: (R,C,h,w). Empty if no control is active; rows
    without one get zeros.
    """
    sums: dict[Any, list[Tensor]] = {}
    exclusive = any(some.exclusive for some in rows)
    for (net, _), acting in _together(rows, x.shape[-2], x.shape[-1]).items():
        numbers = [i for part in acting for i in part.rows]
        lacking = 0 if exclusive else net.padded_rows(len(numbers)) - len(numbers)
        index = _index(numbers, x.device)
        asked = _index([*numbers, *numbers[-1:] * lacking], x.device) if lacking else index
        strengths = [net.strength(p.control.control.strength) for p in acting for _ in p.rows]
        each = [[to_batch(said, len(part.rows)) for said in part.read] for part in acting]
        if lacking:
            each.append([to_batch(said[-1:], lacking) for said in each[-1]])
        added = net.residuals(call, asked, [torch.cat(said) for said in zip(*each, strict=True)], exclusive)
        made = _placed([one[: len(numbers)] for one in added], strengths, index, x.shape[0])
        known = sums.get(net.adds_to)
        sums[net.adds_to] = made if known is None else [a + b for a, b in zip(known, made, strict=True)]
    return sums


def _index(rows: Sequence[int], device: torch.device) -> RowIndex:
    """Return an index of rows. Neighbours are a slice, which on a GPU costs nothing."""
    if list(rows) == list(range(rows[0], rows[0] + len(rows))):
        return slice(rows[0], rows[0] + len(rows))
    return to_device(torch.tensor(rows), device)


def _together(rows: Sequence[Controlled], height: int, width: int) -> dict[tuple[ControlNet, Hashable], list[_Acting]]:
    """Return active controls grouped by batches of a ControlNet: their hints' tensors have equal shapes."""
    under: dict[tuple[ControlNet, Hashable], list[_Acting]] = {}
    first = 0
    for some in rows:
        for control in some.controls:
            if control.acts(some.sigma):
                read = control.read(height, width)
                shapes = tuple(said.shape[1:] for said in read)
                one = _Acting(range(first, first + some.count), control, read)
                under.setdefault((control.net, shapes), []).append(one)
        first += some.count
    return under


def _placed(added: Sequence[Tensor], strengths: Sequence[float], index: RowIndex, count: int) -> list[Tensor]:
    """Return (count,…) of each tensor (R',…): its rows times their strengths at the index, zeros elsewhere.

    Tensors are processed together, so that a GPU launches few kernels however many there are.
    """
    is_whole = isinstance(index, slice) and index == slice(0, count)
    is_plain = all(strength == 1.0 for strength in strengths)
    if is_whole and is_plain:
        return list(added)
    flat = torch.cat([one.flatten(1) for one in added], dim=1)
    if not is_plain:
        flat = flat * to_device(torch.tensor(strengths), flat.device).to(flat.dtype)[:, None]
    if not is_whole:
        whole = flat.new_zeros(count, flat.shape[1])
        if isinstance(index, slice):
            whole[index] = flat
        else:
            # A network applied twice to a row is added twice.
            whole.index_add_(0, index, flat)
        flat = whole
    parts = torch.split(flat, [one[0].numel() for one in added], dim=1)
    return [part.view(count, *one.shape[1:]) for part, one in zip(parts, added, strict=True)]
