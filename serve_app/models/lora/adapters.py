"""The kinds of LoRA: how an adapter changes one weight, and merging of several into it.

A kind encodes a large change in few numbers: as a product of low-rank matrices, of Kronecker or Hadamard factors, or a
rotation. It knows neither files nor networks; `layouts` reads adapters from files, `layers` applies them to a network.
Where the papers leave room, and where ComfyUI departs from them, the numbers are ComfyUI's.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any, ClassVar

import torch
from torch import Tensor

from serve_app import log
from serve_app.models.files.layout import Place, placed
from serve_app.sampling.transfer import to_device

_log = log.get("models")


class Adapter(ABC):
    """One change of one weight."""

    of_file: ClassVar[bool] = False
    """Whether its change depends on the file's weight alone, not on earlier changes of it."""

    @abstractmethod
    def change(self, weight: Tensor, strength: float) -> Tensor:
        """Return the addition to a float32 weight at a strength. Errors: RuntimeError if it does not fit the weight.

        It may depend on the weight, and not linearly on the strength.
        """

    def low_rank(self) -> tuple[Tensor, Tensor, float] | None:
        """Return (down (r,n), up (out,r), scale) if the change is strength·scale·up·down for any weight, else None.

        n is the number of weights of one output: in, or in·k·k.
        """
        return None

    def part(self, place: Place, rows: int) -> Adapter:
        """Return its effect on the part of a weight that goes to a place. rows: of the whole weight."""
        return Part(self, place, rows)

    def sent(self, send: Callable[[Tensor], Tensor]) -> Adapter:
        """Return it with `send` applied to each of its tensors."""
        of: Any = self
        changed: Adapter = replace(of, **{field.name: _sent(getattr(self, field.name), send) for field in fields(of)})
        return changed


def merged(weight: Tensor, adapters: Sequence[tuple[Adapter, float]]) -> Tensor:
    """Return the weight with each (adapter, strength) applied in order, in float32, rounded once to its own dtype.

    An adapter that does not fit the weight is left out with a warning.
    """
    own = result = weight.float()
    for adapter, strength in adapters:
        seen = own if adapter.of_file else result
        try:
            result = result + adapter.change(seen, strength).reshape(result.shape)
        except RuntimeError as error:
            _log.warning("a %s does not fit a weight of %s: %s", type(adapter).__name__, tuple(weight.shape), error)
    return result.to(weight.dtype)


@dataclass(frozen=True, eq=False)
class LowRank(Adapter):
    """LoRA and LoCon: up·down. up: (out,r,…), down: (r,in,…). magnitude: DoRA's, or None.

    Source: Hu et al. 2021, arXiv:2106.09685.
    """

    up: Tensor
    down: Tensor
    scale: float
    magnitude: Tensor | None = None

    def change(self, weight: Tensor, strength: float) -> Tensor:
        product = _f32(self.up, weight).flatten(1) @ _f32(self.down, weight).flatten(1)
        return _scaled(weight, product, self.scale, self.magnitude, strength)

    def low_rank(self) -> tuple[Tensor, Tensor, float] | None:
        return None if self.magnitude is not None else (self.down.flatten(1), self.up.flatten(1), self.scale)

    def part(self, place: Place, rows: int) -> Adapter:
        if self.magnitude is None:
            return replace(self, up=placed(self.up, place))
        if self.magnitude.shape[0] == rows:
            return replace(self, up=placed(self.up, place), magnitude=placed(self.magnitude, place))
        return Part(self, place, rows)


@dataclass(frozen=True, eq=False)
class Hadamard(Adapter):
    """LoHa: the elementwise product of two products a (·,r) · b (r,·), for convolutions with a core (r,r,k,k).

    Source: Hyeon-Woo et al. 2021, arXiv:2108.06098; Yeh et al. 2023, arXiv:2309.14859.
    """

    first: tuple[Tensor, Tensor, Tensor | None]
    second: tuple[Tensor, Tensor, Tensor | None]
    scale: float
    magnitude: Tensor | None = None

    def change(self, weight: Tensor, strength: float) -> Tensor:
        product = _factor(self.first, weight) * _factor(self.second, weight)
        return _scaled(weight, product, self.scale, self.magnitude, strength)


@dataclass(frozen=True, eq=False)
class Kronecker(Adapter):
    """LoKr: the Kronecker product of two factors, each whole or itself of low rank (a, b, core as in `Hadamard`).

    Source: Yeh et al. 2023, arXiv:2309.14859.
    """

    first: Tensor | tuple[Tensor, Tensor, Tensor | None]
    second: Tensor | tuple[Tensor, Tensor, Tensor | None]
    scale: float
    magnitude: Tensor | None = None

    def change(self, weight: Tensor, strength: float) -> Tensor:
        first, second = _factor(self.first, weight), _factor(self.second, weight)
        if second.dim() == 4:
            first = first[..., None, None]
        # torch.kron refuses some factors whose strides are permuted, as einsum leaves a core's.
        return _scaled(
            weight, torch.kron(first.contiguous(), second.contiguous()), self.scale, self.magnitude, strength
        )


