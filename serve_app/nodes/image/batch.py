"""The nodes that join, repeat and split batches of IMAGE, and those that change every value in one the same way."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch.nn.functional import pad

from serve_app.execution.size import allow
from serve_app.nodes.image.match_size import resize
from serve_app.nodes.latent.latents import MAX_RESOLUTION


class ImageBatch:
    """Two batches as one."""

    RETURN_TYPES = ("IMAGE",)
    FUNCTION = "batch"
    CATEGORY = "image/batch"
    DEPRECATED = True

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        return {"required": {"image1": ("IMAGE",), "image2": ("IMAGE",)}}

    def batch(self, image1: torch.Tensor, image2: torch.Tensor) -> tuple[torch.Tensor]:
        """Return both, the second cropped and resized to the first's size; one without alpha becomes opaque."""
        channels = max(image1.shape[-1], image2.shape[-1])
        image1, image2 = (pad(image, (0, channels - image.shape[-1]), value=1.0) for image in (image1, image2))
        if image1.shape[1:] != image2.shape[1:]:
            image2 = resize(image2, image1.shape[2], image1.shape[1], "bilinear", "center")
        return (torch.cat([image1, image2]),)


class RepeatImageBatch:
    """A batch several times over."""

    RETURN_TYPES = ("IMAGE",)
    FUNCTION = "repeat"
    CATEGORY = "image/batch"

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        return {"required": {"image": ("IMAGE",), "amount": ("INT", {"default": 1, "min": 1, "max": 4096})}}

    def repeat(self, image: torch.Tensor, amount: int) -> tuple[torch.Tensor]:
        """Return the whole batch `amount` times, end to end."""
        allow(amount * image.shape[0], *image.shape[1:])
        return (image.repeat(amount, 1, 1, 1),)


class ImageFromBatch:
    """Some images of a batch."""

    RETURN_TYPES = ("IMAGE",)
    FUNCTION = "frombatch"
    CATEGORY = "image/batch"

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        return {
            "required": {
                "image": ("IMAGE",),
                "batch_index": ("INT", {"default": 0, "min": -MAX_RESOLUTION, "max": MAX_RESOLUTION}),
                "length": ("INT", {"default": 1, "min": 1, "max": 4096}),
            }
        }

    def frombatch(self, image: torch.Tensor, batch_index: int, length: int) -> tuple[torch.Tensor]:
        """Return `length` images from the index on, below 0 from the end, as many as there are; at least one."""
        first = max(0, min(batch_index if batch_index >= 0 else batch_index + len(image), len(image) - 1))
        return (image[first : first + length].clone(),)


class ImageInvert:
    """Images as their negatives."""

    RETURN_TYPES = ("IMAGE",)
    FUNCTION = "invert"
    CATEGORY = "image/color"

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        return {"required": {"image": ("IMAGE",)}}

    def invert(self, image: torch.Tensor) -> tuple[torch.Tensor]:
        """Return 1 − image, an alpha channel too."""
        return (1.0 - image,)


class ImageAddNoise:
    """Images with Gaussian noise of a seed."""

    RETURN_TYPES = ("IMAGE",)
    FUNCTION = "repeat"
    CATEGORY = "image/filters"

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        return {
            "required": {
                "image": ("IMAGE",),
                "seed": ("INT", {"default": 0, "min": 0, "max": 0xFFFFFFFFFFFFFFFF, "control_after_generate": True}),
                "strength": ("FLOAT", {"default": 0.5, "min": 0.0, "max": 1.0, "step": 0.01}),
            }
        }

    def repeat(self, image: torch.Tensor, seed: int, strength: float) -> tuple[torch.Tensor]:
        """Return the images plus noise of deviation `strength`, clipped to 0…1."""
        noise = torch.randn(image.shape, generator=torch.Generator().manual_seed(seed))
        return ((image + strength * noise.to(image)).clamp(0, 1),)


class GetImageSize:
    """The size of images."""

    RETURN_TYPES = ("INT", "INT", "INT")
    RETURN_NAMES = ("width", "height", "batch_size")
    FUNCTION = "get_size"
    CATEGORY = "image"
    DESCRIPTION = "Gives the width and height of the images, and how many there are."

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        return {"required": {"image": ("IMAGE",)}, "hidden": {"unique_id": "UNIQUE_ID"}}

    def get_size(self, image: torch.Tensor, unique_id: str | None = None) -> tuple[int, int, int]:
        """Return width, height and number."""
        return image.shape[2], image.shape[1], image.shape[0]


class ImageRGBToYUV:
    """Images as brightness and two colour differences."""

    RETURN_TYPES = ("IMAGE", "IMAGE", "IMAGE")
    RETURN_NAMES = ("Y", "U", "V")
    FUNCTION = "execute"
    CATEGORY = "image/color"

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        return {"required": {"image": ("IMAGE",)}}

    def execute(self, image: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Return Y, Cb and Cr as grey images (B,H,W,3), the differences around 0.5. Source: ITU-R BT.601."""
        red, green, blue = image[..., :3].unbind(-1)
        y = 0.299 * red + 0.587 * green + 0.114 * blue
        planes = (y, (blue - y) * 0.564 + 0.5, (red - y) * 0.713 + 0.5)
        first, second, third = (plane[..., None].repeat(1, 1, 1, 3) for plane in planes)
        return first, second, third


class ImageYUVToRGB:
    """Brightness and two colour differences as images."""

    RETURN_TYPES = ("IMAGE",)
    FUNCTION = "execute"
    CATEGORY = "image/color"

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        return {"required": {"Y": ("IMAGE",), "U": ("IMAGE",), "V": ("IMAGE",)}}

    def execute(self, Y: torch.Tensor, U: torch.Tensor, V: torch.Tensor) -> tuple[torch.Tensor]:
        """Return RGB clipped to 0…1; the exact inverse of ImageRGBToYUV."""
        y, cb, cr = Y.mean(-1), U.mean(-1) - 0.5, V.mean(-1) - 0.5
        red, blue = y + cr / 0.713, y + cb / 0.564
        green = (y - 0.299 * red - 0.114 * blue) / 0.587
        return (torch.stack([red, green, blue], dim=-1).clamp(0, 1),)


NODE_CLASS_MAPPINGS: Mapping[str, type] = {
    "ImageBatch": ImageBatch,
    "RepeatImageBatch": RepeatImageBatch,
    "ImageFromBatch": ImageFromBatch,
    "ImageInvert": ImageInvert,
    "ImageAddNoise": ImageAddNoise,
    "GetImageSize": GetImageSize,
    "ImageRGBToYUV": ImageRGBToYUV,
    "ImageYUVToRGB": ImageYUVToRGB,
}

NODE_DISPLAY_NAME_MAPPINGS: Mapping[str, str] = {
    "ImageBatch": "Batch Images (DEPRECATED)",
    "RepeatImageBatch": "Repeat Image Batch",
    "ImageFromBatch": "Get Image from Batch",
    "ImageInvert": "Invert Image Colors",
    "ImageAddNoise": "Add Noise to Image",
    "GetImageSize": "Get Image Size",
    "ImageRGBToYUV": "Image RGB to YUV",
    "ImageYUVToRGB": "Image YUV to RGB",
}
