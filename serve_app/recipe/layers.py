"""Changes to what a network's layers compute, and to when they do."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, TypeAlias


@dataclass(frozen=True, slots=True)
class DifferentialDiffusion:
    """Denoise a cell only while its mask exceeds the remaining fraction of the schedule; strength: how sharply."""

    strength: float


@dataclass(frozen=True, slots=True)
class FreeU:
    """Amplify the backbone's features (b) and damp the low frequencies of skip connections (s), at two widths.

    adaptive: only where the features are large, as in FreeU's second version.
    """

    b1: float
    b2: float
    s1: float
    s2: float
    adaptive: bool = False


@dataclass(frozen=True, slots=True)
class HyperTile:
    """Restrict a UNet's wide self-attention to tiles.

    size: the minimum side of a tile in latent cells; choices: number of divisions that one is drawn from; depth: number
    of resolutions that are tiled; scaled: tiles grow with them.
    """

    size: int
    choices: int
    depth: int
    scaled: bool


@dataclass(frozen=True, slots=True)
class TokenMerging:
    """Merge a share of the queries of a UNet's widest self-attention into their most similar ones (ToMe)."""

    ratio: float


@dataclass(frozen=True, slots=True)
class DeepShrink:
    """Downscale a UNet's features from a block of its encoder on, between two shares of the sampling.

    after_skip: skip connections keep their size. down, up: names of resize methods.
    """

    block: int
    factor: float
    start_percent: float
    end_percent: float
    after_skip: bool
    down: str
    up: str


@dataclass(frozen=True, slots=True)
class SparseAttention:
    """Attend to the best blocks of keys only, between two shares of the sampling.

    method: "vsa", "sla" or "sol-attn"; amount: percent of blocks that each block of queries keeps, of the last the
    threshold in deviations of scores. dense: numbers of the network's blocks that attend to all; least: rows of a
    sequence from which on it is sparse; extra: rows added to the best blocks, not by "vsa". sinks: "exact_kv": all that
    is given is attended to; "exact_kv_and_rows": and the sound attends to all; "off".
    """

    method: str
    amount: float
    start_percent: float = 0.2
    end_percent: float = 1.0
    dense: frozenset[int] = frozenset()
    least: int = 12288
    extra: int = 0
    sinks: str = "exact_kv_and_rows"


@dataclass(frozen=True, slots=True)
class EasyCache:
    """Reuse the network's residual of the step before while its input has changed little.

    threshold: the estimated relative change of the output up to which it is reused. whole: cache the guided result
    instead of each branch (LazyCache).
    """

    threshold: float
    start_percent: float = 0.15
    end_percent: float = 0.95
    whole: bool = False


@dataclass(frozen=True)
class ScaledPositions:
    """Scale and shift the positions of a video's tokens, by frame, row and column."""

    OPTION: ClassVar[str] = "rope_options"
    """Its name among a conditioning's options."""

    scale: tuple[float, float, float]
    shift: tuple[float, float, float]


@dataclass(frozen=True, slots=True)
class ReferenceMethod:
    """How reference latents are placed where a conditioning does not say; see `families/shared/references.py`."""

    name: str


LayerPatch: TypeAlias = FreeU | HyperTile | TokenMerging | DeepShrink | SparseAttention
"""Changes to what a network's layers compute, by row; weights stay."""
