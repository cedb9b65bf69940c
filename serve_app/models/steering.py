"""ControlNets and T2I-Adapters at work: which act on which rows of a forward, and what the backbone is given of them.

One forward of a backbone holds rows of many jobs, each with a chain of controls of its own; rows that are under the
same ControlNet, of whichever job, are one forward of it. A hint is read once a run and size.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeAlias, cast

import torch
from torch import Tensor

from serve_app.errors import NodeError
from serve_app.images import resize
from serve_app.models.controlnet import ControlNetwork
from serve_app.models.families import UNetArchitecture
from serve_app.models.t2i_adapter import AdapterNetwork
from serve_app.sampling.forward import Piece, to_batch
from serve_app.sampling.levels import Levels, single
from serve_app.values import Conditioning, Control, HintKind, Recipe

PIXELS = 8
"""Pixels of a hint to a latent cell, along one side."""

Conds: TypeAlias = Mapping[str, Conditioning]


class ControlNet:
    """A ControlNet or a T2I-Adapter on its device. key: equal for equal weights. name: what errors call it."""

    def __init__(self, key: Hashable, name: str, network: ControlNetwork | AdapterNetwork) -> None:
        self.key = key
        self.name = name
        self.network = network

    def check(self, hint: Tensor, kind: int | None, architecture: UNetArchitecture) -> None:
        """Errors: NodeError for a hint (N,H,W,C), a kind of hint, or a backbone that it does not go with."""
        network = self.network
        wanted = network.hint_channels
        # An adapter for grey hints takes the mean of the colours.
        if hint.shape[-1] != wanted and not (isinstance(network, AdapterNetwork) and wanted == 1):
            raise NodeError(f"the hint has {hint.shape[-1]} channels; '{self.name}' takes {wanted}")
        theirs: tuple[int, ...]
        if isinstance(network, AdapterNetwork):
            theirs, ours = network.architecture.channels, architecture.channels
            # SDXL's adapters have a feature for the middle as well, as wide as the last level.
            fits = theirs == (ours if network.architecture.unshuffle == PIXELS else (*ours, ours[-1]))
        else:
            network.check_kind(kind)
            made_for = network.architecture
            theirs = (*made_for.channels, made_for.context_dim, made_for.vector_dim)
            ours = (*architecture.channels, architecture.context_dim, architecture.vector_dim)
            fits = theirs == ours and made_for.res_blocks == architecture.res_blocks
        if not fits:
            raise NodeError(
                f"'{self.name}' is made for another family than the model: its widths are {theirs}, the model's {ours}"
            )

    def read(self, hint: Tensor, kind: int | None, height: int, width: int) -> list[Tensor]:
        """Return what a hint (N,H,W,C) says for latents of height×width, (N,…) each; it holds for a whole run.

        Of a T2I-Adapter, the features; of a ControlNet, the embedded hint and, if it tells kinds apart, the kind.
        """
        network = self.network
        device = next(network.parameters()).device
        if isinstance(network, AdapterNetwork):
            unit = network.architecture.unshuffle
            sides = (-(-side * PIXELS // unit) * unit for side in (height, width))
            pixels = _resized(hint, *sides).to(device)
            if network.hint_channels == 1:
                pixels = pixels.mean(dim=1, keepdim=True)
            features: list[Tensor] = network(pixels)
            return features
        embedded = network.embed(_resized(hint, height * PIXELS, width * PIXELS).to(device), kind)
        said = network.kind_embedding(kind)
        return [embedded] if said is None else [embedded, said]


def _resized(hint: Tensor, height: int, width: int) -> Tensor:
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
    kinds = [patch.kind for patch in recipe.patches if isinstance(patch, HintKind)]
    return kinds[-1] if kinds else None


def recipes(conds: Conds) -> tuple[Recipe, ...]:
    """Return the recipes of all the ControlNets that conditionings are under, each once."""
    controls = (options.get("control") for conditioning in conds.values() for _, options in conditioning)
    return tuple(dict.fromkeys(control.recipe for last in controls for control in _chain(last)))


def activated(
    conds: Conds, nets: Mapping[Recipe, ControlNet], architecture: UNetArchitecture, levels: Levels
) -> dict[str, Conditioning]:
    """Return the conditionings with each "control" as the ActiveControls of its chain, first applied first.

    A control of several entries is one ActiveControl, so its hint is read once. Errors: NodeError as `check`.
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
                    made[control] = _activated(control, nets[control.recipe], architecture, levels)
            controlled[role].append((cond, {**options, "control": tuple(map(made.__getitem__, chain))}))
    return controlled


