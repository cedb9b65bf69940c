"""The nodes that load all images or videos of a folder of uploaded files, with their captions.

A caption lies beside its image, under the same name with .txt. A folder inside may be called "3_cats": what is in it
then counts three times, as kohya's training scripts have it.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from pathlib import PurePosixPath
from typing import Any

import torch

from serve_app.errors import NodeError
from serve_app.execution.protocol import FolderChoice
from serve_app.execution.runtime import Files
from serve_app.execution.size import allow, bounds
from serve_app.media import loading
from serve_app.nodes.video.value import Video, VideoFromFile
from serve_app.store.files.input_folders import INPUT_FOLDERS

IMAGES = (".png", ".jpg", ".jpeg", ".webp")
VIDEOS = (".mp4", ".avi", ".mov", ".webm", ".mkv", ".flv")
MOST_REPEATS = 1000
"""How many times a folder's files count at most."""


class LoadImageDataSetFromFolder:
    """The images of a folder."""

    RETURN_TYPES: tuple[str, ...] = ("IMAGE",)
    RETURN_NAMES: tuple[str, ...] = ("images",)
    OUTPUT_IS_LIST: tuple[bool, ...] = (True,)
    FUNCTION = "load"
    CATEGORY = "image"
    EXPERIMENTAL = True
    SEARCH_ALIASES = ("load folder", "load from folder", "load dataset", "load images", "import dataset")

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        chosen = ("COMBO", {"multiselect": False, "options": FolderChoice(INPUT_FOLDERS)})
        return {"required": {"folder": chosen}, "hidden": {"store": "STORE"}}

    async def load(self, folder: str, store: Files) -> tuple[list[torch.Tensor]]:
        """Return an image (1,H,W,3) of each file, by name. Errors: NodeError if there is none."""
        names = await _listed(store, folder, IMAGES)
        return (await _images(store, folder, [name for name in names if "/" not in name]),)


class LoadImageTextDataSetFromFolder(LoadImageDataSetFromFolder):
    """The images of a folder and of those in it, with their captions."""

    RETURN_TYPES = ("IMAGE", "STRING")
    RETURN_NAMES = ("images", "texts")
    OUTPUT_IS_LIST = (True, True)
    FUNCTION = "load_pairs"

    async def load_pairs(self, folder: str, store: Files) -> tuple[list[torch.Tensor], list[str]]:
        """Return an image of each file and its text, "" without. Errors: NodeError if there is no image."""
        names = repeated(await _listed(store, folder, IMAGES))
        return await _images(store, folder, names), await _texts(store, folder, names)


class LoadVideoDataSetFromFolder:
    """The videos of a folder."""

    RETURN_TYPES: tuple[str, ...] = ("VIDEO",)
    RETURN_NAMES: tuple[str, ...] = ("videos",)
    OUTPUT_IS_LIST: tuple[bool, ...] = (True,)
    FUNCTION = "load"
    CATEGORY = "video"
    EXPERIMENTAL = True
    SEARCH_ALIASES = ("load folder", "load from folder", "load dataset", "load videos", "import dataset")
    INPUT_TYPES = LoadImageDataSetFromFolder.INPUT_TYPES

    async def load(self, folder: str, store: Files) -> tuple[list[Video]]:
        """Return each file, by name, not decoded yet. Errors: NodeError if there is none."""
        names = await _listed(store, folder, VIDEOS)
        return (await _videos(store, folder, [name for name in names if "/" not in name]),)


class LoadVideoTextDataSetFromFolder(LoadVideoDataSetFromFolder):
    """The videos of a folder and of those in it, with their captions."""

    RETURN_TYPES = ("VIDEO", "STRING")
    RETURN_NAMES = ("videos", "texts")
    OUTPUT_IS_LIST = (True, True)
    FUNCTION = "load_pairs"

    async def load_pairs(self, folder: str, store: Files) -> tuple[list[Video], list[str]]:
        """Return each file and its text, "" without. Errors: NodeError if there is no video."""
        names = repeated(await _listed(store, folder, VIDEOS))
        return await _videos(store, folder, names), await _texts(store, folder, names)


def repeated(names: Sequence[str]) -> list[str]:
    """Return the files of a folder and of those directly in it, each as often as its folder's name says.

    Errors: NodeError for a folder that counts too often.
    """
    found: list[str] = []
    for name in names:
        path = PurePosixPath(name)
        if len(path.parts) > 2:
            continue
        number = path.parts[0].split("_")[0]
        times = int(number) if len(path.parts) == 2 and number.isdecimal() else 1
        if times > MOST_REPEATS:
            raise NodeError(f"the folder '{path.parts[0]}' counts {times:,} times; {MOST_REPEATS:,} is the most")
        found += [name] * times
    return found


async def _listed(store: Files, folder: str, endings: tuple[str, ...]) -> list[str]:
    return [name for name in await store.below(folder) if name.lower().endswith(endings)]


async def _images(store: Files, folder: str, names: Sequence[str]) -> list[torch.Tensor]:
    if not names:
        raise NodeError(f"folder '{folder}' has no image; a name of one ends in {', '.join(IMAGES)}")
    held: dict[str, torch.Tensor] = {}
    pixels = 0
    for name in dict.fromkeys(names):
        data = await store.read(f"{folder}/{name}")
        held[name] = await asyncio.to_thread(loading.picture, data, f"the file '{folder}/{name}'", bounds(), allow)
        pixels += held[name].numel()
        allow(pixels)
    return [held[name] for name in names]


async def _videos(store: Files, folder: str, names: Sequence[str]) -> list[Video]:
    if not names:
        raise NodeError(f"folder '{folder}' has no video; a name of one ends in {', '.join(VIDEOS)}")
    held: dict[str, Video] = {}
    size = 0
    for name in dict.fromkeys(names):
        data = await store.read(f"{folder}/{name}")
        size += len(data)
        allow(-(-size // 4))
        held[name] = VideoFromFile(data, name=f"{folder}/{name}")
    return [held[name] for name in names]


async def _texts(store: Files, folder: str, names: Sequence[str]) -> list[str]:
    """Return the caption beside each file, without spaces around it, "" where there is none."""
    there = {name for name in await store.below(folder) if name.endswith(".txt")}
    held: dict[str, str] = {}
    for name in dict.fromkeys(names):
        caption = str(PurePosixPath(name).with_suffix(".txt"))
        data = await store.read(f"{folder}/{caption}") if caption in there else b""
        try:
            held[name] = data.decode().strip()
        except UnicodeDecodeError as error:
            raise NodeError(f"the caption '{folder}/{caption}' is no text in UTF-8: {error}") from error
    return [held[name] for name in names]


NODE_CLASS_MAPPINGS: Mapping[str, type] = {
    "LoadImageDataSetFromFolder": LoadImageDataSetFromFolder,
    "LoadImageTextDataSetFromFolder": LoadImageTextDataSetFromFolder,
    "LoadVideoDataSetFromFolder": LoadVideoDataSetFromFolder,
    "LoadVideoTextDataSetFromFolder": LoadVideoTextDataSetFromFolder,
}

NODE_DISPLAY_NAME_MAPPINGS: Mapping[str, str] = {
    "LoadImageDataSetFromFolder": "Load Image (from Folder)",
    "LoadImageTextDataSetFromFolder": "Load Image-Text (from Folder)",
    "LoadVideoDataSetFromFolder": "Load Video (from Folder)",
    "LoadVideoTextDataSetFromFolder": "Load Video-Text (from Folder)",
}
