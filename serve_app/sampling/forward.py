"""Inputs of a batched forward: pieces of rows at one noise level each, and the protocols of the networks that run them.

A piece belongs to one run; a forward combines pieces of many runs. Nothing here knows a network or the loop that runs
it.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Protocol, TypeAlias, runtime_checkable

import torch
from torch import Tensor

from serve_app.recipe.pack_functions import PackFunctions
from serve_app.sampling.denoiser import Prediction
from serve_app.sampling.latents.latents import LatentFormat
from serve_app.sampling.latents.layout import ONE_PART, LatentLayout
from serve_app.sampling.lazy_sum import Latents, LazySum, compute, value
from serve_app.sampling.schedules.levels import Levels

Area = tuple[int, int, int, int]
"""(height, width, y, x) in latent cells."""


@dataclass(frozen=True, slots=True, eq=False)
class Canvas:
    """The latents and noise of a run. latents, noise: (B,C,h,w), scaled for the network; mask: (B,1,h,w), 1: sample.

    Video latents have a time axis before h, here and everywhere: (B,C,T,h,w), (B,1,T,h,w). seed: of the run, for other
    noise that it draws. layout: of several parts, which are packed: (B,1,N), and so is the mask.
    """

    latents: Tensor
    noise: Tensor
    mask: Tensor | None = None
    seed: int = 0
    layout: LatentLayout = ONE_PART

    @property
    def rows(self) -> int:
        return self.latents.shape[0]


Injection: TypeAlias = Callable[[Tensor, float, Tensor], Tensor]
"""From a run's x, a noise level and the mask there to the latents that the run keeps, all of one shape."""


class Inputs(Protocol):
    """A network's conditioning inputs for every row of a canvas. Each family has a class of its own."""

    def within(self, area: Area | None) -> Inputs:
        """Return the inputs for an area of the canvas; None: for the whole canvas."""
        ...


@runtime_checkable
class InBlocks(Protocol):
    """Conditioning inputs of a network that can make a video block by block."""

    def in_blocks(self, blocks: tuple[int, ...]) -> Inputs:
        """Return the inputs for x in blocks. blocks: as `Evaluation`."""
        ...


@dataclass(frozen=True, slots=True, eq=False)
class ModelInput:
    """What a network reads at a noise level. fed: x times c_in, float32; timestep: (B,), the level in its own unit."""

    fed: Latents
    timestep: Latents


@dataclass(frozen=True, slots=True, eq=False)
class Piece:
    """Rows of one conditioning entry. x: (B,C,h,w), all at sigma, with B rows of conditioning inputs.

    backbone: runs it. role: the entry's branch. layers: patches of layers for these rows, as in `guidance.layers`; a
    network ignores those for layers it lacks. tie: pieces with equal ties and group keys must share a forward, as their
    layers read each other's rows. model_input: its model input, if already computed.
    """

    backbone: Backbone
    x: Tensor
    sigma: float
    inputs: Inputs
    role: str = "positive"
    layers: tuple[Any, ...] = ()
    tie: object | None = None
    model_input: ModelInput | None = None

    @property
    def rows(self) -> int:
        """Its number of rows in a batch."""
        return self.x.shape[0]

    @property
    def cells(self) -> int:
        """Its work in latent cells, over all rows."""
        return self.backbone.network.cells(self)

    @property
    def group_key(self) -> Hashable:
        """What must be equal for pieces of equal backbones to share a forward."""
        return self.backbone.network.group_key(self)


class Network(Protocol):
    """A denoising network on a device, which runs batches from many runs. key: equal for equal weights."""

    @property
    def key(self) -> Hashable: ...

    def group_key(self, piece: Piece) -> Hashable:
        """Return what must be equal for pieces to share a forward, such as their shapes."""
        ...

    def cells(self, piece: Piece) -> int:
        """Return a piece's work in latent cells, with which a forward's memory grows."""
        ...

    def padded_rows(self, rows: int) -> int:
        """Return the batch size whose memory a forward of `rows` takes, at most; monotonic."""
        ...

    def answer(self, rows: Sequence[Any]) -> list[Tensor]:
        """Run one forward and return the network's output for each of the rows, which backbones make of pieces."""
        ...


