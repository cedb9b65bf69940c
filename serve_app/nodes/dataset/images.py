"""The nodes that prepare the images of a dataset: cut, resized, brightened, and as pictures of all of them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, TypeAlias

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from serve_app.execution.size import allow
from serve_app.nodes.declare import node
from serve_app.nodes.image.match_size import resize
from serve_app.nodes.inputs import Float, Int
from serve_app.nodes.sockets import IMAGE

Seed: TypeAlias = Annotated[int, Int(0, min=0, max=2**64 - 1)]
Edge: TypeAlias = Annotated[int, Int(512, min=1, max=8192)]
Factor: TypeAlias = Annotated[float, Float(1.0, min=0.0, max=2.0)]
HASH_SIDE = 8


def generator(seed: int) -> np.random.RandomState:
    """Return the numbers that ComfyUI's nodes of datasets draw."""
    return np.random.RandomState(seed % (2**32 - 1))


def _eight_bits(images: Tensor) -> Tensor:
    return (images * 255).clamp(0, 255).byte().float() / 255


def _by_edge(images: Tensor, edge: int, *, longer: bool) -> Tensor:
    height, width = images.shape[1:3]
    by_width = width > height if longer else width < height
    other = int(height * (edge / width)) if by_width else int(width * (edge / height))
    return resize(images, *((edge, other) if by_width else (other, edge)), "lanczos")


@node(
    "ResizeImagesByShorterEdge",
    "Resize Images by Shorter Edge (DEPRECATED)",
    category="image/transform",
    function="change",
    return_names=("images",),
    deprecated=True,
    experimental=True,
    description="Resizes images by their shorter side.",
)
def resize_images_by_shorter_edge(images: IMAGE, shorter_edge: Edge) -> IMAGE:
    """Resizes images by their shorter side."""
    return _by_edge(images, shorter_edge, longer=False)


@node(
    "ResizeImagesByLongerEdge",
    "Resize Images by Longer Edge (DEPRECATED)",
    category="image/transform",
    function="change",
    return_names=("images",),
    deprecated=True,
    experimental=True,
    description="Resizes images by their longer side.",
)
def resize_images_by_longer_edge(images: IMAGE, longer_edge: Annotated[int, Int(1024, min=1, max=8192)]) -> IMAGE:
    """Resizes images by their longer side."""
    return _by_edge(images, longer_edge, longer=True)


@node(
    "CenterCropImages",
    "Crop Image (Center)",
    category="image/transform",
    function="change",
    return_names=("images",),
    experimental=True,
    description="Cuts out the images' middle, of eight bits.",
)
def center_crop_images(images: IMAGE, width: Edge, height: Edge) -> IMAGE:
    """Cuts out the images' middle, of eight bits."""
    top, left = (max(0, (had - kept) // 2) for had, kept in zip(images.shape[1:3], (height, width), strict=True))
    return _eight_bits(images[:, top : top + height, left : left + width])


@node(
    "RandomCropImages",
    "Crop Image (Random)",
    category="image/transform",
    function="change",
    return_names=("images",),
    experimental=True,
    description="Cuts out of all images the same part, of eight bits, wherever the seed says.",
)
def random_crop_images(images: IMAGE, width: Edge, height: Edge, seed: Seed) -> IMAGE:
    """Cuts out of all images the same part, of eight bits, wherever the seed says."""
    numbers = generator(seed)
    rest = max(0, images.shape[2] - width), max(0, images.shape[1] - height)
    left, top = (int(numbers.randint(0, most + 1)) if most else 0 for most in rest)
    return _eight_bits(images[:, top : top + height, left : left + width])


@node(
    "NormalizeImages",
    "Normalize Image Colors",
    category="image/color",
    function="change",
    return_names=("images",),
    experimental=True,
    description="Subtracts a mean and divides by a deviation; the colours may leave 0…1.",
)
def normalize_images(
    images: IMAGE,
    mean: Annotated[float, Float(0.5, min=0.0, max=1.0)],
    std: Annotated[float, Float(0.5, min=0.001, max=1.0)],
) -> IMAGE:
    """Subtracts a mean and divides by a deviation; the colours may leave 0…1."""
    return (images - mean) / std


@node(
    "AdjustBrightness",
    "Adjust Brightness",
    category="image/adjustments",
    function="change",
    return_names=("images",),
    experimental=True,
    description="Multiplies all colours by a factor.",
)
def adjust_brightness(images: IMAGE, factor: Factor) -> IMAGE:
    """Multiplies all colours by a factor."""
    return (images * factor).clamp(0, 1)


@node(
    "AdjustContrast",
    "Adjust Contrast",
    category="image/adjustments",
    function="change",
    return_names=("images",),
    experimental=True,
    description="Moves all colours from middle grey, or to it, by a factor.",
)
def adjust_contrast(images: IMAGE, factor: Factor) -> IMAGE:
    """Moves all colours from middle grey, or to it, by a factor."""
    return ((images - 0.5) * factor + 0.5).clamp(0, 1)


def one_by_one(batches: Sequence[Tensor]) -> list[Tensor]:
    """Return the images of several batches (B,H,W,C), each as a batch of one."""
    return [image[None] for batch in batches for image in batch]


@node(
    "ImageDeduplication",
    "Deduplicate Images",
    category="image/batch",
    function="deduplicate",
    return_names=("images",),
    experimental=True,
    description="Leaves out images whose coarse brightness is that of an earlier one.",
)
def image_deduplication(
    images: list[IMAGE], similarity_threshold: list[Annotated[float, Float(0.95, min=0.0, max=1.0)]]
) -> list[IMAGE]:
    """Images that do not look like an earlier one.

    Return one of those whose 64 bits are equal for at least this share.
    """
    kept: list[tuple[Tensor, Tensor]] = []
    for image in one_by_one(images):
        bits = _average_hash(image)
        if all((bits == other).float().mean().item() < similarity_threshold[0] for _, other in kept):
            kept.append((image, bits))
    return [image for image, _ in kept]


def _average_hash(image: Tensor) -> Tensor:
    """Return which of 8×8 parts of an image (1,H,W,C) are brighter than all on average. Source: Krawetz 2011."""
    small = resize(image[..., :3], HASH_SIDE, HASH_SIDE, "lanczos")
    grey = torch.from_numpy(np.array(Image.fromarray((small[0] * 255).round().byte().numpy()).convert("L")))
    return grey > grey.double().mean()


Cell: TypeAlias = Annotated[int, Int(256, min=32, max=2048)]


@node(
    "ImageGrid",
    "Make Image Grid",
    category="image/batch",
    function="arrange",
    return_names=("images",),
    experimental=True,
    description="Arranges images in rows, each resized to a cell, on black.",
)
def image_grid(
    images: list[IMAGE],
    columns: list[Annotated[int, Int(4, min=1, max=20)]],
    cell_width: list[Cell],
    cell_height: list[Cell],
    padding: list[Annotated[int, Int(4, min=0, max=50)]],
) -> IMAGE:
    """Images, side by side."""
    cells, across, gap = one_by_one(images), columns[0], padding[0]
    width, height = cell_width[0], cell_height[0]
    size = (1, -(-len(cells) // across) * (height + gap) - gap, across * (width + gap) - gap, 3)
    allow(*size)
    grid = torch.zeros(size)
    for index, cell in enumerate(cells):
        top, left = index // across * (height + gap), index % across * (width + gap)
        grid[:, top : top + height, left : left + width] = resize(cell[..., :3], width, height, "lanczos")
    return grid
