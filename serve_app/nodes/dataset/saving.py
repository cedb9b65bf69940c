"""The nodes that save images into a folder of their own, with captions beside them, as training scripts read them.

ComfyUI's own counts from 0 and writes over what is there, unless told to count on. Here files of another job are never
written over: both of its modes count on.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from typing import Any

import torch

from serve_app.execution.runtime import Files
from serve_app.images import PNG_LEVEL, to_png
from serve_app.nodes.dynamic_inputs import combo


class SaveImageDataSetToFolder:
    """Images to PNG files of a folder, without their workflow."""

    RETURN_TYPES = ()
    FUNCTION = "save"
    OUTPUT_NODE = True
    INPUT_IS_LIST = True
    SKIPS_BLOCKED = True
    CATEGORY = "image"
    DEPRECATED = True
    EXPERIMENTAL = True
    SEARCH_ALIASES: tuple[str, ...] = ("save folder", "save to folder", "save dataset", "save images", "export dataset")
    OPTIONAL: Mapping[str, Any] = {}

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        return {
            "required": {
                "images": ("IMAGE", {}),
                "folder_name": ("STRING", {"default": "dataset", "multiline": False}),
                "filename_prefix": ("STRING", {"default": "image", "multiline": False, "advanced": True}),
                "mode": combo(["overwrite", "increment"], default="overwrite"),
            },
            "optional": dict(cls.OPTIONAL),
            "hidden": {"store": "STORE"},
        }

    async def save(
        self,
        images: Sequence[torch.Tensor],
        folder_name: Sequence[str],
        filename_prefix: Sequence[str],
        mode: Sequence[str],
        store: Sequence[Files],
        texts: Sequence[str] | None = None,
    ) -> dict[str, Any]:
        """Store each image of each batch as FOLDER/PREFIX_00001.png, its text beside it if there are any, and show.

        An image beyond the last text has an empty one.
        """
        pngs = [await asyncio.to_thread(to_png, image, {}, PNG_LEVEL) for batch in images for image in batch]
        prefix = f"{folder_name[0]}/{filename_prefix[0]}"
        if texts is None:
            return {"ui": {"images": await store[0].save("output", prefix, ".png", pngs, mark="")}}
        captions = [text.encode() for text in texts] + [b""] * len(pngs)
        contents = [content for pair in zip(pngs, captions, strict=False) for content in pair]
        saved = await store[0].save("output", prefix, ".png|.txt", contents, mark="")
        return {"ui": {"images": saved[::2], "files": saved[1::2]}}


class SaveImageTextDataSetToFolder(SaveImageDataSetToFolder):
    """Images and their captions to files of a folder."""

    DEPRECATED = False
    SEARCH_ALIASES = (*SaveImageDataSetToFolder.SEARCH_ALIASES[:4], "save text", "export dataset")
    OPTIONAL: Mapping[str, Any] = {"texts": ("STRING", {"multiline": False, "forceInput": True})}


NODE_CLASS_MAPPINGS: Mapping[str, type] = {
    "SaveImageDataSetToFolder": SaveImageDataSetToFolder,
    "SaveImageTextDataSetToFolder": SaveImageTextDataSetToFolder,
}

NODE_DISPLAY_NAME_MAPPINGS: Mapping[str, str] = {
    "SaveImageDataSetToFolder": "Save Image (to Folder) (DEPRECATED)",
    "SaveImageTextDataSetToFolder": "Save Image-Text (to Folder)",
}
