"""What a network is asked: pieces of rows at one noise level each, and who answers them.

A piece belongs to one run; a forward holds pieces of many runs. Nothing here knows a network or the loop that runs it.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from serve_app.sampling.denoiser import Prediction
from serve_app.sampling.latents import LatentFormat
from serve_app.sampling.levels import Levels
from serve_app.sampling.transfer import sent
from serve_app.values import PackFunctions

Area = tuple[int, int, int, int]
"""(height, width, y, x) in latent cells."""


@dataclass(frozen=True, slots=True, eq=False)
class Canvas:
    """What a run samples. latents, noise: (B,C,h,w) as the network sees them; mask: (B,1,h,w), 1 where to sample.

    Where latents have an axis of time, it stands before h here and everywhere: (B,C,T,h,w), (B,1,T,h,w). seed: of the
    run, for what else is drawn for it.
    """

    latents: Tensor
    noise: Tensor
    mask: Tensor | None = None
    seed: int = 0

    @property
    def rows(self) -> int:
        return self.latents.shape[0]


class Inputs(Protocol):
    """What an entry of a conditioning tells a network beside x and sigma, for every row of a canvas.

    Each family has a class of its own.
    """

    def within(self, area: Area | None) -> Inputs:
        """Return the inputs of an area of the canvas; None: of the whole."""
        ...


@dataclass(frozen=True, slots=True, eq=False)
class Piece:
    """Rows that one entry of a conditioning asks for. x: (B,C,h,w), all at sigma, beside B rows of inputs.

    backbone: what answers it. role: of the branch that the entry is of. layers: what its layers do otherwise for these
    rows, as `layers` has it; a network passes over what it has no layers for. tie: pieces of equal ties share a forward
    if their group keys are equal, for their layers look at each other's rows.
    """

    backbone: Backbone
    x: Tensor
    sigma: float
    inputs: Inputs
    role: str = "positive"
    layers: tuple[Any, ...] = ()
    tie: object | None = None

    @property
    def rows(self) -> int:
        """How many rows of a forward it takes."""
        return self.x.shape[0]

    @property
    def cells(self) -> int:
        """How much work it is, in latent cells, of all its rows."""
        return self.backbone.network.cells(self)

    @property
    def group_key(self) -> Hashable:
        """What must be equal for pieces of equal backbones to share a forward."""
        return self.backbone.network.group_key(self)


class Network(Protocol):
    """A denoising network on a device, which answers rows of many runs at once. key: equal for equal weights."""

    @property
    def key(self) -> Hashable: ...

    def group_key(self, piece: Piece) -> Hashable:
        """Return what must be equal for pieces to share a forward, such as their shapes."""
        ...

    def cells(self, piece: Piece) -> int:
        """Return how much work a piece is, in latent cells, by which a forward's memory grows."""
        ...

    def answer(self, rows: Sequence[Any]) -> list[Tensor]:
        """Return the network's output for each of the rows, as backbones make them of pieces, from one forward."""
        ...


class Backbone(Protocol):
    """A denoising network as one recipe has it. key: equal for backbones whose pieces may share a forward."""

    @property
    def key(self) -> Hashable: ...

    @property
    def network(self) -> Network: ...

    @property
    def device(self) -> torch.device: ...

    @property
    def levels(self) -> Levels: ...

    @property
    def prediction(self) -> Prediction: ...

    @property
    def latent_format(self) -> LatentFormat: ...

    @property
    def sigmas(self) -> Tensor | None:
        """The levels of the run that it is of, as functions of node packs are told them; None before there is one."""
        ...

    def during(self, sigmas: Tensor) -> Backbone:
        """Return it for a run over these levels."""
        ...

    def inputs(self, cond: Tensor, options: Mapping[str, Any], role: str, canvas: Canvas) -> Inputs:
        """Return what an entry of a conditioning tells the network, for every row of the canvas.

        cond: (N,T,D). options: the entry's. role: "positive" or "negative": how it counts in the guidance.
        """
        ...

    def rows(self, piece: Piece, fed: Tensor, timestep: Tensor) -> Any:
        """Return what its network is asked for a piece. fed: its x as the network is fed it; timestep: (B,)."""
        ...

    def denoised(self, piece: Piece, output: Tensor) -> Tensor:
        """Return D(x, sigma) from the network's output for a piece, float32, shaped as its x."""
        ...

    def with_functions(self, functions: PackFunctions) -> Backbone:
        """Return it with functions of a node pack in place of its own, for its rows.

        Errors: NodeError where the family runs none.
        """
        ...

    def fed(self, piece: Piece) -> Tensor:
        """Return what the network is fed for a piece's x, float32."""
        ...

    def output(self, piece: Piece, denoised: Tensor) -> Tensor:
        """Return the network's output for a piece that gave D(x, sigma): undo `denoised`."""
        ...


