"""The node that gives images the colours of others, by statistics of their pixels.

Sources: Reinhard et al. 2001, "Color Transfer between Images"; Pitié and Kokaram 2007, "The Linear Monge-Kantorovitch
Linear Colour Mapping for Example-Based Colour Transfer"; matching of histograms by their cumulated shares.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Annotated, Any, TypeAlias

import torch
from torch import Tensor

from serve_app.errors import NodeError
from serve_app.nodes.declare import node
from serve_app.nodes.inputs import Combo, DynamicCombo, Float, Int
from serve_app.nodes.sockets import IMAGE

Mapped: TypeAlias = Callable[[Tensor], Tensor]
"""From the colours of a frame (3,N) to its new ones."""

WHITE = torch.tensor([0.95047, 1.0, 1.08883])[:, None]
"""XYZ of D65."""
TO_XYZ = torch.tensor([[0.412453, 0.357580, 0.180423], [0.212671, 0.715160, 0.072169], [0.019334, 0.119193, 0.950227]])
"""From linear RGB. Source: ITU-R BT.709's primaries under D65."""
FROM_XYZ = torch.linalg.inv(TO_XYZ.double()).float()
DARK, SLOPE, OFFSET = 0.008856, 7.787, 4.0 / 29.0
"""Below this share of white, CIE L*a*b* is a line."""
LEAST_SPREAD = 1e-6
LEVELS = 256
"""How many values a channel's histogram tells apart."""


def _flat(frame: Tensor) -> Tensor:
    """Return a frame (H,W,3) as (3,H·W)."""
    return frame.float().reshape(-1, 3).T


def to_lab(rgb: Tensor) -> Tensor:
    """Return sRGB (3,N) in 0…1 as CIE L*a*b*, L* in 0…100."""
    linear = torch.where(rgb > 0.04045, ((rgb + 0.055) / 1.055).clamp(min=0) ** 2.4, rgb / 12.92)
    share = TO_XYZ @ linear / WHITE
    x, y, z = torch.where(share > DARK, share.clamp(min=DARK) ** (1 / 3), SLOPE * share + OFFSET)
    return torch.stack([116 * y - 16, 500 * (x - y), 200 * (y - z)])


def from_lab(lab: Tensor) -> Tensor:
    """Return CIE L*a*b* (3,N) as sRGB, cut to 0…1."""
    y = (lab[0] + 16) / 116
    roots = torch.stack([lab[1] / 500 + y, y, (y - lab[2] / 200).clamp(min=0)])
    share = torch.where(roots > DARK ** (1 / 3), roots**3, (roots - OFFSET) / SLOPE)
    linear = FROM_XYZ @ (share * WHITE)
    rgb = torch.where(linear > 0.0031308, 1.055 * linear.clamp(min=0.0031308) ** (1 / 2.4) - 0.055, 12.92 * linear)
    return rgb.clamp(0, 1)


def _moments(frames: list[Tensor]) -> tuple[Tensor, Tensor]:
    """Return the mean (3,1) and the covariance (3,3) of frames' colours, each frame counting alike; in float64."""
    mean = torch.stack([frame.double().mean(1, keepdim=True) for frame in frames]).mean(0)
    centred = (frame.double() - mean for frame in frames)
    return mean, torch.stack([frame @ frame.T / frame.shape[1] for frame in centred]).mean(0)


def _affine(matrix: Tensor, source_mean: Tensor, reference_mean: Tensor) -> Mapped:
    return lambda frame: (matrix @ (frame.double() - source_mean) + reference_mean).float()


def _reinhard(source: list[Tensor], reference: list[Tensor]) -> Mapped:
    """Return the map that gives each channel the reference's mean and standard deviation."""
    (source_mean, source_cov), (reference_mean, reference_cov) = _moments(source), _moments(reference)
    spreads = (cov.diagonal().sqrt().clamp(min=LEAST_SPREAD) for cov in (reference_cov, source_cov))
    return _affine(torch.diag(next(spreads) / next(spreads)), source_mean, reference_mean)


