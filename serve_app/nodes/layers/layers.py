"""The nodes of layers: pictures with places, modes and opacities, stacked on a canvas, which the page arranges."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from math import radians
from typing import Annotated, Any, TypeAlias

import torch
from torch import Tensor

from serve_app.images import QUICK_PNG_LEVEL, to_png
from serve_app.nodes.declare import node
from serve_app.nodes.image.bounding_boxes import read_boxes
from serve_app.nodes.image.images import own_prefix, save_together, workflow_text
from serve_app.nodes.inputs import MAX_RESOLUTION, Bool, Float, InputType, Int, Text
from serve_app.nodes.layers.arrangement import Arrangement
from serve_app.nodes.layers.blending import MODES
from serve_app.nodes.layers.drawing import composed, extent, outputs
from serve_app.nodes.layers.stack import Layer, frame_mask, layers_of, size_of, stacked, whole
from serve_app.nodes.sockets import EXTRA_PNGINFO, IMAGE, LAYERS, MASK, PROMPT, STORE

BlendMode: TypeAlias = Annotated[
    str, InputType("COMBO", {"default": "normal", "multiselect": False, "options": list(MODES)})
]
Place: TypeAlias = Annotated[int, Int(0, min=-MAX_RESOLUTION, max=MAX_RESOLUTION)]
Side: TypeAlias = Annotated[int, Int(0, min=0, max=MAX_RESOLUTION)]


@node("AddLayer", "Add Layer", category="image", function="add", experimental=True)
def add_layer(
    image: IMAGE,
    layers: LAYERS | None = None,
    mask: MASK | None = None,
    name: Annotated[str, Text("", multiline=False)] = "",
    x: Place = 0,
    y: Place = 0,
    opacity: Annotated[float, Float(1.0, min=0.0, max=1.0, step=0.01)] = 1.0,
    blend_mode: BlendMode = "normal",
    rotation: Annotated[float, Float(0.0, min=-360.0, max=360.0, step=1.0)] = 0.0,
    width: Side = 0,
    height: Side = 0,
    z_index: Annotated[int, Int(0, min=-1000, max=1000)] = 0,
    flip_h: Annotated[bool, Bool(False)] = False,
    flip_v: Annotated[bool, Bool(False)] = False,
) -> LAYERS:
    """One more layer, or as many as a batch has.

    Return the stack with the layer on top of those of its z_index. rotation: degrees, clockwise.
    """
    item: dict[str, Any] = {"image": image, "type": "raster", "x": x, "y": y, "z_index": z_index}
    unusual = {
        "mask": (mask, None),
        "name": (name, ""),
        "opacity": (opacity, 1.0),
        "blend_mode": (blend_mode, "normal"),
        "rotation": (radians(rotation), 0.0),
        "w": (width, 0),
        "h": (height, 0),
        "flip_h": (flip_h, False),
        "flip_v": (flip_v, False),
    }
    item |= {key: value for key, (value, usual) in unusual.items() if value is not usual and value != usual}
    return stacked(layers, [item])


@node("LayersFromBoundingBoxes", "Layers From Bounding Boxes", category="image", function="stack", experimental=True)
def layers_from_bounding_boxes(
    image: IMAGE,
    bboxes: Annotated[Any, InputType("BOUNDING_BOX,ARRAY,STRING")],
    mask: MASK | None = None,
    layers: LAYERS | None = None,
    crop_to_content: Annotated[bool, Bool(True)] = True,
    canvas_width: Side = 0,
    canvas_height: Side = 0,
) -> LAYERS:
    """Each picture of a batch as a layer, where its box says.

    Return the stack with a layer for each picture; one without a box lies at the origin.

    crop_to_content: cut to metadata.content_rect of the box. Errors: NodeError for boxes that cannot be read.
    """
    boxes = read_boxes(bboxes, canvas_width, canvas_height)
    before = (layers or {}).get("layers") or []
    lowest = max((whole(item.get("z_index")) for item in before), default=-1) + 1
    items = []
    for number in range(len(image)):
        box = boxes[number] if number < len(boxes) else {}
        item = _boxed(image[number : number + 1], frame_mask(mask, number), box, crop=crop_to_content)
        metadata = box.get("metadata")
        z_index = metadata.get("z_index") if isinstance(metadata, Mapping) else None
        items.append(item | {"z_index": whole(z_index, lowest + number)})
    document = stacked(layers, items)
    if canvas_width > 0 and canvas_height > 0:
        document["canvas"] = (canvas_width, canvas_height)
    return document


@node(
    "ImageCompositor",
    "Create Layered Image",
    category="image",
    function="compose",
    return_types=("IMAGE", "MASK"),
    experimental=True,
    output_node=True,
    has_intermediate_output=True,
    search_aliases=("compositor", "composite", "layer", "layers", "layer editor", "psd"),
    required=("compositor",),
)
async def image_compositor(
    layers: LAYERS,
    prompt: PROMPT,
    extra_pnginfo: EXTRA_PNGINFO,
    store: STORE,
    compositor: Annotated[Any, InputType("COMPOSITOR", {"default": {}, "socketless": True})] = None,
) -> dict[str, Any]:
    """A stack as one picture: as its layers say, or as it was arranged on the page.

    Return the picture (1,H,W,3|4) and where it is transparent, and show it and each layer.

    compositor: an arrangement of the page, which counts while the layers are those that it was made of.
    """
    stack = list(layers_of(layers))
    digests = [layer.digest() for layer in stack]
    arrangement = Arrangement.read(compositor)
    kept = arrangement is not None and bool(stack) and arrangement.inputs == digests
    if arrangement is not None and kept:
        arranged, canvas, ground = arrangement.of(stack), arrangement.canvas, arrangement.ground
    else:
        arranged, canvas, ground = stack, size_of(layers) or extent(stack), None
    if stack:
        image, mask = outputs(await asyncio.to_thread(composed, arranged, canvas, ground))
    else:
        image, mask = torch.zeros(1, 64, 64, 3), torch.zeros(1, 64, 64)
    text = workflow_text([prompt], [extra_pnginfo])
    previews = [image[0], *(_preview(layer) for layer in stack)]
    pngs = [await asyncio.to_thread(to_png, preview, text, QUICK_PNG_LEVEL) for preview in previews]
    prefix = own_prefix("comfy.compositor")
    files = [(prefix, preview.shape[:2], png) for preview, png in zip(previews, pngs, strict=True)]
    shown = await save_together(store, "temp", ".png", files)
    ui: dict[str, Any] = {"images": shown[:1], "animated": (False,), "compositor_layers": shown[1:]}
    ui |= {"compositor_inputs": digests, "compositor_bboxes": [layer.shown() for layer in stack]}
    if compositor not in (None, "", "{}", {}) and not kept:
        ui["compositor_state_stale"] = [True]
    return {"ui": ui, "result": (image, mask)}


def _boxed(image: Tensor, mask: Tensor | None, box: Mapping[str, Any], *, crop: bool) -> dict[str, Any]:
    """Return the item of one picture, where its box says, and as large unless it is cut."""
    metadata = box.get("metadata")
    metadata = metadata if isinstance(metadata, Mapping) else {}
    x, y, width, height = (whole(box.get(key)) for key in ("x", "y", "width", "height"))
    cut = metadata.get("content_rect")
    rows, columns = image.shape[1:3]
    if crop and isinstance(cut, list | tuple) and len(cut) == 4:
        left, top, wide, high = (max(whole(value), 0) for value in cut)
        left, top = min(left, columns), min(top, rows)
        inside = slice(top, top + min(high, rows - top)), slice(left, left + min(wide, columns - left))
        if (part := image[:, inside[0], inside[1]]).numel():
            image, mask = part, None if mask is None else mask[:, inside[0], inside[1]]
            x, y, width, height = x + left, y + top, 0, 0
    # In ComfyUI's order, in which it is shown as text.
    item: dict[str, Any] = {"image": image, "type": "raster", "x": x, "y": y, "z_index": 0}
    item |= {key: value for key, value in (("w", width), ("h", height)) if value > 0}
    if mask is not None:
        item["mask"] = mask
    name = next(
        (metadata[key] for key in ("name", "desc") if isinstance(metadata.get(key), str) and metadata[key]), None
    )
    return item if name is None else {**item, "name": name}


def _preview(layer: Layer) -> Tensor:
    colours = layer.image[0, :, :, :3]
    return colours if layer.alpha is None else torch.cat([colours, layer.alpha[0][..., None]], dim=-1)