def denoise(pieces: Sequence[Piece]) -> list[Tensor]:
    """Return each piece's D(x, sigma) from one forward. The keys of their backbones and their group keys are equal."""
    network, alike = pieces[0].backbone.network, _alike(pieces)
    asked: dict[int, Any] = {}
    for some in alike:
        for i, fed, timestep in zip(some.places, *some.split(some.fed(), some.timesteps()), strict=True):
            asked[i] = pieces[i].backbone.rows(pieces[i], fed, timestep)
    outputs = network.answer([asked[i] for i in range(len(pieces))])
    answers: dict[int, Tensor] = {}
    for some in alike:
        [denoised] = some.split(some.denoised([outputs[i] for i in some.places]))
        answers |= zip(some.places, denoised, strict=True)
    return [answers[i] for i in range(len(pieces))]


@dataclass(frozen=True, slots=True, eq=False)
class _Alike:
    """Pieces of a forward that are arithmetic of one kind, done at once: a device's time for it is its number of calls.

    places: theirs among all. x: (R,C,h,w), their rows. sigma: (R,), on the CPU.
    """

    levels: Levels
    prediction: Prediction
    places: Sequence[int]
    counts: Sequence[int]
    x: Tensor
    sigma: Tensor

    def fed(self) -> Tensor:
        return self.prediction.scale_input(self.x, self.sigma)

    def timesteps(self) -> Tensor:
        return sent(self.levels.timestep(self.sigma), self.x.device)

    def denoised(self, outputs: Sequence[Tensor]) -> Tensor:
        return self.prediction.denoised(self.x, _whole(outputs), self.sigma)

    def split(self, *wholes: Tensor) -> list[tuple[Tensor, ...]]:
        """Return each of the wholes (R,…) by piece."""
        return [torch.split(whole, list(self.counts)) for whole in wholes]


def _alike(pieces: Sequence[Piece]) -> list[_Alike]:
    by_kind: dict[Hashable, list[int]] = {}
    for i, piece in enumerate(pieces):
        kind = id(piece.backbone.levels), id(piece.backbone.prediction), piece.x.shape[1:], piece.x.dtype
        by_kind.setdefault(kind, []).append(i)
    made = []
    for places in by_kind.values():
        some = [pieces[i] for i in places]
        counts, backbone = [piece.rows for piece in some], some[0].backbone
        levels = [piece.sigma for piece in some for _ in range(piece.rows)]
        sigma, x = torch.tensor(levels, dtype=torch.float32), _whole([piece.x for piece in some])
        made.append(_Alike(backbone.levels, backbone.prediction, places, counts, x, sigma))
    return made


def _whole(parts: Sequence[Tensor]) -> Tensor:
    return parts[0] if len(parts) == 1 else torch.cat(list(parts))


def crop(rows: Tensor, area: Area) -> Tensor:
    """Return the area of (…,h,w)."""
    height, width, y, x = area
    return rows[..., y : y + height, x : x + width]


def to_batch(rows: Tensor, batch: int) -> Tensor:
    """Return rows (N,…) as (batch,…): one is shared by all, several are repeated in turn and cut."""
    if rows.shape[0] == batch:
        return rows
    if rows.shape[0] == 1:
        return rows.expand(batch, *rows.shape[1:])
    return rows.repeat(-(-batch // rows.shape[0]), *(1,) * (rows.ndim - 1))[:batch]
