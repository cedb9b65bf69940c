"""What a network is asked: pieces of rows at one noise level each, and who answers them.

A piece belongs to one run; a forward holds pieces of many runs. Nothing here knows a network or the loop that runs it.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Protocol

import torch
from torch import Tensor

from serve_app.recipe import PackFunctions
from serve_app.sampling.denoiser import Prediction
from serve_app.sampling.latents.latents import LatentFormat
from serve_app.sampling.lazy_sum import Latents, LazySum, compute, value
from serve_app.sampling.schedules.levels import Levels

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
class ModelInput:
    """What a network reads of x at a level. fed: x as it is fed it, float32; timestep: (B,), what it is told."""

    fed: Latents
    timestep: Latents


@dataclass(frozen=True, slots=True, eq=False)
class Piece:
    """Rows that one entry of a conditioning asks for. x: (B,C,h,w), all at sigma, beside B rows of inputs.

    backbone: what answers it. role: of the branch that the entry is of. layers: what its layers do otherwise for these
    rows, as `layers` has it; a network passes over what it has no layers for. tie: pieces of equal ties share a forward
    if their group keys are equal, for their layers look at each other's rows. reading: of x, if it is computed already.
    """

    backbone: Backbone
    x: Tensor
    sigma: float
    inputs: Inputs
    role: str = "positive"
    layers: tuple[Any, ...] = ()
    tie: object | None = None
    reading: ModelInput | None = None

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

    def padded_rows(self, rows: int) -> int:
        """Return how many rows a forward of so many takes memory for, at most; no fewer for more."""
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
    def keeps_clean(self) -> bool:
        """Whether its network sees what a mask keeps without noise, whatever the level."""
        ...

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

    def apart(self, piece: Piece) -> list[Piece]:
        """Return a piece for each row of a piece, in order, or the piece alone where its rows depend on each other."""
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
    denoised = [denoised_by(piece, output) for piece, output in zip(pieces, answered(pieces), strict=True)]
    compute(denoised)
    return [value(latents) for latents in denoised]


def answered(pieces: Sequence[Piece]) -> list[Tensor]:
    """Return the network's output for each piece from one forward. Their keys are as those of `denoise`."""
    unread = [piece for piece in pieces if piece.reading is None]
    made = readings([(piece.backbone, piece.x, piece.sigma) for piece in unread])
    compute(latents for reading in made for latents in (reading.fed, reading.timestep))
    known = dict(zip(map(id, unread), made, strict=True))
    asked = []
    for piece in pieces:
        reading = piece.reading or known[id(piece)]
        asked.append(piece.backbone.rows(piece, value(reading.fed), value(reading.timestep)))
    return pieces[0].backbone.network.answer(asked)


def denoised_by(piece: Piece, output: Tensor) -> LazySum:
    """Return a piece's D(x, sigma) by the network's output for it, still to be computed."""
    scaling = piece.backbone.prediction.scaling(piece.sigma)
    denoised = LazySum.of(output) * scaling.c_out
    return denoised + LazySum.of(piece.x) * scaling.c_skip if scaling.c_skip else denoised


def readings(asked: Sequence[tuple[Backbone, Latents, float]]) -> list[ModelInput]:
    """Return what networks are to read for latents x (B,C,h,w) at levels, still to be computed. asked: the three."""
    made: dict[Hashable, ModelInput] = {}
    for backbone, x, sigma in asked:
        key = id(x), sigma, id(backbone.prediction), id(backbone.levels)
        if key not in made:
            made[key] = _reading(backbone, x, sigma)
    return [made[id(x), sigma, id(backbone.prediction), id(backbone.levels)] for backbone, x, sigma in asked]


def reads_alike(backbone: Backbone, other: Backbone) -> bool:
    """Whether two backbones read the same of any latents."""
    return backbone.prediction is other.prediction and backbone.levels is other.levels


def _reading(backbone: Backbone, x: Latents, sigma: float) -> ModelInput:
    told = float(backbone.levels.timestep(torch.tensor(sigma, dtype=torch.float32)))
    ones = _ones(x.device, x.shape[0])
    return ModelInput(LazySum.of(x) * backbone.prediction.scaling(sigma).c_in, LazySum.of(ones) * told)


@lru_cache(maxsize=64)
def _ones(device: torch.device, rows: int) -> Tensor:
    """Return ones (rows,), kept, for what is told a network of a level: it is a table's number times these."""
    return torch.ones(rows, device=device)


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
