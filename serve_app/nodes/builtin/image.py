"""The nodes that load, make, resize and save IMAGE."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Mapping
from typing import Any

import torch

from serve_app.images import Crop, from_bytes, resize, to_png
from serve_app.nodes.builtin.latent import CROPS, MAX_RESOLUTION
from serve_app.nodes.protocol import FolderChoice
from serve_app.nodes.runtime import Files
from serve_app.store.store import Area

IMAGE_METHODS = ["nearest-exact", "bilinear", "area", "bicubic", "lanczos"]


class LoadImage:
    """An uploaded file to images and masks."""

    RETURN_TYPES = ("IMAGE", "MASK")
    FUNCTION = "load_image"
    CATEGORY = "image"

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        return {
            "required": {"image": (FolderChoice("input"), {"image_upload": True})},
            "hidden": {"store": "STORE"},
        }

    async def load_image(self, image: str, store: Files) -> tuple[torch.Tensor, torch.Tensor]:
        """Return every frame (B,H,W,3) and its mask (B,H,W), 1 where the file is transparent."""
        return await asyncio.to_thread(from_bytes, await store.read(image))


class EmptyImage:
    """Images of one colour."""

    RETURN_TYPES = ("IMAGE",)
    FUNCTION = "generate"
    CATEGORY = "image"

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        side = {"default": 512, "min": 1, "max": MAX_RESOLUTION, "step": 1}
        return {
            "required": {
                "width": ("INT", side),
                "height": ("INT", side),
                "batch_size": ("INT", {"default": 1, "min": 1, "max": 4096}),
                "color": ("INT", {"default": 0, "min": 0, "max": 0xFFFFFF, "step": 1, "display": "color"}),
            }
        }

    def generate(self, width: int, height: int, batch_size: int = 1, color: int = 0) -> tuple[torch.Tensor]:
        """Return (batch_size,height,width,3) of 0xRRGGBB."""
        rgb = torch.tensor([(color >> shift & 0xFF) / 0xFF for shift in (16, 8, 0)])
        return (rgb.repeat(batch_size, height, width, 1),)


class ImageScale:
    """Images at another size."""

    RETURN_TYPES = ("IMAGE",)
    FUNCTION = "upscale"
    CATEGORY = "image/upscaling"

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        side = {"default": 512, "min": 0, "max": MAX_RESOLUTION, "step": 1}
        return {
            "required": {
                "image": ("IMAGE",),
                "upscale_method": (IMAGE_METHODS,),
                "width": ("INT", side),
                "height": ("INT", side),
                "crop": (CROPS,),
            }
        }

    def upscale(
        self, image: torch.Tensor, upscale_method: str, width: int, height: int, crop: Crop
    ) -> tuple[torch.Tensor]:
        """Resize; a side of 0 follows the other, both 0 change nothing."""
        if width == 0 and height == 0:
            return (image,)
        old_height, old_width = image.shape[1:3]
        width = width or max(1, round(old_width * height / old_height))
        height = height or max(1, round(old_height * width / old_width))
        return (resize(image, width, height, upscale_method, crop),)


class SaveImage:
    """Images to PNG files that carry their workflow.

    Takes its inputs as lists, so that all files of a node are saved at once: a retry then finds the same names.
    """

    RETURN_TYPES = ()
    FUNCTION = "save_images"
    OUTPUT_NODE = True
    INPUT_IS_LIST = True
    CATEGORY = "image"
    DESCRIPTION = "Saves the images to the output folder."

    area: Area = "output"
    compress_level = 4

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        return {
            "required": {
                "images": ("IMAGE",),
                "filename_prefix": ("STRING", {"default": "ComfyUI"}),
            },
            "hidden": {"prompt": "PROMPT", "extra_pnginfo": "EXTRA_PNGINFO", "store": "STORE"},
        }

    async def save_images(
        self,
        images: list[torch.Tensor],
        prompt: list[Any],
        extra_pnginfo: list[Any],
        store: list[Files],
        filename_prefix: list[str],
    ) -> dict[str, Any]:
        """Store every image of every batch and show where."""
        extra = extra_pnginfo[0] if isinstance(extra_pnginfo[0], Mapping) else {}
        text = {str(key): json.dumps(value) for key, value in {"prompt": prompt[0], **extra}.items()}
        groups: dict[tuple[str, int, int], list[bytes]] = {}
        for i, batch in enumerate(images):
            prefix = filename_prefix[min(i, len(filename_prefix) - 1)]
            sized = "%width%" in prefix or "%height%" in prefix
            height, width = batch.shape[1:3] if sized else (0, 0)
            for image in batch:
                png = await asyncio.to_thread(to_png, image, text, self.compress_level)
                groups.setdefault((prefix, width, height), []).append(png)
        saved = []
        for (prefix, width, height), pngs in groups.items():
            saved += await store[0].save(self.area, prefix, ".png", pngs, width=width, height=height)
        return {"ui": {"images": saved}}


class PreviewImage(SaveImage):
    """Images to PNG files in the temp area, lightly compressed, for looking at."""

    DESCRIPTION = "Shows the images; they are kept in the temp folder only."

    area: Area = "temp"
    compress_level = 1

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        return {
            "required": {"images": ("IMAGE",)},
            "hidden": {"prompt": "PROMPT", "extra_pnginfo": "EXTRA_PNGINFO", "store": "STORE"},
        }

    async def save_images(
        self,
        images: list[torch.Tensor],
        prompt: list[Any],
        extra_pnginfo: list[Any],
        store: list[Files],
        filename_prefix: list[str] | None = None,
    ) -> dict[str, Any]:
        """Store every image and show where."""
        return await super().save_images(images, prompt, extra_pnginfo, store, ["ComfyUI_temp"])


NODE_CLASS_MAPPINGS: Mapping[str, type] = {
    "EmptyImage": EmptyImage,
    "ImageScale": ImageScale,
    "LoadImage": LoadImage,
    "PreviewImage": PreviewImage,
    "SaveImage": SaveImage,
}

NODE_DISPLAY_NAME_MAPPINGS: Mapping[str, str] = {
    "ImageScale": "Upscale Image",
    "LoadImage": "Load Image",
    "PreviewImage": "Preview Image",
    "SaveImage": "Save Image",
}
