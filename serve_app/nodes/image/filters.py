"""The nodes that filter IMAGE: blending, blurring, sharpening, and few colours."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Annotated, TypeAlias

import numpy as np
import torch
from PIL import Image
from torch.nn.functional import conv2d, normalize, pad

from serve_app.errors import NodeError
from serve_app.nodes.declare import node
from serve_app.nodes.image.match_size import resize
from serve_app.nodes.inputs import Choice, Combo, Float, Int
from serve_app.nodes.sockets import IMAGE

BLENDS: Mapping[str, Callable[[torch.Tensor, torch.Tensor], torch.Tensor]] = {
    "normal": lambda a, b: b,
    "multiply": lambda a, b: a * b,
    "screen": lambda a, b: 1 - (1 - a) * (1 - b),
    "overlay": lambda a, b: torch.where(a <= 0.5, 2 * a * b, 1 - 2 * (1 - a) * (1 - b)),
    "soft_light": lambda a, b: torch.where(
        b <= 0.5, a - (1 - 2 * b) * a * (1 - a), a + (2 * b - 1) * (_soft_light_curve(a) - a)
    ),
    "difference": lambda a, b: a - b,
}
"""Backdrop and source to their mix. Source: W3C Compositing and Blending Level 1; its "difference" is absolute,
ComfyUI's is not."""


@node(
    "MarigoldV2PostProcess",
    "Marigold V2 Post-Process",
    category="image/geometry estimation",
    function="show",
    description="Makes a picture of what Marigold V2 estimates: depth with what is near bright, normals, or albedo.",
)
def marigold_v2_post_process(
    image: IMAGE, prediction: Annotated[str, Combo(["depth", "disparity", "normals", "albedo"])]
) -> IMAGE:
    """An estimate as a picture: depth or disparity in grey over its whole range, unit normals, or albedo in sRGB."""
    if prediction == "normals":
        return (normalize(image * 2 - 1, dim=-1) + 1) / 2
    if prediction == "albedo":
        return torch.where(image <= 0.0031308, 12.92 * image, 1.055 * image.clamp(min=0.0031308) ** (1 / 2.4) - 0.055)
    grey = image.mean(dim=-1, keepdim=True)
    least, most = (bound(grey, dim=(1, 2, 3), keepdim=True) for bound in (torch.amin, torch.amax))
    share = (grey - least) / (most - least).clamp(min=1e-6)
    return (1 - share if prediction == "depth" else share).repeat(1, 1, 1, 3)


@node("ImageBlend", "Blend Images", category="image/filters")
def image_blend(
    image1: IMAGE,
    image2: IMAGE,
    blend_factor: Annotated[float, Float(0.5, min=0.0, max=1.0, step=0.01)],
    blend_mode: Annotated[str, Choice(BLENDS)],
) -> IMAGE:
    """Two images as one, mixed pixel by pixel.

    Return image1 with a share of the mix; image2 is cropped and resized to it, and takes its channels.
    """
    image2 = pad(image2, (0, image1.shape[-1] - image2.shape[-1]), value=1.0)
    if image1.shape[1:3] != image2.shape[1:3]:
        image2 = resize(image2, image1.shape[2], image1.shape[1], "bicubic", "center")
    mixed = BLENDS[blend_mode](image1, image2)
    return (image1 * (1 - blend_factor) + mixed * blend_factor).clamp(0, 1)


BlurRadius: TypeAlias = Annotated[int, Int(1, min=1, max=31, step=1)]


@node("ImageBlur", "Blur Image", category="image/filters")
def image_blur(
    image: IMAGE, blur_radius: BlurRadius, sigma: Annotated[float, Float(1.0, min=0.1, max=10.0, step=0.1)]
) -> IMAGE:
    """Images blurred.

    Blur; sigma counts in radii. Errors: NodeError for a radius that reaches over the whole image.
    """
    return _blur(image, blur_radius, sigma)


@node("ImageSharpen", "Sharpen Image", category="image/filters")
def image_sharpen(
    image: IMAGE,
    sharpen_radius: BlurRadius,
    sigma: Annotated[float, Float(1.0, min=0.1, max=10.0, step=0.01)],
    alpha: Annotated[float, Float(1.0, min=0.0, max=5.0, step=0.01)],
) -> IMAGE:
    """Images sharpened: what blurring takes away, put on.

    Return the images plus 10·alpha times their difference from the blurred ones, clipped.
    """
    return (image + 10 * alpha * (image - _blur(image, sharpen_radius, sigma))).clamp(0, 1)


@node("ImageQuantize", "Quantize Image", category="image/filters")
def image_quantize(
    image: IMAGE,
    colors: Annotated[int, Int(256, min=1, max=256, step=1)],
    dither: Annotated[str, Choice(["none", "floyd-steinberg", "bayer-2", "bayer-4", "bayer-8", "bayer-16"])],
) -> IMAGE:
    """Images in few colours. Return each image in a palette of its own."""
    return torch.stack([_quantize(one, colors, dither) for one in image])


def _soft_light_curve(x: torch.Tensor) -> torch.Tensor:
    return torch.where(x <= 0.25, ((16 * x - 12) * x + 4) * x, x.sqrt())


def _quantize(image: torch.Tensor, colors: int, dither: str) -> torch.Tensor:
    """Return one image (H,W,C) as (H,W,3) in at most `colors` colours that Pillow picks for it."""
    pixels = (image[..., :3] * 255).clamp(0, 255).to(torch.uint8)
    plain = Image.fromarray(pixels.numpy())
    palette = plain.quantize(colors)
    method = Image.Dither.FLOYDSTEINBERG if dither == "floyd-steinberg" else Image.Dither.NONE
    if dither.startswith("bayer"):
        spread = 2 * 256 / (len(palette.getpalette() or ()) // 3)
        pattern = spread * _bayer(int(dither.removeprefix("bayer-"))) + 0.5
        height, width = pixels.shape[:2]
        tiled = pattern.repeat(-(-height // len(pattern)), -(-width // len(pattern)))[:height, :width, None]
        plain = Image.fromarray((pixels + tiled).clamp(0, 255).to(torch.uint8).numpy())
    few = plain.quantize(palette=palette, dither=method).convert("RGB")
    return torch.from_numpy(np.array(few)).to(image.dtype) / 255


def _bayer(size: int) -> torch.Tensor:
    """Return thresholds (size,size) around 0, size a power of two. Source: Bayer 1973.

    Every doubling is centred by 1.5/4ⁿ and not exactly, as in ComfyUI.
    """
    pattern = torch.zeros(1, 1)
    while len(pattern) < size:
        q = (2 * len(pattern)) ** 2
        m = q * pattern
        pattern = torch.cat([torch.cat([m - 1.5, m + 0.5], 1), torch.cat([m + 1.5, m - 0.5], 1)]) / q
    return pattern


def _blur(image: torch.Tensor, radius: int, sigma: float) -> torch.Tensor:
    """Convolve with a Gaussian of the radius, mirrored at the borders; its deviation is sigma·radius pixels."""
    height, width, channels = image.shape[1:]
    if radius >= min(height, width):
        raise NodeError(f"a radius of {radius} reaches over an image of {width}×{height}; it must be under both sides")
    weights = torch.exp(-(torch.linspace(-1, 1, 2 * radius + 1) ** 2) / (2 * sigma**2))
    kernel = (weights / weights.sum()).to(image).repeat(channels, 1, 1, 1)
    x = pad(image.movedim(-1, 1), (radius,) * 4, mode="reflect")
    x = conv2d(conv2d(x, kernel, groups=channels), kernel.mT, groups=channels)
    return x.movedim(1, -1)
