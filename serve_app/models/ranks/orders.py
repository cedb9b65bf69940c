"""Messages from rank 0 to the others: orders of what to compute, which are pickled, and the tensors that follow.

An order has the rows of a call without their numbers, on the meta device: a call reads its input tensors, and of rows
only what its variant contains (`one_call`).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields, is_dataclass, replace
from math import prod
from typing import Any

import torch
from torch import Tensor

from serve_app.models.control.control import ActiveControl
from serve_app.models.families.family import Rows
from serve_app.models.forward import Inputs
from serve_app.models.ranks.division import Part
from serve_app.models.ranks.group import as_bytes
from serve_app.models.vae import PieceWork
from serve_app.recipe.recipe import Recipe

ALIGNED = 16
"""Bytes to whose multiples tensors are padded in one buffer, as kernels read them."""


@dataclass(frozen=True, slots=True)
class TensorShape:
    """A tensor without its numbers."""

    shape: tuple[int, ...]
    dtype: torch.dtype

    @property
    def nbytes(self) -> int:
        return prod(self.shape) * self.dtype.itemsize


@dataclass(frozen=True, slots=True)
class PartOrder:
    """A part of a forward. rows: outlines. inputs: by the call's names. blocks: the order of sharded ones."""

    part: Part
    rows: tuple[Rows, ...]
    inputs: Mapping[Any, TensorShape]
    blocks: tuple[int, ...] = ()

    @property
    def nbytes(self) -> int:
        """The bytes of all inputs in one buffer."""
        return sum(_padded(shape.nbytes) for shape in self.inputs.values())


@dataclass(frozen=True, slots=True)
class VaeOrder:
    """A VAE's work on strips of images begins. number: names it. rows: of latents, by rank."""

    number: int
    recipe: Recipe
    work: PieceWork
    rows: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class VaeStep:
    """The next piece of a VAE's work is made."""

    number: int


@dataclass(frozen=True, slots=True)
class VaeEnds:
    """VAEs' works have ended, or nobody waits for them."""

    numbers: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Failure:
    """Why a rank has no output for its rows, in a line."""

    reason: str
    out_of_memory: bool

    @classmethod
    def of(cls, error: Exception) -> Failure:
        return cls(f"{type(error).__name__}: {error}".partition("\n")[0], isinstance(error, torch.OutOfMemoryError))


def outline(rows: Rows) -> Rows:
    """Return rows without numbers, and without what only rank 0 computes with."""
    return replace(
        rows, x=_meta(rows.x), timestep=_meta(rows.timestep), inputs=_meta(rows.inputs), loras=None, sigmas=None
    )


def shapes_of(given: Inputs) -> dict[Any, TensorShape]:
    """Return the shapes of a call's inputs."""
    return {name: TensorShape(tuple(tensor.shape), tensor.dtype) for name, tensor in given.items()}


def packed(given: Inputs) -> Tensor:
    """Return a call's inputs in one buffer, so that they are one message."""
    flat = [as_bytes(tensor) for tensor in given.values()]
    return torch.cat([torch.nn.functional.pad(one, (0, _padded(len(one)) - len(one))) for one in flat])


def unpacked(buffer: Tensor, inputs: Mapping[Any, TensorShape]) -> dict[Any, Tensor]:
    """Return the inputs that were `packed`."""
    sizes = [_padded(shape.nbytes) for shape in inputs.values()]
    return {
        name: part[: shape.nbytes].view(shape.dtype).view(shape.shape)
        for (name, shape), part in zip(inputs.items(), torch.split(buffer, sizes), strict=True)
    }


def _padded(nbytes: int) -> int:
    return -(-nbytes // ALIGNED) * ALIGNED


def _meta(value: Any) -> Any:
    """Return a value with its tensors, also those of its fields, on the meta device and its ControlNets left out."""
    match value:
        case Tensor():
            return torch.empty(value.shape, dtype=value.dtype, device="meta")
        case tuple() if hasattr(value, "_fields"):
            return type(value)(*map(_meta, value))
        case tuple():
            return tuple(_meta(one) for one in value if not isinstance(one, ActiveControl))
    if not is_dataclass(value) or isinstance(value, type):
        return value
    return replace(value, **{field.name: _meta(getattr(value, field.name)) for field in fields(value) if field.init})
