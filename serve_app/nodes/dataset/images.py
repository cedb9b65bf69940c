"""The nodes that prepare the images of a dataset: cut, resized, brightened, and as pictures of all of them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from serve_app.execution.size import allow
from serve_app.nodes.image.match_size import resize

SEED = ("INT", {"default": 0, "min": 0, "max": 2**64 - 1})
HASH_SIDE = 8


def generator(seed: int) -> np.random.RandomState:
    """Return the numbers that ComfyUI's nodes of datasets draw."""
    return np.random.RandomState(seed % (2**32 - 1))


def _side(default: int) -> tuple[str, dict[str, Any]]:
    return ("INT", {"default": default, "min": 1, "max": 8192})


def _share(default: float, least: float, most: float) -> tuple[str, dict[str, Any]]:
    return ("FLOAT", {"default": default, "min": least, "max": most})


def _image_node(
    category: str, of: Callable[..., Tensor], *, superseded: bool = False, **inputs: tuple[str, dict[str, Any]]
) -> type:
    class ChangeImages:
        """Images, each changed alike."""

        RETURN_TYPES = ("IMAGE",)
        RETURN_NAMES = ("images",)
        FUNCTION = "change"
        CATEGORY = category
        DEPRECATED = superseded
        EXPERIMENTAL = True
        DESCRIPTION = of.__doc__ or ""

        @classmethod
        def INPUT_TYPES(cls) -> dict[str, Any]:
            return {"required": {"images": ("IMAGE", {}), **inputs}}

        def change(self, images: Tensor, **given: Any) -> tuple[Tensor]:
            return (of(images, **given),)

    return ChangeImages


def _eight_bits(images: Tensor) -> Tensor:
    return (images * 255).clamp(0, 255).byte().float() / 255


def _by_shorter_edge(images: Tensor, shorter_edge: int) -> Tensor:
    """Resizes images by their shorter side."""
    return _by_edge(images, shorter_edge, longer=False)


def _by_longer_edge(images: Tensor, longer_edge: int) -> Tensor:
    """Resizes images by their longer side."""
    return _by_edge(images, longer_edge, longer=True)


def _by_edge(images: Tensor, edge: int, *, longer: bool) -> Tensor:
    height, width = images.shape[1:3]
    by_width = width > height if longer else width < height
    other = int(height * (edge / width)) if by_width else int(width * (edge / height))
    return resize(images, *((edge, other) if by_width else (other, edge)), "lanczos")


