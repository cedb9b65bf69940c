"""The nodes that save IMAGE with more than eight bits, and that show two for comparison."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from typing import Annotated, Any

import torch

from serve_app.images import PNG_LEVEL, QUICK_PNG_LEVEL, to_png
from serve_app.images_deep import to_deep_png, to_exr
from serve_app.nodes.declare import node
from serve_app.nodes.image.images import at, own_prefix, save_together, workflow_text
from serve_app.nodes.inputs import Combo, DynamicCombo, InputType, Text
from serve_app.nodes.sockets import EXTRA_PNGINFO, IMAGE, PROMPT, STORE

FORMATS: Mapping[str, Mapping[str, Any]] = {
    "png": {
        "bit_depth": Combo(["8-bit", "16-bit"], default="8-bit", advanced=True),
        "input_color_space": Combo(["sRGB"], default="sRGB", advanced=True),
    },
    "exr": {
        "bit_depth": Combo(["32-bit float"], default="32-bit float", advanced=True),
        "input_color_space": Combo(["sRGB", "HDR", "linear"], default="sRGB", advanced=True),
    },
}


@node(
    "SaveImageAdvanced",
    "Save Image (Advanced)",
    category="image",
    function="save_images",
    return_types=("IMAGE",),
    output_is_list=(True,),
    return_names=("images",),
    output_node=True,
    skips_blocked=True,
    essentials_category="Basics",
    description="Saves the images to the output folder.",
)
async def save_image_advanced(
    images: list[IMAGE],
    filename_prefix: list[Annotated[str, Text("ComfyUI", multiline=False)]],
    format: Annotated[Mapping[str, list[str]], DynamicCombo(FORMATS)],
    prompt: list[PROMPT],
    extra_pnginfo: list[EXTRA_PNGINFO],
    store: list[STORE],
) -> dict[str, Any]:
    """Images to PNG of 8 or 16 bits, or to EXR, with their workflow.

    Takes its inputs as lists, so that all files of a node are saved at once: a retry then finds the same names.

    Store every image, show where, and pass them on. An EXR holds linear light, whatever the images are.
    """
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


@node(
    "ImageCompare",
    "Compare Images",
    category="image",
    function="compare",
    output_node=True,
    experimental=True,
    essentials_category="Image Tools",
    description="Shows two images with a slider between them.",
    required=("compare_view",),
)
async def image_compare(
    prompt: PROMPT,
    extra_pnginfo: EXTRA_PNGINFO,
    store: STORE,
    image_a: IMAGE | None = None,
    image_b: IMAGE | None = None,
    compare_view: Annotated[Any, InputType("IMAGECOMPARE", {"socketless": True})] = None,
) -> dict[str, Any]:
    """Two batches side by side on the page. Store what there is in the temp area and show where."""
    text = workflow_text([prompt], [extra_pnginfo])
    files: list[tuple[str, Sequence[int], bytes]] = []
    for prefix, images in (("comfy.compare.a", image_a), ("comfy.compare.b", image_b)):
        for image in images if images is not None else ():
            png = await asyncio.to_thread(to_png, image, text, QUICK_PNG_LEVEL)
            files.append((own_prefix(prefix), image.shape[:2], png))
    shown = await save_together(store, "temp", ".png", files)
    count = 0 if image_a is None else len(image_a)
    return {"ui": {"a_images": shown[:count], "b_images": shown[count:]}}
