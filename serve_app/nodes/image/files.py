"""The nodes that save IMAGE with more than eight bits, and that show two for comparison."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from typing import Any

import torch

from serve_app.execution.runtime import Files
from serve_app.images import PNG_LEVEL, QUICK_PNG_LEVEL, to_png
from serve_app.images_deep import to_deep_png, to_exr
from serve_app.nodes.dynamic_inputs import combo, dynamic_combo
from serve_app.nodes.image.images import at, own_prefix, save_together, workflow_text

FORMATS: Mapping[str, Mapping[str, Any]] = {
    "png": {
        "bit_depth": combo(["8-bit", "16-bit"], default="8-bit", advanced=True),
        "input_color_space": combo(["sRGB"], default="sRGB", advanced=True),
    },
    "exr": {
        "bit_depth": combo(["32-bit float"], default="32-bit float", advanced=True),
        "input_color_space": combo(["sRGB", "HDR", "linear"], default="sRGB", advanced=True),
    },
}


class SaveImageAdvanced:
    """Images to PNG of 8 or 16 bits, or to EXR, with their workflow.

    Takes its inputs as lists, so that all files of a node are saved at once: a retry then finds the same names.
    """

    RETURN_TYPES = ("IMAGE",)
    RETURN_NAMES = ("images",)
    OUTPUT_IS_LIST = (True,)
    FUNCTION = "save_images"
    OUTPUT_NODE = True
    INPUT_IS_LIST = True
    SKIPS_BLOCKED = True
    CATEGORY = "image"
    ESSENTIALS_CATEGORY = "Basics"
    DESCRIPTION = "Saves the images to the output folder."

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        return {
            "required": {
                "images": ("IMAGE", {}),
                "filename_prefix": ("STRING", {"default": "ComfyUI", "multiline": False}),
                "format": dynamic_combo(FORMATS),
            },
            "hidden": {"prompt": "PROMPT", "extra_pnginfo": "EXTRA_PNGINFO", "store": "STORE"},
        }

    async def save_images(
        self,
        images: list[torch.Tensor],
        filename_prefix: list[str],
        format: Mapping[str, list[str]],
        prompt: list[Any],
        extra_pnginfo: list[Any],
        store: list[Files],
    ) -> dict[str, Any]:
        """Store every image, show where, and pass them on. An EXR holds linear light, whatever the images are."""
        text = workflow_text(prompt, extra_pnginfo)
        kind, depth, space = (format[name][0] for name in ("format", "bit_depth", "input_color_space"))

        def encoded(image: torch.Tensor) -> bytes:
            if kind == "exr":
                return to_exr(image, text, space)
            return to_deep_png(image, text) if depth == "16-bit" else to_png(image, text, PNG_LEVEL)

        files = []
        for index, batch in enumerate(images):
            prefix, size = at(filename_prefix, index), batch.shape[1:3]
            files += [(prefix, size, await asyncio.to_thread(encoded, image)) for image in batch]
        shown = await save_together(store[0], "output", f".{kind}", files, mark="")
        return {"ui": {"images": shown}, "result": (images,)}


class ImageCompare:
    """Two batches side by side on the page."""

    RETURN_TYPES = ()
    FUNCTION = "compare"
    OUTPUT_NODE = True
    EXPERIMENTAL = True
    CATEGORY = "image"
    ESSENTIALS_CATEGORY = "Image Tools"
    DESCRIPTION = "Shows two images with a slider between them."

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        return {
            "required": {"compare_view": ("IMAGECOMPARE", {"socketless": True})},
            "optional": {"image_a": ("IMAGE", {}), "image_b": ("IMAGE", {})},
            "hidden": {"prompt": "PROMPT", "extra_pnginfo": "EXTRA_PNGINFO", "store": "STORE"},
        }

    async def compare(
        self,
        prompt: Any,
        extra_pnginfo: Any,
        store: Files,
        image_a: torch.Tensor | None = None,
        image_b: torch.Tensor | None = None,
        compare_view: Any = None,
    ) -> dict[str, Any]:
        """Store what there is in the temp area and show where."""
        text = workflow_text([prompt], [extra_pnginfo])
        files: list[tuple[str, Sequence[int], bytes]] = []
        for prefix, images in (("comfy.compare.a", image_a), ("comfy.compare.b", image_b)):
            for image in images if images is not None else ():
                png = await asyncio.to_thread(to_png, image, text, QUICK_PNG_LEVEL)
                files.append((own_prefix(prefix), image.shape[:2], png))
        shown = await save_together(store, "temp", ".png", files)
        count = 0 if image_a is None else len(image_a)
        return {"ui": {"a_images": shown[:count], "b_images": shown[count:]}}


NODE_CLASS_MAPPINGS: Mapping[str, type] = {"SaveImageAdvanced": SaveImageAdvanced, "ImageCompare": ImageCompare}

NODE_DISPLAY_NAME_MAPPINGS: Mapping[str, str] = {
    "SaveImageAdvanced": "Save Image (Advanced)",
    "ImageCompare": "Compare Images",
}
