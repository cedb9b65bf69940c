"""The nodes that save images into a folder of their own, with captions beside them, as training scripts read them.

ComfyUI's own counts from 0 and writes over what is there, unless told to count on. Here files of another job are never
written over: both of its modes count on.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Annotated, Any, TypeAlias

from serve_app.images import PNG_LEVEL, to_png
from serve_app.nodes.declare import node
from serve_app.nodes.inputs import Combo, Text
from serve_app.nodes.sockets import IMAGE, STORE

FolderName: TypeAlias = Annotated[str, Text("dataset", multiline=False)]
FilenamePrefix: TypeAlias = Annotated[str, Text("image", multiline=False, advanced=True)]
Mode: TypeAlias = Annotated[str, Combo(["overwrite", "increment"], default="overwrite")]


@node(
    "SaveImageDataSetToFolder",
    "Save Image (to Folder) (DEPRECATED)",
    category="image",
    function="save",
    output_node=True,
    skips_blocked=True,
    deprecated=True,
    experimental=True,
    search_aliases=("save folder", "save to folder", "save dataset", "save images", "export dataset"),
)
async def save_image_data_set_to_folder(
    images: list[IMAGE],
    folder_name: list[FolderName],
    filename_prefix: list[FilenamePrefix],
    mode: list[Mode],
    store: list[STORE],
    texts: Sequence[str] | None = None,
) -> dict[str, Any]:
    """Images to PNG files of a folder, without their workflow.

    Store each image of each batch as FOLDER/PREFIX_00001.png, its text beside it if there are any, and show.

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


@node(
    "SaveImageTextDataSetToFolder",
    "Save Image-Text (to Folder)",
    category="image",
    function="save",
    search_aliases=("save folder", "save to folder", "save dataset", "save images", "save text", "export dataset"),
    output_node=True,
    skips_blocked=True,
    experimental=True,
)
async def save_image_text_data_set_to_folder(
    images: list[IMAGE],
    folder_name: list[FolderName],
    filename_prefix: list[FilenamePrefix],
    mode: list[Mode],
    store: list[STORE],
    texts: list[Annotated[str, Text(multiline=False, forceInput=True)]] | None = None,
) -> dict[str, Any]:
    """Images and their captions to files of a folder."""
    return await save_image_data_set_to_folder(images, folder_name, filename_prefix, mode, store, texts)