def _centre(images: Tensor, width: int, height: int) -> Tensor:
    """Cuts out the images' middle, of eight bits."""
    top, left = (max(0, (had - kept) // 2) for had, kept in zip(images.shape[1:3], (height, width), strict=True))
    return _eight_bits(images[:, top : top + height, left : left + width])


def _anywhere(images: Tensor, width: int, height: int, seed: int) -> Tensor:
    """Cuts out of all images the same part, of eight bits, wherever the seed says."""
    numbers = generator(seed)
    rest = max(0, images.shape[2] - width), max(0, images.shape[1] - height)
    left, top = (int(numbers.randint(0, most + 1)) if most else 0 for most in rest)
    return _eight_bits(images[:, top : top + height, left : left + width])


def _normalized(images: Tensor, mean: float, std: float) -> Tensor:
    """Subtracts a mean and divides by a deviation; the colours may leave 0…1."""
    return (images - mean) / std


def _brightness(images: Tensor, factor: float) -> Tensor:
    """Multiplies all colours by a factor."""
    return (images * factor).clamp(0, 1)


def _contrast(images: Tensor, factor: float) -> Tensor:
    """Moves all colours from middle grey, or to it, by a factor."""
    return ((images - 0.5) * factor + 0.5).clamp(0, 1)


def one_by_one(batches: Sequence[Tensor]) -> list[Tensor]:
    """Return the images of several batches (B,H,W,C), each as a batch of one."""
    return [image[None] for batch in batches for image in batch]


class ImageDeduplication:
    """Images that do not look like an earlier one."""

    RETURN_TYPES = ("IMAGE",)
    RETURN_NAMES = ("images",)
    OUTPUT_IS_LIST = (True,)
    INPUT_IS_LIST = True
    FUNCTION = "deduplicate"
    CATEGORY = "image/batch"
    EXPERIMENTAL = True
    DESCRIPTION = "Leaves out images whose coarse brightness is that of an earlier one."

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        return {"required": {"images": ("IMAGE", {}), "similarity_threshold": _share(0.95, 0.0, 1.0)}}

    def deduplicate(self, images: list[Tensor], similarity_threshold: list[float]) -> tuple[list[Tensor]]:
        """Return one of those whose 64 bits are equal for at least this share."""
        kept: list[tuple[Tensor, Tensor]] = []
        for image in one_by_one(images):
            bits = _average_hash(image)
            if all((bits == other).float().mean().item() < similarity_threshold[0] for _, other in kept):
                kept.append((image, bits))
        return ([image for image, _ in kept],)


def _average_hash(image: Tensor) -> Tensor:
    """Return which of 8×8 parts of an image (1,H,W,C) are brighter than all on average. Source: Krawetz 2011."""
    small = resize(image[..., :3], HASH_SIDE, HASH_SIDE, "lanczos")
    grey = torch.from_numpy(np.array(Image.fromarray((small[0] * 255).round().byte().numpy()).convert("L")))
    return grey > grey.double().mean()


class ImageGrid:
    """Images, side by side."""

    RETURN_TYPES = ("IMAGE",)
    RETURN_NAMES = ("images",)
    INPUT_IS_LIST = True
    FUNCTION = "arrange"
    CATEGORY = "image/batch"
    EXPERIMENTAL = True
    DESCRIPTION = "Arranges images in rows, each resized to a cell, on black."

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        cell = ("INT", {"default": 256, "min": 32, "max": 2048})
        return {
            "required": {
                "images": ("IMAGE", {}),
                "columns": ("INT", {"default": 4, "min": 1, "max": 20}),
                "cell_width": cell,
                "cell_height": cell,
                "padding": ("INT", {"default": 4, "min": 0, "max": 50}),
            }
        }

    def arrange(
        self,
        images: list[Tensor],
        columns: list[int],
        cell_width: list[int],
        cell_height: list[int],
        padding: list[int],
    ) -> tuple[Tensor]:
        """Return (1,H,W,3)."""
        cells, across, gap = one_by_one(images), columns[0], padding[0]
        width, height = cell_width[0], cell_height[0]
        size = (1, -(-len(cells) // across) * (height + gap) - gap, across * (width + gap) - gap, 3)
        allow(*size)
        grid = torch.zeros(size)
        for index, cell in enumerate(cells):
            top, left = index // across * (height + gap), index % across * (width + gap)
            grid[:, top : top + height, left : left + width] = resize(cell[..., :3], width, height, "lanczos")
        return (grid,)


NODE_CLASS_MAPPINGS: Mapping[str, type] = {
    "ResizeImagesByShorterEdge": _image_node(
        "image/transform", _by_shorter_edge, superseded=True, shorter_edge=_side(512)
    ),
    "ResizeImagesByLongerEdge": _image_node(
        "image/transform", _by_longer_edge, superseded=True, longer_edge=_side(1024)
    ),
    "CenterCropImages": _image_node("image/transform", _centre, width=_side(512), height=_side(512)),
    "RandomCropImages": _image_node("image/transform", _anywhere, width=_side(512), height=_side(512), seed=SEED),
    "NormalizeImages": _image_node("image/color", _normalized, mean=_share(0.5, 0.0, 1.0), std=_share(0.5, 0.001, 1.0)),
    "AdjustBrightness": _image_node("image/adjustments", _brightness, factor=_share(1.0, 0.0, 2.0)),
    "AdjustContrast": _image_node("image/adjustments", _contrast, factor=_share(1.0, 0.0, 2.0)),
    "ImageDeduplication": ImageDeduplication,
    "ImageGrid": ImageGrid,
}

NODE_DISPLAY_NAME_MAPPINGS: Mapping[str, str] = {
    "ResizeImagesByShorterEdge": "Resize Images by Shorter Edge (DEPRECATED)",
    "ResizeImagesByLongerEdge": "Resize Images by Longer Edge (DEPRECATED)",
    "CenterCropImages": "Crop Image (Center)",
    "RandomCropImages": "Crop Image (Random)",
    "NormalizeImages": "Normalize Image Colors",
    "AdjustBrightness": "Adjust Brightness",
    "AdjustContrast": "Adjust Contrast",
    "ImageDeduplication": "Deduplicate Images",
    "ImageGrid": "Make Image Grid",
}
