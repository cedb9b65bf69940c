"""The nodes that load, make and save IMAGE."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Annotated, Any, TypeVar

import torch

from serve_app.execution.executing import executing
from serve_app.execution.runtime import NodeStore, Saved
from serve_app.execution.size import allow, bounds
from serve_app.images import PNG_LEVEL, QUICK_PNG_LEVEL, to_png
from serve_app.media import loading
from serve_app.nodes.declare import node
from serve_app.nodes.inputs import MAX_RESOLUTION, Bool, File, InputType, Int, Side, Text
from serve_app.nodes.sockets import EXTRA_PNGINFO, IMAGE, MASK, PROMPT, STORE
from serve_app.store.files.store import Area, FileRef

T = TypeVar("T")


@node("EmptyImage", "Empty Image", category="image", function="generate", required=("batch_size", "color"))
def empty_image(
    width: Side,
    height: Side,
    batch_size: Annotated[int, Int(1, min=1, max=4096)] = 1,
    color: Annotated[int, Int(0, min=0, max=0xFFFFFF, step=1, display="color")] = 0,
) -> IMAGE:
    """Images of one colour. Return (batch_size,height,width,3) of 0xRRGGBB."""
    allow(batch_size, height, width, 3)
    rgb = torch.tensor([(color >> shift & 0xFF) / 0xFF for shift in (16, 8, 0)])
    return rgb.repeat(batch_size, height, width, 1)


@node("LoadImage", "Load Image", category="image", function="load_image")
async def load_image(image: Annotated[str, File("input", image_upload=True)], store: STORE) -> tuple[IMAGE, MASK]:
    """An uploaded file to images and masks.

    Return every frame (B,H,W,3) and its mask (B,H,W), 1 where the file is transparent.
    """
    data, name = await store.read(image), FileRef.parse(image).filename
    return await asyncio.to_thread(loading.images, data, f"the file '{image}'", bounds(), allow, name)


@node(
    "LoadImageOutput",
    "Load Image (from Outputs)",
    category="image",
    function="load_image",
    description="Loads an image from the output folder.",
    experimental=True,
)
async def load_image_output(
    image: Annotated[
        str,
        File(
            "input",
            image_upload=True,
            image_folder="output",
            remote={"route": "/internal/files/output", "refresh_button": True, "control_after_refresh": "first"},
        ),
    ],
    store: STORE,
) -> tuple[IMAGE, MASK]:
    """A file that another job saved, to images and masks."""
    return await load_image(image, store)


@node(
    "PreviewImage",
    "Preview Image",
    category="image",
    function="save_images",
    return_types=("IMAGE",),
    output_is_list=(True,),
    return_names=("images",),
    output_node=True,
    skips_blocked=True,
    description="Shows the images; they are kept in the temp folder only.",
)
async def preview_image(
    images: list[IMAGE], prompt: list[PROMPT], extra_pnginfo: list[EXTRA_PNGINFO], store: list[STORE]
) -> dict[str, Any]:
    """Images to PNG files in the temp area, lightly compressed, for looking at."""
    shown = await previewed(images, prompt, extra_pnginfo, store[0])
    return {"ui": {"images": shown}, "result": (images,)}


@node(
    "SaveImage",
    "Save Image",
    category="image",
    function="save_images",
    return_types=("IMAGE",),
    output_is_list=(True,),
    return_names=("images",),
    output_node=True,
    skips_blocked=True,
    description="Saves the images to the output folder.",
)
async def save_image(
    images: list[IMAGE],
    prompt: list[PROMPT],
    extra_pnginfo: list[EXTRA_PNGINFO],
    store: list[STORE],
    filename_prefix: list[Annotated[str, Text("ComfyUI")]],
) -> dict[str, Any]:
    """Images to PNG files that carry their workflow.

    Takes its inputs as lists, so that all files of a node are saved at once: a retry then finds the same names.
    """
    shown = await _saved(images, prompt, extra_pnginfo, store[0], filename_prefix, "output", PNG_LEVEL)
    return {"ui": {"images": shown}, "result": (images,)}


@node("WebcamCapture", "Webcam Capture", category="image", function="load_capture")
async def webcam_capture(
    image: Annotated[Any, InputType("WEBCAM")],
    width: Annotated[int, Int(0, min=0, max=MAX_RESOLUTION, step=1)],
    height: Annotated[int, Int(0, min=0, max=MAX_RESOLUTION, step=1)],
    capture_on_queue: Annotated[bool, Bool(True)],
    store: STORE,
) -> IMAGE:
    """The picture that the browser took and uploaded. Load the file; the other inputs are the browser's."""
    images, _ = await load_image(image, store)
    return images


async def _saved(
    images: list[torch.Tensor],
    prompt: list[Any],
    extra_pnginfo: list[Any],
    store: NodeStore,
    prefixes: list[str],
    area: Area,
    compress_level: int,
) -> list[dict[str, Any]]:
    """Store every image of every batch as PNG, and return where."""
    text = workflow_text(prompt, extra_pnginfo)
    files: list[tuple[str, Sequence[int], Saved]] = []
    for i, batch in enumerate(images):
        size = batch.shape[1:3]
        files += [(at(prefixes, i), size, partial(to_png, image, text, compress_level)) for image in batch]
    return await save_together(store, area, ".png", files)


async def previewed(
    images: list[torch.Tensor],
    prompt: list[Any],
    extra_pnginfo: list[Any],
    store: NodeStore,
    compress_level: int = QUICK_PNG_LEVEL,
) -> list[dict[str, Any]]:
    """Store every image in the temp area, for looking at, and return where."""
    return await _saved(images, prompt, extra_pnginfo, store, ["ComfyUI_temp"], "temp", compress_level)


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
    store: NodeStore, area: Area, suffix: str, files: Sequence[tuple[str, Sequence[int], Saved]], mark: str = "_"
) -> list[dict[str, Any]]:
    """Store files of (prefix, (height, width) that %height% and %width% stand for, content), prefix by prefix.

    mark: as `NodeStore.save` takes it.
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