@dataclass(frozen=True, eq=False)
class Generalized(Adapter):
    """GLoRA: W·a1·a2 + b1·b2; files of LyCORIS before 2.0 have each pair transposed.

    Source: Chavan et al. 2023, arXiv:2306.07967.
    """

    a1: Tensor
    a2: Tensor
    b1: Tensor
    b2: Tensor
    alpha: float | None
    magnitude: Tensor | None = None

    def change(self, weight: Tensor, strength: float) -> Tensor:
        a1, a2, b1, b2 = (_f32(t, weight).flatten(1) for t in (self.a1, self.a2, self.b1, self.b2))
        # The orientation shows only in the shapes, and for a square weight of the same rank not even there.
        old = b2.shape[1] == b1.shape[0] == a1.shape[0] == a2.shape[1]
        rank = a1.shape[0] if old else a2.shape[0]
        if b2.shape[0] == b1.shape[1] == a1.shape[1] == a2.shape[0]:
            old = old and a2.shape[0] == weight.shape[0] == weight.shape[1]
            rank = rank if old else a2.shape[0]
        if old:
            product = b2 @ b1 + weight.flatten(1) @ a2 @ a1
        else:
            along_inputs = torch.einsum("oi...,ij,jk->ok...", weight, a1, a2)
            product = along_inputs + (b1 @ b2).reshape(weight.shape)
        scale = 1.0 if self.alpha is None else self.alpha / rank
        return _scaled(weight, product, scale, self.magnitude, strength)


@dataclass(frozen=True, eq=False)
class Rotation(Adapter):
    """OFT: each block of outputs rotated by its own matrix. blocks: (n,b,b). limit: of the blocks' norm; 0 for none.

    The strength is applied twice, as in ComfyUI. Source: Qiu et al. 2023, arXiv:2306.07280.
    """

    blocks: Tensor
    limit: float
    magnitude: Tensor | None = None

    def change(self, weight: Tensor, strength: float) -> Tensor:
        rotation = _rotations(_f32(self.blocks, weight), self.limit)
        number, size, _ = rotation.shape
        turn = strength * (rotation - torch.eye(size, device=weight.device))
        grouped = weight.reshape(number, size, *weight.shape[1:])
        product = torch.einsum("knm,kn...->km...", turn, grouped).reshape(weight.shape)
        if self.magnitude is None:
            return strength * product
        return _decomposed(weight, product, self.limit, self.magnitude, strength)


