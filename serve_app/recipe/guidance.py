"""Changes to how a step's branches are combined."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeAlias


@dataclass(frozen=True, slots=True)
class RescaleCfg:
    """Rescale the guided result to the positive's standard deviation; multiplier: 0…1, blend with the unscaled one."""

    multiplier: float


@dataclass(frozen=True, slots=True)
class RenormCfg:
    """Guide below a noise level alone, and limit the guided result's norm to a multiple of the positive's (0: none)."""

    below: float
    limit: float


@dataclass(frozen=True, slots=True)
class CfgByFrame:
    """Guide the frames of a video by different scales: from `lowest` at the first to the run's at the last.

    triangle: back to `lowest` at the last, with the run's in the middle.
    """

    lowest: float
    triangle: bool = False


@dataclass(frozen=True, slots=True)
class CfgZeroStar:
    """Scale the negative to be nearest to the positive before guiding away from it."""


@dataclass(frozen=True, slots=True)
class CfgNorm:
    """Clip the guided result's norm, per latent cell, to the positive's; then scale it by strength."""

    strength: float


@dataclass(frozen=True, slots=True)
class NoiseNorm:
    """Scale the guided noise, per latent cell, towards the norm of the positive's; strength: 0…1, 0 for none."""

    strength: float


@dataclass(frozen=True, slots=True)
class TangentialDamping:
    """Remove the negative's component orthogonal to the direction it shares with the positive (ComfyUI's TCFG)."""


@dataclass(frozen=True, slots=True)
class Mahiro:
    """Prefer the positive's own direction where guidance and negative agree."""


@dataclass(frozen=True, slots=True)
class AdaptiveProjection:
    """Scale guidance parallel to the positive by eta, limit its norm (0: no limit), and add momentum (APG)."""

    eta: float
    norm_threshold: float
    momentum: float


@dataclass(frozen=True, slots=True)
class FrequencyScaling:
    """Scale low and high frequencies of guidance; cutoff: number of low ones of each sign (FreSca)."""

    low: float
    high: float
    cutoff: int


@dataclass(frozen=True, slots=True)
class EpsilonScaling:
    """Divide the predicted noise after guidance by a factor."""

    factor: float


@dataclass(frozen=True, slots=True)
class TemporalRescaling:
    """Scale the score as if the variance of Gaussian data, sigma², were divided by k (TSR)."""

    k: float
    sigma: float


@dataclass(frozen=True, slots=True)
class CfgOverride:
    """Guide at another scale between two shares of the sampling."""

    scale: float
    start_percent: float
    end_percent: float


@dataclass(frozen=True, slots=True)
class PerturbedAttention:
    """Guide away from the positive without the middle's self-attention (PAG)."""

    scale: float


@dataclass(frozen=True, slots=True)
class SelfAttentionGuidance:
    """Guide away from the negative blurred where it attends most (SAG); blur: a Gaussian's sigma."""

    scale: float
    blur: float


@dataclass(frozen=True, slots=True)
class SkippedBlocks:
    """Blocks of a diffusion transformer that rows skip: double-stream and single-stream ones."""

    doubles: tuple[int, ...] = ()
    singles: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class PerturbedStreams:
    """What rows of a video with its sound do without.

    stilled: blocks in whose self-attention each token sees only itself. apart: the streams do not attend to each other.
    unreferenced: the sound has no reference.
    """

    stilled: tuple[int, ...] = ()
    apart: bool = False
    unreferenced: bool = False


@dataclass(frozen=True, slots=True)
class SkipLayerGuidance:
    """Guide away from the positive with some blocks skipped or perturbed, between two shares of the sampling (SLG).

    rescaling: share by which the result is brought to the positive's standard deviation.
    """

    skipped: SkippedBlocks | PerturbedStreams
    scale: float
    start_percent: float
    end_percent: float
    rescaling: float = 0.0


@dataclass(frozen=True, slots=True)
class WeakNegative:
    """Evaluate the negative with some blocks skipped, between two shares of the sampling."""

    skipped: SkippedBlocks
    start_percent: float
    end_percent: float


@dataclass(frozen=True, slots=True)
class NormalizedAttention:
    """Guide the positive's self-attention away from the negative's (NAG).

    tau: limit on its norm, as a multiple of the unguided one; alpha: blend with the unguided result.
    """

    scale: float
    alpha: float
    tau: float


@dataclass(frozen=True, slots=True)
class OperatedGuidance:
    """Apply a latent operation to guidance, as in `sampling/latents/latent_operations.py`."""

    operation: Callable[..., Any]


GuidancePatch: TypeAlias = (
    RescaleCfg
    | RenormCfg
    | CfgByFrame
    | NoiseNorm
    | CfgZeroStar
    | CfgNorm
    | TangentialDamping
    | Mahiro
    | AdaptiveProjection
    | FrequencyScaling
    | EpsilonScaling
    | TemporalRescaling
    | CfgOverride
    | PerturbedAttention
    | SelfAttentionGuidance
    | SkipLayerGuidance
    | WeakNegative
    | NormalizedAttention
    | OperatedGuidance
)
"""Changes to how branches are combined, not to the network's weights."""
