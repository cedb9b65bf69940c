"""The nodes that save a batch of IMAGE as one animated file.

As SaveImage they take their inputs as lists, so that a retry of all files of a node finds the same names. Their files
are shown as images with the mark `animated`, as in ComfyUI.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import Annotated, Any, TypeAlias

import torch

from serve_app.images import to_animated_png, to_animated_webp
from serve_app.nodes.declare import node
from serve_app.nodes.image.images import at, save_together, workflow_text
from serve_app.nodes.inputs import Bool, Choice, Float, Int, Text
from serve_app.nodes.sockets import EXTRA_PNGINFO, IMAGE, PROMPT, STORE

Fps: TypeAlias = Annotated[float, Float(6.0, min=0.01, max=1000.0, step=0.01)]
METHODS: Mapping[str, int] = {"default": 4, "fastest": 0, "slowest": 6}
"""Of how hard WebP compresses."""


@node(
    "SaveAnimatedWEBP",
    "Save Animated WEBP",
    category="image",
    function="save_images",
    return_types=("IMAGE",),
    output_is_list=(True,),
    return_names=("images",),
    output_node=True,
)
async def save_animated_webp(
    images: list[IMAGE],
    filename_prefix: list[Annotated[str, Text("ComfyUI", multiline=False)]],
    fps: list[Fps],
    lossless: list[Annotated[bool, Bool(True)]],
    quality: list[Annotated[int, Int(80, min=0, max=100)]],
    method: list[Annotated[str, Choice(METHODS)]],
    prompt: list[PROMPT],
    extra_pnginfo: list[EXTRA_PNGINFO],
    store: list[STORE],
) -> dict[str, Any]:
    """Images to an animated WebP file that carries its workflow. Store every batch as one file and show where."""
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
            method=METHODS[at(method, i)],
        )
        files.append((at(filename_prefix, i), frames.shape[1:3], webp))
    saved = await save_together(store[0], "output", ".webp", files)
    return {"ui": _shown(saved, images), "result": (images,)}


@node(
    "SaveAnimatedPNG",
    "Save Animated PNG",
    category="image",
    function="save_images",
    return_types=("IMAGE",),
    output_is_list=(True,),
    return_names=("images",),
    output_node=True,
)
async def save_animated_png(
    images: list[IMAGE],
    filename_prefix: list[Annotated[str, Text("ComfyUI", multiline=False)]],
    fps: list[Fps],
    compress_level: list[Annotated[int, Int(4, min=0, max=9)]],
    prompt: list[PROMPT],
    extra_pnginfo: list[EXTRA_PNGINFO],
    store: list[STORE],
) -> dict[str, Any]:
    """Images to an animated PNG file that carries its workflow. Store every batch as one file and show where."""
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