@dataclass(frozen=True, eq=False)
class Butterfly(Adapter):
    """BOFT: outputs rotated in m rounds, paired over twice the distance each round. blocks: (m,n,b,b).

    limit: of the blocks' norm; 0 none. rescale: factors of the outputs, or None. The strength is applied in each round
    and once more, as in ComfyUI. Source: Liu et al. 2023, arXiv:2311.06243.
    """

    blocks: Tensor
    limit: float
    rescale: Tensor | None = None
    magnitude: Tensor | None = None

    def change(self, weight: Tensor, strength: float) -> Tensor:
        rotations = _rotations(_f32(self.blocks, weight), self.limit)
        size = rotations.shape[-1]
        identity = torch.eye(size, device=weight.device)
        turned, rest = weight, weight.shape[1:]
        for index, rotation in enumerate(rotations):
            stride = 2**index * (size // 2)
            partly = rotation * strength + (1 - strength) * identity
            turned = turned.reshape(-1, 2, stride, *rest).transpose(1, 2).reshape(-1, size, *rest)
            turned = torch.einsum("bij,bj...->bi...", partly, turned)
            turned = turned.reshape(-1, stride, 2, *rest).transpose(1, 2).reshape(weight.shape)
        if self.rescale is not None:
            turned = turned * _f32(self.rescale, weight)
        if self.magnitude is None:
            return strength * (turned - weight)
        return _decomposed(weight, turned - weight, self.limit, self.magnitude, strength)


@dataclass(frozen=True, eq=False)
class WeightDelta(Adapter):
    """A full-size change of a weight, a bias or a norm."""

    difference: Tensor

    def change(self, weight: Tensor, strength: float) -> Tensor:
        if self.difference.shape != weight.shape:
            raise RuntimeError(f"the difference is {tuple(self.difference.shape)}")
        return strength * _f32(self.difference, weight)


@dataclass(frozen=True, eq=False)
class WeightReplacement(Adapter):
    """A weight that replaces the original, whatever the strength."""

    value: Tensor

    def change(self, weight: Tensor, strength: float) -> Tensor:
        return _f32(self.value, weight) - weight


@dataclass(frozen=True, eq=False)
class Other(Adapter):
    """Another model's weight, towards which the original moves. weight: reads it."""

    of_file: ClassVar[bool] = True

    weight: Callable[[], Tensor]

    def sent(self, send: Callable[[Tensor], Tensor]) -> Adapter:
        there = send(self.weight())
        return Other(lambda: there)

    def change(self, weight: Tensor, strength: float) -> Tensor:
        return (_f32(self.weight(), weight) - weight) * strength


@dataclass(frozen=True, eq=False)
class WeightScale(Adapter):
    """The weight times a factor, whatever the strength."""

    factor: float

    def change(self, weight: Tensor, strength: float) -> Tensor:
        return weight * (self.factor - 1)


@dataclass(frozen=True, eq=False)
class Part(Adapter):
    """Part of another adapter's change of a weight, of which this weight has some rows.

    The other must not depend on the weight, whose other rows are not here.
    """

    whole: Adapter
    place: Place
    rows: int

    def change(self, weight: Tensor, strength: float) -> Tensor:
        if not isinstance(self.whole, Hadamard | Kronecker | WeightDelta | WeightReplacement) or (
            getattr(self.whole, "magnitude", None) is not None
        ):
            raise RuntimeError("it changes a weight that is several here by the whole of it")
        alike = weight.new_zeros(self.rows or weight.shape[0], *weight.shape[1:])
        change = placed(self.whole.change(alike, strength), self.place)
        return change - weight if isinstance(self.whole, WeightReplacement) else change


def _sent(value: Any, send: Callable[[Tensor], Tensor]) -> Any:
    """Return a field of an adapter with `send` applied to its tensors."""
    match value:
        case Tensor():
            return send(value)
        case Adapter():
            return value.sent(send)
        case tuple():
            return tuple(_sent(one, send) for one in value)
    return value


def _f32(tensor: Tensor, like: Tensor) -> Tensor:
    return to_device(tensor, like.device).to(torch.float32)


def _factor(parts: Tensor | tuple[Tensor, Tensor, Tensor | None], like: Tensor) -> Tensor:
    if isinstance(parts, Tensor):
        return _f32(parts, like)
    a, b, core = parts
    if core is None:
        return _f32(a, like) @ _f32(b, like)
    return torch.einsum("ijkl,jr,ip->prkl", _f32(core, like), _f32(b, like), _f32(a, like))


def _rotations(blocks: Tensor, limit: float) -> Tensor:
    """Return Cayley's orthogonal matrix (1+Q)(1−Q)⁻¹ of each block's skew part Q, whose total norm is limited."""
    skew = blocks - blocks.transpose(-1, -2)
    if limit > 0:
        norm = skew.norm() + 1e-8
        skew = torch.where(norm > limit, skew * limit / norm, skew)
    identity = torch.eye(blocks.shape[-1], device=blocks.device)
    # Always regular, so that a GPU need not be waited for to see whether it is.
    inverse: Tensor = torch.linalg.inv_ex(identity - skew).inverse
    return (identity + skew) @ inverse


def _scaled(weight: Tensor, product: Tensor, scale: float, magnitude: Tensor | None, strength: float) -> Tensor:
    product = product.reshape(weight.shape)
    if magnitude is None:
        return strength * scale * product
    return _decomposed(weight, product, scale, magnitude, strength)


def _decomposed(weight: Tensor, product: Tensor, scale: float, magnitude: Tensor, strength: float) -> Tensor:
    """Return DoRA's change: the changed weight with the trained magnitude, blended by `strength`.

    A magnitude (out,1,…) is for outputs and divides by the norms of the original weight, as in ComfyUI; a magnitude
    (1,in,…) is for inputs and divides by those of the changed weight. Source: Liu et al. 2024, arXiv:2402.09353.
    """
    magnitude = _f32(magnitude, weight)
    moved = weight + scale * product
    dims = [d for d in range(weight.dim()) if d != (0 if magnitude.shape[0] == weight.shape[0] else 1)]
    of = weight if dims[0] != 0 else moved
    norm: Tensor = torch.linalg.vector_norm(of, dim=dims, keepdim=True) + torch.finfo(torch.float32).eps
    change = strength * (moved * (magnitude / norm) - weight)
    if change.shape != weight.shape:
        raise RuntimeError(f"the magnitude is {tuple(magnitude.shape)}")
    return change
