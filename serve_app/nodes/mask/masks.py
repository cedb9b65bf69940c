"""The nodes that make, change, show and load MASK: float (B,H,W) in 0…1. A single mask may come as (H,W)."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch

from serve_app.errors import NodeError
from serve_app.execution.protocol import FolderChoice
from serve_app.execution.runtime import Files
from serve_app.execution.size import allow
from serve_app.images import PNG_LEVEL
from serve_app.nodes.image.images import LoadImage, PreviewImage
from serve_app.nodes.image.match_size import as_planes, fit_batch
from serve_app.nodes.latent.latents import MAX_RESOLUTION

PIXELS = {"default": 0, "min": 0, "max": MAX_RESOLUTION, "step": 1}
CHANNELS = ["red", "green", "blue", "alpha"]


class MaskToImage:
    """Masks as grey images."""

    RETURN_TYPES = ("IMAGE",)
    FUNCTION = "mask_to_image"
    CATEGORY = "image/mask"

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        return {"required": {"mask": ("MASK",)}}

    def mask_to_image(self, mask: torch.Tensor) -> tuple[torch.Tensor]:
        """Return images (B,H,W,3)."""
        return (as_planes(mask).unsqueeze(-1).expand(-1, -1, -1, 3),)


class ImageToMask:
    """One channel of images as masks."""

    RETURN_TYPES = ("MASK",)
    FUNCTION = "image_to_mask"
    CATEGORY = "image/mask"

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        return {"required": {"image": ("IMAGE",), "channel": (CHANNELS,)}}

    def image_to_mask(self, image: torch.Tensor, channel: str) -> tuple[torch.Tensor]:
        """Return the channel (B,H,W). Errors: NodeError for images that have no such channel."""
        index = CHANNELS.index(channel)
        if index >= image.shape[-1]:
            raise NodeError(f"channel is {channel!r}, and the image has {image.shape[-1]} channels")
        return (image[..., index].clone(),)


class ImageColorToMask:
    """Masks of the pixels that have one colour."""

    RETURN_TYPES = ("MASK",)
    FUNCTION = "image_to_mask"
    CATEGORY = "image/mask"

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        colour = {"default": 0, "min": 0, "max": 0xFFFFFF, "step": 1, "display": "number"}
        return {"required": {"image": ("IMAGE",), "color": ("INT", colour)}}

    def image_to_mask(self, image: torch.Tensor, color: int) -> tuple[torch.Tensor]:
        """Return 1 where the image in 8 bits is color, 0xRRGGBB, and 0 elsewhere."""
        wanted = torch.tensor([color >> shift & 0xFF for shift in (16, 8, 0)])
        rounded = (image[..., :3].clamp(0, 1) * 255).round()
        return ((rounded == wanted).all(dim=-1).float(),)


class SolidMask:
    """A mask of one value."""

    RETURN_TYPES = ("MASK",)
    FUNCTION = "solid"
    CATEGORY = "image/mask"

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        side = {"default": 512, "min": 1, "max": MAX_RESOLUTION, "step": 1}
        return {
            "required": {
                "value": ("FLOAT", {"default": 1.0, "min": 0.0, "max": 1.0, "step": 0.01}),
                "width": ("INT", side),
                "height": ("INT", side),
            }
        }

    def solid(self, value: float, width: int, height: int) -> tuple[torch.Tensor]:
        """Return (1,height,width) of the value."""
        allow(1, height, width)
        return (torch.full((1, height, width), float(value)),)


class InvertMask:
    """Masks of what masks leave out."""

    RETURN_TYPES = ("MASK",)
    FUNCTION = "invert"
    CATEGORY = "image/mask"

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        return {"required": {"mask": ("MASK",)}}

    def invert(self, mask: torch.Tensor) -> tuple[torch.Tensor]:
        """Return 1 - mask."""
        return (1.0 - mask,)


class CropMask:
    """A rectangle of masks."""

    RETURN_TYPES = ("MASK",)
    FUNCTION = "crop"
    CATEGORY = "image/mask"

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        side = {"default": 512, "min": 1, "max": MAX_RESOLUTION, "step": 1}
        return {
            "required": {
                "mask": ("MASK",),
                "x": ("INT", PIXELS),
                "y": ("INT", PIXELS),
                "width": ("INT", side),
                "height": ("INT", side),
            }
        }

    def crop(self, mask: torch.Tensor, x: int, y: int, width: int, height: int) -> tuple[torch.Tensor]:
        """Return what of the mask lies in the rectangle."""
        return (as_planes(mask)[:, y : y + height, x : x + width].clone(),)


OPERATIONS: Mapping[str, Callable[[torch.Tensor, torch.Tensor], torch.Tensor]] = {
    "multiply": torch.mul,
    "add": torch.add,
    "subtract": torch.sub,
    "and": lambda below, above: (below.round().bool() & above.round().bool()).float(),
    "or": lambda below, above: (below.round().bool() | above.round().bool()).float(),
    "xor": lambda below, above: (below.round().bool() ^ above.round().bool()).float(),
}


class MaskComposite:
    """A mask calculated into another at some place."""

    RETURN_TYPES = ("MASK",)
    FUNCTION = "combine"
    CATEGORY = "image/mask"

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        return {
            "required": {
                "destination": ("MASK",),
                "source": ("MASK",),
                "x": ("INT", PIXELS),
                "y": ("INT", PIXELS),
                "operation": (list(OPERATIONS),),
            }
        }

    def combine(
        self, destination: torch.Tensor, source: torch.Tensor, x: int, y: int, operation: str
    ) -> tuple[torch.Tensor]:
        """Return the destination, changed where the source lies at (x, y), and all of it held to 0…1."""
        out = as_planes(destination).clone()
        place = out[:, y : y + source.shape[-2], x : x + source.shape[-1]]
        above = fit_batch(as_planes(source), out.shape[0])[:, : place.shape[1], : place.shape[2]]
        place.copy_(OPERATIONS[operation](place, above))
        return (out.clamp(0.0, 1.0),)


class FeatherMask:
    """Masks with soft edges."""

    RETURN_TYPES = ("MASK",)
    FUNCTION = "feather"
    CATEGORY = "image/mask"

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        sides = dict.fromkeys(("left", "top", "right", "bottom"), ("INT", PIXELS))
        return {"required": {"mask": ("MASK",), **sides}}

    def feather(self, mask: torch.Tensor, left: int, top: int, right: int, bottom: int) -> tuple[torch.Tensor]:
        """Return the mask, rising over so many pixels from each edge."""
        planes = as_planes(mask)
        rows = _feathered(planes.shape[1], top, bottom)
        return (planes * rows[:, None] * _feathered(planes.shape[2], left, right),)


def _feathered(size: int, start: int, end: int) -> torch.Tensor:
    """Return weights (size,) that rise over start positions from the first, and over end positions from the last.

    A number below 0, which a link may bring, is as 0.
    """
    start, end = (max(0, min(number, size)) for number in (start, end))
    weights = torch.ones(size)
    weights[:start] *= torch.arange(1, start + 1) / max(1, start)
    weights[size - end :] *= torch.arange(end, 0, -1) / max(1, end)
    return weights


class ThresholdMask:
    """Masks of what is above a value."""

    RETURN_TYPES = ("MASK",)
    FUNCTION = "image_to_mask"
    CATEGORY = "image/mask"

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        value = {"default": 0.5, "min": 0.0, "max": 1.0, "step": 0.01}
        return {"required": {"mask": ("MASK",), "value": ("FLOAT", value)}}

    def image_to_mask(self, mask: torch.Tensor, value: float) -> tuple[torch.Tensor]:
        """Return 1 where the mask is above the value, else 0."""
        return ((mask > value).float(),)


class MaskPreview(PreviewImage):
    """Masks to PNG files in the temp area, for looking at."""

    RETURN_TYPES = ("MASK",)
    RETURN_NAMES = ("mask",)
    FUNCTION = "execute"
    CATEGORY = "image/mask"
    DESCRIPTION = ""
    compress_level = PNG_LEVEL

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        return {
            "required": {"mask": ("MASK",)},
            "hidden": {"prompt": "PROMPT", "extra_pnginfo": "EXTRA_PNGINFO", "store": "STORE"},
        }

    async def execute(
        self, mask: list[torch.Tensor], prompt: list[Any], extra_pnginfo: list[Any], store: list[Files]
    ) -> dict[str, Any]:
        """Store every mask as a grey image, show where, and pass the masks on."""
        images = [MaskToImage().mask_to_image(batch)[0] for batch in mask]
        shown = await self.save_images(images, prompt, extra_pnginfo, store)
        return {"ui": {**shown["ui"], "animated": (False,) * len(mask)}, "result": (mask,)}


class LoadImageMask:
    """One channel of an uploaded file as a mask."""

    RETURN_TYPES = ("MASK",)
    FUNCTION = "load_image_mask"
    CATEGORY = "image"

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        return {
            "required": {
                "image": (FolderChoice("input"), {"image_upload": True}),
                "channel": (["alpha", "red", "green", "blue"],),
            },
            "hidden": {"store": "STORE"},
        }

    async def load_image_mask(self, image: str, channel: str, store: Files) -> tuple[torch.Tensor]:
        """Return the channel of every frame (B,H,W); of alpha, the masks that LoadImage makes."""
        images, masks = await LoadImage().load_image(image, store)
        return (masks if channel == "alpha" else images[..., CHANNELS.index(channel)].clone(),)


NODE_CLASS_MAPPINGS: Mapping[str, type] = {
    "MaskToImage": MaskToImage,
    "ImageToMask": ImageToMask,
    "ImageColorToMask": ImageColorToMask,
    "SolidMask": SolidMask,
    "InvertMask": InvertMask,
    "CropMask": CropMask,
    "MaskComposite": MaskComposite,
    "FeatherMask": FeatherMask,
    "ThresholdMask": ThresholdMask,
    "MaskPreview": MaskPreview,
    "LoadImageMask": LoadImageMask,
}

NODE_DISPLAY_NAME_MAPPINGS: Mapping[str, str] = {
    "MaskToImage": "Convert Mask to Image",
    "ImageToMask": "Convert Image to Mask",
    "ImageColorToMask": "Convert Image Color to Mask",
    "SolidMask": "Create Solid Mask",
    "InvertMask": "Invert Mask",
    "CropMask": "Crop Mask",
    "MaskComposite": "Combine Masks",
    "FeatherMask": "Feather Mask",
    "ThresholdMask": "Threshold Mask",
    "MaskPreview": "Preview Mask",
    "LoadImageMask": "Load Image (as Mask)",
}