def _monge_kantorovich(source: list[Tensor], reference: list[Tensor]) -> Mapped:
    """Return the linear map that gives the reference's mean and covariance and moves colours least."""
    (source_mean, source_cov), (reference_mean, reference_cov) = _moments(source), _moments(reference)
    values, vectors = torch.linalg.eigh(source_cov)
    spread = values.clamp(min=0).sqrt().clamp(min=LEAST_SPREAD)
    half, inverse = (vectors @ torch.diag(scale) @ vectors.T for scale in (spread, 1 / spread))
    values, vectors = torch.linalg.eigh(half @ reference_cov @ half)
    root = vectors @ torch.diag(values.clamp(min=0).sqrt()) @ vectors.T
    return _affine(inverse @ root @ inverse, source_mean, reference_mean)


def _histogram(source: list[Tensor], reference: list[Tensor]) -> Mapped:
    """Return the map that gives each channel the reference's histogram."""
    table = torch.searchsorted(_cumulated(reference), _cumulated(source)).clamp(max=LEVELS - 1) / (LEVELS - 1)
    return lambda frame: table.gather(1, _levels(frame))


def _levels(frame: Tensor) -> Tensor:
    return (frame * (LEVELS - 1)).long().clamp(0, LEVELS - 1)


def _cumulated(frames: list[Tensor]) -> Tensor:
    """Return the share (3,LEVELS) of the frames' pixels that are no brighter than each level."""
    counts = torch.stack(
        [torch.stack([torch.bincount(row, minlength=LEVELS) for row in _levels(frame)]) for frame in frames]
    )
    cumulated = counts.sum(0).cumsum(1).float()
    return cumulated / cumulated[:, -1:]


def _as_it_is(colours: Tensor) -> Tensor:
    return colours


METHODS: Mapping[str, tuple[Mapped, Mapped, Callable[[list[Tensor], list[Tensor]], Mapped]]] = {
    "reinhard_lab": (to_lab, from_lab, _reinhard),
    "mkl_lab": (to_lab, from_lab, _monge_kantorovich),
    "histogram": (_as_it_is, _as_it_is, _histogram),
}
"""How colours are written, how they are read again, and what maps a source's onto a reference's."""


SourceStats: TypeAlias = Annotated[
    Mapping[str, Any],
    DynamicCombo({"per_frame": {}, "uniform": {}, "target_frame": {"target_index": Int(0, min=0, max=10000)}}),
]


@node(
    "ColorTransfer",
    "Transfer Color",
    category="image/filters",
    function="transfer",
    return_names=("image",),
    description="Gives the target the colours of the reference: their mean and spread, or their histograms.",
    search_aliases=("color match", "color grading", "match colors", "mkl", "reinhard", "histogram"),
    required=("strength",),
)
def color_transfer(
    image_target: IMAGE,
    image_ref: IMAGE,
    method: Annotated[str, Combo(METHODS)],
    source_stats: SourceStats,
    strength: Annotated[float, Float(1.0, min=0.0, max=10.0, step=0.01)] = 1.0,
) -> IMAGE:
    """Images with the colours of others.

    Return the target (B,H,W,3); above a strength of 1 its colours go beyond the reference's.

    source_stats: what is brought to the reference, which the target's frames follow: each frame itself
    ("per_frame", to the reference of its place, the last for those beyond), all ("uniform"), or one.
    Errors: NodeError for images with alpha.
    """
    if strength == 0:
        return image_target
    if {image_target.shape[-1], image_ref.shape[-1]} != {3}:
        raise NodeError(f"the images have {image_target.shape[-1]} and {image_ref.shape[-1]} channels; 3 are needed")
    encode, decode, fit = METHODS[method]
    targets, references = ([encode(_flat(frame)) for frame in batch] for batch in (image_target, image_ref))
    stats = source_stats["source_stats"]
    if stats == "per_frame":
        last = len(references) - 1
        maps = [fit([frame], [references[min(i, last)]]) for i, frame in enumerate(targets)]
    else:
        chosen = min(source_stats.get("target_index", 0), len(targets) - 1)
        source = targets if stats == "uniform" else targets[chosen : chosen + 1]
        maps = [fit(source, references)] * len(targets)
    frames = [
        decode(torch.lerp(frame, mapped(frame), strength)).clamp(0, 1).T.reshape(image_target.shape[1:])
        for frame, mapped in zip(targets, maps, strict=True)
    ]
    return torch.stack(frames)
