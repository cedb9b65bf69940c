"""Small networks of SeedVR2, and what they are asked, here and in ComfyUI."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from tests.parity.dit_cases import drawn, noise

TEXT, TEXTS = 48, {"positive": 5, "negative": 7}
"""Width and tokens of the texts that files hold."""
_NET: dict[str, Any] = {
    "norm_eps": 1e-5,
    "num_layers": 4,
    "vid_dim": 64,
    "txt_in_dim": TEXT,
    "heads": 2,
    "head_dim": 32,
    "mm_layers": 2,
}
LARGE_WIDTH = 96
"""By which ComfyUI knows the network of 7 B."""
_LARGE: dict[str, Any] = {**_NET, "vid_dim": LARGE_WIDTH, "heads": 3, "rope_type": "rope3d", "rope_dim": 16}
NETS: dict[str, dict[str, Any]] = {
    "3b": {**_NET, "mlp_type": "swiglu", "vid_out_norm": True, "rope_dim": 32},
    "7b": {**_LARGE, "mlp_type": "normal", "mm_layers": 4},
    "7b shared": {**_LARGE, "mlp_type": "swiglu"},
}
"""ComfyUI's arguments of each network."""
WIDTHS = (32, 32, 64, 64)
"""Of the autoencoder's levels."""
FASTER = 1.5
"""The frequencies in the file of "3b" are those usual times this."""
SIZE = (3, 10, 14)
"""Latent frames, rows and columns."""
SEED, CFG, STEPS = 7, 1.5, 2
IMAGES = (7, 40, 90)
"""Frames, rows and columns of the video that is made sharp."""
TILE, SHARED = 64, 16
CHUNK, OVERLAP = 5, 1
"""Images of a part of the video, and latent frames that parts share."""


def weights(shapes: Mapping[str, Any]) -> dict[str, Tensor]:
    """Return weights of these names and shapes."""
    return {name: drawn(name, shape) for name, shape in shapes.items()}


def asked() -> tuple[Tensor, Tensor, Tensor]:
    """Return latents, what they are to follow, and a text, of two videos."""
    return noise("x", (2, 16, *SIZE)), noise("condition", (2, 17, *SIZE)), noise("text", (2, 6, TEXT))


def video() -> Tensor:
    """Return the images of a video with an alpha channel."""
    frames, rows, columns = IMAGES
    coarse = noise("video", (frames, 4, rows // 10, columns // 10)).sigmoid()
    return coarse.repeat_interleave(10, 2).repeat_interleave(10, 3).movedim(1, -1).contiguous()
