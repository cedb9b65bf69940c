"""Functions of ComfyUI's `comfy_extras` and training modules, other than node classes.

Source: the facts of ComfyUI 0.33's modules.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from serve_app.nodes.image.compositing import paste
from serve_app.packs.comfy import samplers


def composite(
    destination: Tensor,
    source: Tensor,
    x: int,
    y: int,
    mask: Tensor | None = None,
    multiplier: int = 8,
    resize_source: bool = False,
) -> Tensor:
    """Paste source (B,C,h,w) into destination (B,C,H,W), in place, and return that.

    x, y: where, 0 or more, times multiplier. mask: 1 where source is visible. resize_source: to destination's size.
    """
    return destination.copy_(paste(destination, source, x // multiplier, y // multiplier, mask, resize_source))


COMFY_EXTRAS: Mapping[str, Any] = {
    made.__name__: made
    for made in (
        composite,
        samplers.Noise_RandomNoise,
        samplers.Noise_EmptyNoise,
        samplers.Guider_Basic,
        samplers.Guider_DualCFG,
    )
}
"""What modules of `comfy_extras` have beside node classes."""


class FolderOfImages:
    """The suffixes of files that packs take for images. It reads no folder."""

    IMG_EXTENSIONS = frozenset({".jpg", ".jpeg", ".png", ".ppm", ".bmp", ".pgm", ".tif", ".tiff", ".webp"})


K_DIFFUSION_UTILS: Mapping[str, Any] = {"FolderOfImages": FolderOfImages}
"""What `comfy.k_diffusion.utils` has."""