def _activated(control: Control, net: ControlNet, architecture: UNetArchitecture, levels: Levels) -> ActiveControl:
    net.check(control.hint, kind_of(control.recipe), architecture)
    return ActiveControl(
        net, control, levels.at_progress(control.start_percent), levels.at_progress(control.end_percent)
    )


def _chain(control: Control | None) -> Iterator[Control]:
    while control is not None:
        yield control
        control = control.previous


@dataclass(frozen=True, slots=True, eq=False)
class _Rows:
    """The rows of a forward, from first on, that a control acts on."""

    first: int
    piece: Piece
    control: ActiveControl

    @property
    def indices(self) -> range:
        return range(self.first, self.first + self.piece.rows)


def steered(
    pieces: Sequence[Piece],
    x: Tensor,
    timestep: Tensor,
    context: Tensor,
    context_mask: Tensor | None = None,
    vector: Tensor | None = None,
) -> dict[str, Any]:
    """Return the arguments by which diffusers' UNet is told what to add, for the rows of all the pieces.

    x: (R,C,h,w), scaled, without the channels that go beside it. timestep: (R,). context: (R,T,D); context_mask: (R,T),
    True where it counts. vector: (R,A). {} if no control acts; rows without one are added zeros.
    """
    under = _by_net(pieces)
    skips: list[Tensor] = []
    features: list[Tensor] = []
    for net, rows in under.items():
        index = torch.tensor([i for part in rows for i in part.indices], device=x.device)
        strength = torch.tensor([p.control.control.strength for p in rows for _ in p.indices], device=x.device)
        read = _read(rows, x.shape[-2], x.shape[-1])
        if isinstance(net.network, AdapterNetwork):
            _add(features, read, index, strength, x)
            continue
        mask = None if context_mask is None else context_mask[index]
        told = None if vector is None else vector[index]
        residuals = net.network(x[index], timestep[index], context[index], mask, told, *read)
        _add(skips, residuals, index, strength, x)
    arguments: dict[str, Any] = {}
    if skips:
        arguments["down_block_additional_residuals"] = tuple(skips[:-1])
        arguments["mid_block_additional_residual"] = skips[-1]
    if features:
        arguments["down_intrablock_additional_residuals"] = features
    return arguments


def _by_net(pieces: Sequence[Piece]) -> dict[ControlNet, list[_Rows]]:
    under: dict[ControlNet, list[_Rows]] = {}
    first = 0
    for piece in pieces:
        for control in cast("tuple[ActiveControl, ...]", piece.inputs.controls):
            if control.acts(piece.sigma):
                under.setdefault(control.net, []).append(_Rows(first, piece, control))
        first += piece.rows
    return under


def _read(rows: Sequence[_Rows], height: int, width: int) -> list[Tensor]:
    """Return what the hints say for all the rows, (R',…) each."""
    each = [[to_batch(said, r.piece.rows) for said in r.control.read(height, width)] for r in rows]
    return [torch.cat(said) for said in zip(*each, strict=True)]


def _add(sums: list[Tensor], added: Sequence[Tensor], index: Tensor, strength: Tensor, x: Tensor) -> None:
    """Add to the sums, (R,…) each, what some rows are given. index: which, (R',); strength: (R',)."""
    scale = strength[:, None, None, None]
    if not sums:
        sums += [a.new_zeros(x.shape[0], *a.shape[1:]) for a in added]
    for total, one in zip(sums, added, strict=True):
        total.index_add_(0, index, one * scale.to(one.dtype))
