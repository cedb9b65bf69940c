"""Changes of weights: LoRAs, merges, scales, and the dtype or place in which they are kept."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, TypeAlias

if TYPE_CHECKING:
    from serve_app.recipe.recipe import Recipe


@dataclass(frozen=True, slots=True)
class Lora:
    """A LoRA file of the folder "loras", applied at a strength.

    bypass: added to layers' outputs instead of the weights: merges, saved files and other changes do not include it,
    and it is not rounded with the weights.
    """

    name: str
    strength: float
    bypass: bool = False


@dataclass(frozen=True, slots=True)
class Towards:
    """Add the difference of another model's weights to those of the file, times a strength."""

    other: Recipe
    strength: float


@dataclass(frozen=True, slots=True)
class Share:
    """The proportion in which tensors of two models are mixed: own times one's plus other times the other's.

    prefix: of the tensors' names in the published file; the longest that fits applies, "" fits all.
    """

    prefix: str
    own: float
    other: float


@dataclass(frozen=True, slots=True)
class Merge:
    """Mix in another recipe's weights; tensors that it lacks stay as they are."""

    other: Recipe
    shares: tuple[Share, ...]


@dataclass(frozen=True, slots=True)
class Scale:
    """Multiply the weights and biases of layers. factors: pairs of a suffix of the layers' names and a factor."""

    factors: tuple[tuple[str, float], ...]


WeightChange: TypeAlias = Lora | Towards | Merge | Scale
"""Changes of a part's weights, whose order matters."""
EightBit: TypeAlias = Literal["float8_e4m3fn", "float8_e5m2"]


@dataclass(frozen=True, slots=True)
class Rounded:
    """Weights rounded to an eight-bit dtype when they are loaded, and computed with in a wider one."""

    to: EightBit


DEFAULT_DTYPE = "default"


@dataclass(frozen=True, slots=True)
class ComputedIn:
    """The dtype of a backbone's weights and computation: fp32, fp16, bf16, or DEFAULT_DTYPE, as configured."""

    dtype: str


@dataclass(frozen=True, slots=True)
class Streams:
    """Stream a backbone's weights to the GPU during each forward. share: of the weight budget that stays resident."""

    share: float


@dataclass(frozen=True, slots=True)
class Sharded:
    """Keep a part of each block's weights on each of a replica's devices, and gather them during each forward."""
