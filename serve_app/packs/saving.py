"""`nodes.SaveImage` and `nodes.PreviewImage` as packs subclass and call them: sync, with plain directories.

The server's own classes of these names ask for STORE instead, and number files safely with many replicas.
Source: the facts of ComfyUI 0.3.64's `nodes.py`.
"""

from __future__ import annotations

import json
import uuid
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from serve_app.images import PNG_LEVEL, QUICK_PNG_LEVEL, to_png
from serve_app.packs import folder_paths


class SaveImage:
    """Images to PNG files in the output area."""

    RETURN_TYPES: tuple[str, ...] = ("IMAGE",)
    RETURN_NAMES: tuple[str, ...] = ("images",)
    FUNCTION = "save_images"
    OUTPUT_NODE = True
    CATEGORY = "image"

    def __init__(self) -> None:
        self.output_dir = folder_paths.get_output_directory()
        self.type = "output"
        self.prefix_append = ""
        self.compress_level = PNG_LEVEL

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        return {
            "required": {"images": ("IMAGE",), "filename_prefix": ("STRING", {"default": "ComfyUI"})},
            "hidden": {"prompt": "PROMPT", "extra_pnginfo": "EXTRA_PNGINFO"},
        }

    def save_images(
        self, images: torch.Tensor, filename_prefix: str = "ComfyUI", prompt: Any = None, extra_pnginfo: Any = None
    ) -> dict[str, Any]:
        """Store images (B,H,W,C), show where, and pass them on."""
        height, width = images[0].shape[:2]
        prefix = filename_prefix + self.prefix_append
        folder, name, counter, subfolder, _ = folder_paths.get_save_image_path(prefix, self.output_dir, width, height)
        text = carried(prompt, extra_pnginfo)
        shown = []
        for index, image in enumerate(images):
            stem, png = name.replace("%batch_num%", str(index)), to_png(image, text, self.compress_level)
            counter = write_new(folder, stem, counter, "_.png", png)
            shown.append({"filename": f"{stem}_{counter:05}_.png", "subfolder": subfolder, "type": self.type})
            counter += 1
        return {"ui": {"images": shown}, "result": (images,)}


class PreviewImage(SaveImage):
    """Images to PNG files in the temp area."""

    def __init__(self) -> None:
        super().__init__()
        self.output_dir = folder_paths.get_temp_directory()
        self.type = "temp"
        self.prefix_append = f"_temp_{uuid.uuid4().hex[:5]}"
        self.compress_level = QUICK_PNG_LEVEL

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        return {"required": {"images": ("IMAGE",)}, "hidden": {"prompt": "PROMPT", "extra_pnginfo": "EXTRA_PNGINFO"}}


def carried(prompt: Any, extra_pnginfo: Any) -> dict[str, str]:
    """Return the workflow metadata of files: JSON by name."""
    extra = extra_pnginfo if isinstance(extra_pnginfo, Mapping) else {}
    told = {**({} if prompt is None else {"prompt": prompt}), **extra}
    return {str(key): json.dumps(value) for key, value in told.items()}


def write_new(folder: str, stem: str, counter: int, ending: str, content: bytes) -> int:
    """Write a new file of the first free counter and return that: other nodes save here at the same time."""
    while True:
        try:
            with Path(folder, f"{stem}_{counter:05}{ending}").open("xb") as file:
                file.write(content)
            return counter
        except FileExistsError:
            counter += 1
