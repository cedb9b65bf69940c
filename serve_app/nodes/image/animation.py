"""The nodes that save a batch of IMAGE as one animated file.

As SaveImage they take their inputs as lists, so that a retry of all files of a node finds the same names. Their files
are shown as images with the mark `animated`, as in ComfyUI.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import Any

import torch

from serve_app.execution.runtime import Files
from serve_app.images import to_animated_png, to_animated_webp
from serve_app.nodes.image.images import at, save_together, workflow_text

FPS = ("FLOAT", {"default": 6.0, "min": 0.01, "max": 1000.0, "step": 0.01})
HIDDEN = {"prompt": "PROMPT", "extra_pnginfo": "EXTRA_PNGINFO", "store": "STORE"}


class SaveAnimatedWEBP:
    """Images to an animated WebP file that carries its workflow."""

    RETURN_TYPES = ("IMAGE",)
    RETURN_NAMES = ("images",)
    FUNCTION = "save_images"
    OUTPUT_NODE = True
    INPUT_IS_LIST = True
    OUTPUT_IS_LIST = (True,)
    CATEGORY = "image"

    methods: Mapping[str, int] = {"default": 4, "fastest": 0, "slowest": 6}

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        return {
            "required": {
                "images": ("IMAGE",),
                "filename_prefix": ("STRING", {"default": "ComfyUI", "multiline": False}),
                "fps": FPS,
                "lossless": ("BOOLEAN", {"default": True}),
                "quality": ("INT", {"default": 80, "min": 0, "max": 100}),
                "method": (list(cls.methods),),
            },
            "hidden": HIDDEN,
        }

    async def save_images(
        self,
        images: list[torch.Tensor],
        filename_prefix: list[str],
        fps: list[float],
        lossless: list[bool],
        quality: list[int],
        method: list[str],
        prompt: list[Any],
        extra_pnginfo: list[Any],
        store: list[Files],
    ) -> dict[str, Any]:
        """Store every batch as one file and show where."""
        text = workflow_text(prompt, extra_pnginfo)
        files = []
        for i, frames in enumerate(images):
            webp = await asyncio.to_thread(
                to_animated_webp,
                frames,
                text,
                duration_ms=int(1000.0 / at(fps, i)),
                lossless=at(lossless, i),
                quality=at(quality, i),
                method=self.methods[at(method, i)],
            )
            files.append((at(filename_prefix, i), frames.shape[1:3], webp))
        saved = await save_together(store[0], "output", ".webp", files)
        return {"ui": _shown(saved, images), "result": (images,)}


class SaveAnimatedPNG:
    """Images to an animated PNG file that carries its workflow."""

    RETURN_TYPES = ("IMAGE",)
    RETURN_NAMES = ("images",)
    FUNCTION = "save_images"
    OUTPUT_NODE = True
    INPUT_IS_LIST = True
    OUTPUT_IS_LIST = (True,)
    CATEGORY = "image"

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        return {
            "required": {
                "images": ("IMAGE",),
                "filename_prefix": ("STRING", {"default": "ComfyUI", "multiline": False}),
                "fps": FPS,
                "compress_level": ("INT", {"default": 4, "min": 0, "max": 9}),
            },
            "hidden": HIDDEN,
        }

    async def save_images(
        self,
        images: list[torch.Tensor],
        filename_prefix: list[str],
        fps: list[float],
        compress_level: list[int],
        prompt: list[Any],
        extra_pnginfo: list[Any],
        store: list[Files],
    ) -> dict[str, Any]:
        """Store every batch as one file and show where."""
        text = workflow_text(prompt, extra_pnginfo)
        files = []
        for i, frames in enumerate(images):
            png = await asyncio.to_thread(
                to_animated_png,
                frames,
                text,
                duration_ms=int(1000.0 / at(fps, i)),
                compress_level=at(compress_level, i),
            )
            files.append((at(filename_prefix, i), frames.shape[1:3], png))
        saved = await save_together(store[0], "output", ".png", files)
        return {"ui": _shown(saved, images), "result": (images,)}


def _shown(saved: list[dict[str, Any]], images: list[torch.Tensor]) -> dict[str, Any]:
    """Return the page's `animated` flags of files: True for each that moves; empty where none does."""
    animated = (True,) * sum(len(frames) > 1 for frames in images)
    return {"images": saved, "animated": animated} if animated else {"images": saved}


NODE_CLASS_MAPPINGS: Mapping[str, type] = {
    "SaveAnimatedWEBP": SaveAnimatedWEBP,
    "SaveAnimatedPNG": SaveAnimatedPNG,
}

NODE_DISPLAY_NAME_MAPPINGS: Mapping[str, str] = {
    "SaveAnimatedWEBP": "Save Animated WEBP",
    "SaveAnimatedPNG": "Save Animated PNG",
}
