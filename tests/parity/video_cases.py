"""Small autoencoders of videos, nodes for latents of videos, and what ComfyUI is asked of both for golden/videos.npz.

Weights and inputs are drawn from names. A case is a node and its inputs: images of so many frames, or latents of so
many moments. Sides are no multiples of what a latent covers, nor frames of four and one.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from tests.parity.dit_cases import noise

WAN21: dict[str, Any] = {
    "dim": 8,
    "z_dim": 16,
    "temperal_downsample": [False, True, True],
}
WAN22: dict[str, Any] = {
    "dim": 8,
    "dec_dim": 12,
    "z_dim": 48,
    "temperal_downsample": [False, True, True],
}
"""ComfyUI's arguments of small ones of Wan 2.1 and of Wan 2.2."""

CELL = {"wan21": 8, "wan22": 16}
"""How many pixels a latent covers along a side."""


@dataclass(frozen=True)
class Case:
    """A node and its inputs beside the VAE. frames: of the images that it encodes; 0 for a node that decodes.

    moments: how many moments of latents it decodes; batch: how many videos those are of.
    """

    node: str
    frames: int = 0
    moments: int = 0
    batch: int = 1
    more: Mapping[str, int] = field(default_factory=dict)

    @property
    def name(self) -> str:
        return " ".join(map(str, (self.node, self.frames, self.moments, self.batch, *self.more.values())))

    def given(self, net: str) -> dict[str, Any]:
        """Return its inputs beside the VAE: images (F,H,W,3), some with a mask of them, or latents (B,C,T,h,w)."""
        cell = CELL[net]
        height = 8 if "Tiled" in self.node else 4
        if not self.frames:
            channels = {"wan21": WAN21, "wan22": WAN22}[net]["z_dim"]
            latents = noise(f"{self.name} latents", (self.batch, channels, self.moments, height, 3))
            return {"samples": {"samples": latents}, **self.more}
        size = (self.frames, height * cell + 3, 4 * cell - 3)
        pixels = noise(f"{self.name} pixels", (*size, 3)).sigmoid()
        mask = {"mask": noise(f"{self.name} mask", size).sigmoid()} if self.node == "VAEEncodeForInpaint" else {}
        return {"pixels": pixels, **mask, **self.more}


def _tiles(size: int, overlap: int, frames: int, frames_shared: int) -> Mapping[str, int]:
    return {"tile_size": size, "overlap": overlap, "temporal_size": frames, "temporal_overlap": frames_shared}


CASES: Sequence[Case] = (
    Case("VAEEncodeForInpaint", frames=1, more={"grow_mask_by": 6}),
    Case("VAEEncode", frames=1),
    Case("VAEEncode", frames=3),
    Case("VAEEncode", frames=10),
    Case("VAEDecode", moments=1, batch=2),
    Case("VAEDecode", moments=3),
    Case("VAEDecode", moments=2, batch=2),
    Case("VAEEncodeTiled", frames=12, more=_tiles(64, 16, 8, 4)),
    Case("VAEEncodeTiled", frames=6, more=_tiles(64, 16, 64, 8)),
    Case("VAEEncodeTiled", frames=14, more=_tiles(512, 64, 8, 16)),
    Case("VAEDecodeTiled", moments=4, more=_tiles(64, 16, 8, 4)),
    Case("VAEDecodeTiled", moments=5, more=_tiles(64, 16, 12, 8)),
    Case("VAEDecodeTiled", moments=2, batch=2, more=_tiles(64, 32, 64, 8)),
    Case("VAEDecodeTiled", moments=5, more=_tiles(512, 64, 16, 12)),
)


def _latent(name: str, *shape: int) -> dict[str, Any]:
    return {"samples": noise(f"{name} operated", shape)}


_ONE, _OTHER = _latent("one", 2, 3, 3, 9, 10), _latent("other", 2, 3, 3, 9, 10)
_LARGER = _latent("larger", 1, 3, 3, 12, 11)
OPERATIONS: Sequence[tuple[str, dict[str, Any]]] = (
    ("LatentBatch", {"samples1": _ONE, "samples2": _LARGER}),
    ("LatentAdd", {"samples1": _ONE, "samples2": _LARGER}),
    ("LatentBlend", {"samples1": _ONE, "samples2": _OTHER, "blend_factor": 0.3}),
    ("LatentConcat", {"samples1": _ONE, "samples2": _OTHER, "dim": "-t"}),
    ("LatentCut", {"samples": _ONE, "dim": "t", "index": -2, "amount": 5}),
    ("LatentCutToBatch", {"samples": _ONE, "dim": "t", "slice_size": 1}),
    ("LatentFromBatch", {"samples": _ONE, "batch_index": 1, "length": 1}),
    ("RepeatLatentBatch", {"samples": _ONE, "amount": 2}),
    ("LatentUpscaleBy", {"samples": _ONE, "upscale_method": "bislerp", "scale_by": 1.4}),
    ("LatentUpscale", {"samples": _ONE, "upscale_method": "bicubic", "width": 120, "height": 64, "crop": "center"}),
    ("LatentFlip", {"samples": _ONE, "flip_method": "y-axis: horizontally"}),
    ("LatentRotate", {"samples": _ONE, "rotation": "90 degrees"}),
    ("LatentMultiply", {"samples": _ONE, "multiplier": 1.5}),
)
"""Nodes that change latents of videos (B,C,T,h,w), with their inputs."""