class Backbone(Protocol):
    """A denoising network with the patches of one recipe. key: equal for backbones whose pieces may share a forward."""

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
        """Whether masked-out latents reach its network without noise at every level."""
        ...

    def injection(self, canvas: Canvas) -> Injection | None:
        """Return what a run has in the place of what it keeps; None: the latents with noise, or clean ones."""
        ...

    @property
    def sigmas(self) -> Tensor | None:
        """Noise levels of its run, as node packs' functions receive them; None before there is a run."""
        ...

    def during(self, sigmas: Tensor) -> Backbone:
        """Return a copy for a run over these levels."""
        ...

    def inputs(self, cond: Tensor, options: Mapping[str, Any], role: str, canvas: Canvas) -> Inputs:
        """Return an entry's conditioning inputs for every row of the canvas.

        cond: (N,T,D). options: the entry's. role: "positive" or "negative": its sign in the guidance.
        """
        ...

    def rows(self, piece: Piece, fed: Tensor, timestep: Tensor) -> Any:
        """Return the rows of a batch for a piece. fed: x times c_in; timestep: (B,)."""
        ...

    def denoised(self, piece: Piece, output: Tensor) -> Tensor:
        """Return D(x, sigma) from the network's output for a piece, float32, shaped as its x."""
        ...

    @property
    def takes_rows_together(self) -> bool:
        """Whether all rows of a run must go into one forward, as they depend on each other."""
        ...

    def apart(self, piece: Piece) -> list[Piece]:
        """Return one piece for each row, in order, or the piece itself where its rows depend on each other."""
        ...

    def with_functions(self, functions: PackFunctions) -> Backbone:
        """Return a copy whose rows call these functions of a node pack instead.

        Errors: NodeError where the family calls none.
        """
        ...

    def fed(self, piece: Piece) -> Tensor:
        """Return the piece's x as the network reads it, times c_in, float32."""
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
    """Return the network's output for each piece from one forward. Keys are equal, as in `denoise`."""
    unread = [piece for piece in pieces if piece.model_input is None]
    made = model_inputs([(piece.backbone, piece.x, piece.sigma) for piece in unread])
    compute(latents for model_input in made for latents in (model_input.fed, model_input.timestep))
    known = dict(zip(map(id, unread), made, strict=True))
    asked = []
    for piece in pieces:
        model_input = piece.model_input or known[id(piece)]
        asked.append(piece.backbone.rows(piece, value(model_input.fed), value(model_input.timestep)))
    return pieces[0].backbone.network.answer(asked)


def denoised_by(piece: Piece, output: Tensor) -> LazySum:
    """Return a piece's D(x, sigma) as a lazy sum of the network's output for it."""
    scaling = piece.backbone.prediction.scaling(piece.sigma)
    denoised = LazySum.of(output) * scaling.c_out
    return denoised + LazySum.of(piece.x) * scaling.c_skip if scaling.c_skip else denoised


def model_inputs(asked: Sequence[tuple[Backbone, Latents, float]]) -> list[ModelInput]:
    """Return the model inputs of (backbone, x (B,C,h,w), sigma) triples as lazy sums."""
    made: dict[Hashable, ModelInput] = {}
    for backbone, x, sigma in asked:
        key = id(x), sigma, id(backbone.prediction), id(backbone.levels)
        if key not in made:
            made[key] = _model_input(backbone, x, sigma)
    return [made[id(x), sigma, id(backbone.prediction), id(backbone.levels)] for backbone, x, sigma in asked]


def same_model_inputs(backbone: Backbone, other: Backbone) -> bool:
    """Whether two backbones compute equal model inputs for equal latents."""
    return backbone.prediction is other.prediction and backbone.levels is other.levels


def _model_input(backbone: Backbone, x: Latents, sigma: float) -> ModelInput:
    told = float(backbone.levels.timestep(torch.tensor(sigma, dtype=torch.float32)))
    ones = _ones(x.device, x.shape[0])
    return ModelInput(LazySum.of(x) * backbone.prediction.scaling(sigma).c_in, LazySum.of(ones) * told)


@lru_cache(maxsize=64)
def _ones(device: torch.device, rows: int) -> Tensor:
    """Return ones (rows,), cached: a timestep is a lazy sum of them, with the table's number as its factor."""
    return torch.ones(rows, device=device)


def crop(rows: Tensor, area: Area) -> Tensor:
    """Return the area of (…,h,w)."""
    height, width, y, x = area
    return rows[..., y : y + height, x : x + width]


def to_batch(rows: Tensor, batch: int) -> Tensor:
    """Return rows (N,…) as (batch,…): one row is broadcast, several are repeated in turn and cut."""
    if rows.shape[0] == batch:
        return rows
    if rows.shape[0] == 1:
        return rows.expand(batch, *rows.shape[1:])
    return rows.repeat(-(-batch // rows.shape[0]), *(1,) * (rows.ndim - 1))[:batch]
