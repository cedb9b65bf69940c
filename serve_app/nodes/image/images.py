"""The nodes that load, make and save IMAGE."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any, TypeVar

import torch

from serve_app.execution.executing import executing
from serve_app.execution.protocol import FolderChoice
from serve_app.execution.runtime import Files, Saved
from serve_app.execution.size import allow, bounds
from serve_app.images import PNG_LEVEL, QUICK_PNG_LEVEL, to_png
from serve_app.media import loading
from serve_app.nodes.latent.latents import MAX_RESOLUTION
from serve_app.store.files.store import Area, FileRef

T = TypeVar("T")


class LoadImage:
    """An uploaded file to images and masks."""

    RETURN_TYPES: tuple[str, ...] = ("IMAGE", "MASK")
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
        data, name = await store.read(image), FileRef.parse(image).filename
        return await asyncio.to_thread(loading.images, data, f"the file '{image}'", bounds(), allow, name)


class LoadImageOutput(LoadImage):
    """A file that another job saved, to images and masks."""

    DESCRIPTION = "Loads an image from the output folder."
    EXPERIMENTAL = True

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        remote = {"route": "/internal/files/output", "refresh_button": True, "control_after_refresh": "first"}
        options = {"image_upload": True, "image_folder": "output", "remote": remote}
        return {"required": {"image": (FolderChoice("input"), options)}, "hidden": {"store": "STORE"}}


class WebcamCapture(LoadImage):
    """The picture that the browser took and uploaded."""

    RETURN_TYPES = ("IMAGE",)
    FUNCTION = "load_capture"

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        side = {"default": 0, "min": 0, "max": MAX_RESOLUTION, "step": 1}
        return {
            "required": {
                "image": ("WEBCAM", {}),
                "width": ("INT", side),
                "height": ("INT", side),
                "capture_on_queue": ("BOOLEAN", {"default": True}),
            },
            "hidden": {"store": "STORE"},
        }

    async def load_capture(
        self, image: str, width: int, height: int, capture_on_queue: bool, store: Files
    ) -> tuple[torch.Tensor]:
        """Load the file; the other inputs are the browser's."""
        images, _ = await self.load_image(image, store)
        return (images,)


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
        allow(batch_size, height, width, 3)
        rgb = torch.tensor([(color >> shift & 0xFF) / 0xFF for shift in (16, 8, 0)])
        return (rgb.repeat(batch_size, height, width, 1),)


class SaveImage:
    """Images to PNG files that carry their workflow.

    Takes its inputs as lists, so that all files of a node are saved at once: a retry then finds the same names.
    """

    RETURN_TYPES = ("IMAGE",)
    RETURN_NAMES = ("images",)
    FUNCTION = "save_images"
    OUTPUT_NODE = True
    INPUT_IS_LIST = True
    OUTPUT_IS_LIST = (True,)
    SKIPS_BLOCKED = True
    CATEGORY = "image"
    DESCRIPTION = "Saves the images to the output folder."

    area: Area = "output"
    compress_level = PNG_LEVEL

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
        """Store every image of every batch, show where, and pass the batches on."""
        text = workflow_text(prompt, extra_pnginfo)
        files: list[tuple[str, Sequence[int], Saved]] = []
        for i, batch in enumerate(images):
            prefix = at(filename_prefix, i)
            size = batch.shape[1:3]
            files += [(prefix, size, partial(to_png, image, text, self.compress_level)) for image in batch]
        return {"ui": {"images": await save_together(store[0], self.area, ".png", files)}, "result": (images,)}


class PreviewImage(SaveImage):
    """Images to PNG files in the temp area, lightly compressed, for looking at."""

    DESCRIPTION = "Shows the images; they are kept in the temp folder only."

    area: Area = "temp"
    compress_level = QUICK_PNG_LEVEL

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


def workflow_text(prompt: list[Any], extra_pnginfo: list[Any]) -> dict[str, str]:
    """Return what files carry of their workflow: JSON by name, "prompt" first. The hidden inputs, as lists."""
    extra = extra_pnginfo[0] if isinstance(extra_pnginfo[0], Mapping) else {}
    return {str(key): json.dumps(value) for key, value in {"prompt": prompt[0], **extra}.items()}


def own_prefix(prefix: str) -> str:
    """Return a prefix of this call's own, for a node that shows something in each of its calls."""
    call = executing()
    return f"{prefix}_{call.index}" if call is not None and call.index else prefix


def at(values: Sequence[T], index: int) -> T:
    """Return an element of an input's list, or the last where there are fewer, as shorter lists are repeated."""
    return values[min(index, len(values) - 1)]


async def save_together(
    store: Files, area: Area, suffix: str, files: Sequence[tuple[str, Sequence[int], Saved]], mark: str = "_"
) -> list[dict[str, Any]]:
    """Store files of (prefix, (height, width) that %height% and %width% stand for, content), prefix by prefix.

    mark: as `Files.save` takes it.
    """
    groups: dict[tuple[str, int, int], list[Saved]] = {}
    for prefix, size, content in files:
        sized = "%width%" in prefix or "%height%" in prefix
        height, width = size if sized else (0, 0)
        groups.setdefault((prefix, width, height), []).append(content)
    saved: list[dict[str, Any]] = []
    for (prefix, width, height), contents in groups.items():
        saved += await store.save(area, prefix, suffix, contents, width=width, height=height, mark=mark)
    return saved


NODE_CLASS_MAPPINGS: Mapping[str, type] = {
    "EmptyImage": EmptyImage,
    "LoadImage": LoadImage,
    "LoadImageOutput": LoadImageOutput,
    "PreviewImage": PreviewImage,
    "SaveImage": SaveImage,
    "WebcamCapture": WebcamCapture,
}

NODE_DISPLAY_NAME_MAPPINGS: Mapping[str, str] = {
    "EmptyImage": "Empty Image",
    "LoadImage": "Load Image",
    "LoadImageOutput": "Load Image (from Outputs)",
    "PreviewImage": "Preview Image",
    "SaveImage": "Save Image",
    "WebcamCapture": "Webcam Capture",
}
