"""The nodes that load all images or videos of a folder of uploaded files, with their captions.

A caption lies beside its image, under the same name with .txt. A folder inside may be called "3_cats": what is in it
then counts three times, as kohya's training scripts have it.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from pathlib import PurePosixPath
from typing import Annotated, TypeAlias

import torch

from serve_app.errors import NodeError
from serve_app.execution.protocol import FolderChoice
from serve_app.execution.runtime import NodeStore
from serve_app.execution.size import allow, bounds
from serve_app.media import loading
from serve_app.nodes.declare import node
from serve_app.nodes.inputs import Combo
from serve_app.nodes.sockets import IMAGE, STORE, STRING, VIDEO
from serve_app.nodes.video.value import Video, VideoFromFile
from serve_app.store.files.input_folders import INPUT_FOLDERS

IMAGES = (".png", ".jpg", ".jpeg", ".webp")
VIDEOS = (".mp4", ".avi", ".mov", ".webm", ".mkv", ".flv")
MOST_REPEATS = 1000
"""How many times a folder's files count at most."""


Folder: TypeAlias = Annotated[str, Combo(FolderChoice(INPUT_FOLDERS))]


@node(
    "LoadImageDataSetFromFolder",
    "Load Image (from Folder)",
    category="image",
    function="load",
    return_names=("images",),
    experimental=True,
    search_aliases=("load folder", "load from folder", "load dataset", "load images", "import dataset"),
)
async def load_image_data_set_from_folder(folder: Folder, store: STORE) -> list[IMAGE]:
    """The images of a folder.

    Return an image (1,H,W,3) of each file, by name. Errors: NodeError if there is none.
    """
    names = await _listed(store, folder, IMAGES)
    return await _images(store, folder, [name for name in names if "/" not in name])


@node(
    "LoadImageTextDataSetFromFolder",
    "Load Image-Text (from Folder)",
    category="image",
    function="load_pairs",
    return_names=("images", "texts"),
    experimental=True,
    search_aliases=("load folder", "load from folder", "load dataset", "load images", "import dataset"),
)
async def load_image_text_data_set_from_folder(folder: Folder, store: STORE) -> tuple[list[IMAGE], list[STRING]]:
    """The images of a folder and of those in it, with their captions.

    Return an image of each file and its text, "" without. Errors: NodeError if there is no image.
    """
    names = repeated(await _listed(store, folder, IMAGES))
    return await _images(store, folder, names), await _texts(store, folder, names)


@node(
    "LoadVideoDataSetFromFolder",
    "Load Video (from Folder)",
    category="video",
    function="load",
    return_names=("videos",),
    search_aliases=("load folder", "load from folder", "load dataset", "load videos", "import dataset"),
    experimental=True,
)
async def load_video_data_set_from_folder(folder: Folder, store: STORE) -> list[VIDEO]:
    """The videos of a folder. Return each file, by name, not decoded yet. Errors: NodeError if there is none."""
    names = await _listed(store, folder, VIDEOS)
    return await _videos(store, folder, [name for name in names if "/" not in name])


@node(
    "LoadVideoTextDataSetFromFolder",
    "Load Video-Text (from Folder)",
    category="video",
    function="load_pairs",
    return_names=("videos", "texts"),
    search_aliases=("load folder", "load from folder", "load dataset", "load videos", "import dataset"),
    experimental=True,
)
async def load_video_text_data_set_from_folder(folder: Folder, store: STORE) -> tuple[list[VIDEO], list[STRING]]:
    """The videos of a folder and of those in it, with their captions.

    Return each file and its text, "" without. Errors: NodeError if there is no video.
    """
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


async def _listed(store: NodeStore, folder: str, endings: tuple[str, ...]) -> list[str]:
    return [name for name in await store.below(folder) if name.lower().endswith(endings)]


async def _images(store: NodeStore, folder: str, names: Sequence[str]) -> list[torch.Tensor]:
    if not names:
        raise NodeError(f"folder '{folder}' has no image; a name of one ends in {', '.join(IMAGES)}")
    held: dict[str, torch.Tensor] = {}
    pixels = 0
    for name in dict.fromkeys(names):
        data = await store.read(f"{folder}/{name}")
        held[name] = await asyncio.to_thread(loading.load_picture, data, f"the file '{folder}/{name}'", bounds(), allow)
        pixels += held[name].numel()
        allow(pixels)
    return [held[name] for name in names]


async def _videos(store: NodeStore, folder: str, names: Sequence[str]) -> list[Video]:
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


async def _texts(store: NodeStore, folder: str, names: Sequence[str]) -> list[str]:
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
