"""The nodes of layers: pictures with places, modes and opacities, stacked on a canvas that the page's editor changes.

A stack is ComfyUI's LAYERS: {"version": 1, "layers": [{"image", "x", "y", "z_index", …}], "canvas": (w,h)}.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from math import ceil, cos, degrees, floor, isfinite, radians, sin
from typing import Any, TypeAlias

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn.functional import interpolate

from serve_app.errors import NodeError
from serve_app.images import QUICK_PNG_LEVEL, to_png
from serve_app.nodes.builtin.bounding_boxes import read_boxes
from serve_app.nodes.builtin.image import own_prefix, save_together, workflow_text
from serve_app.nodes.builtin.image_regions import rgb
from serve_app.nodes.builtin.latent import MAX_RESOLUTION
from serve_app.nodes.builtin.layer_blending import MODES, from_linear, over, to_linear
from serve_app.nodes.runtime import Files
from serve_app.nodes.size import allow

Document: TypeAlias = "dict[str, Any]"
"""LAYERS."""

MOST_LAYERS = 50
OPAQUE = 1 - 1e-3
"""The alpha from which on a picture counts as whole."""
_HEX = re.compile(r"#([0-9A-Fa-f]{6}|[0-9A-Fa-f]{3})")


@dataclass(frozen=True, slots=True, eq=False)
class Layer:
    """One picture of a stack. image: (1,H,W,3|4); alpha: (1,H,W), None where it is whole. w, h: how large it is shown.

    rotation: in radians, clockwise.
    """

    image: Tensor
    alpha: Tensor | None
    name: str | None = None
    x: float = 0
    y: float = 0
    w: float = 0
    h: float = 0
    rotation: float = 0.0
    opacity: float = 1.0
    mode: str = "normal"
    visible: bool = True
    flip_h: bool = False
    flip_v: bool = False

    def digest(self) -> str:
        """Return what tells it from others, as the page keeps it with a composition."""
        digest = hashlib.sha256(repr(tuple(self.image.shape)).encode())
        digest.update(_bytes(self.image[0, :, :, :3]).tobytes())
        if self.alpha is not None:
            digest.update(_bytes(self.alpha[0]).tobytes())
        places = (self.x, self.y, self.w, self.h, self.rotation, self.opacity, self.mode, self.visible)
        digest.update(repr((*places, self.flip_h, self.flip_v)).encode())
        return digest.hexdigest()[:16]

    def shown(self) -> dict[str, Any]:
        """Return what the page's editor is told of it."""
        return {
            "x": self.x,
            "y": self.y,
            "width": int(self.w),
            "height": int(self.h),
            "rotation": self.rotation,
            "name": self.name,
            "visible": self.visible,
            "opacity": self.opacity,
            "blend": self.mode,
            "flipH": self.flip_h,
            "flipV": self.flip_v,
        }


class AddLayer:
    """One more layer, or as many as a batch has."""

    RETURN_TYPES = ("LAYERS",)
    FUNCTION = "add"
    CATEGORY = "image"
    EXPERIMENTAL = True

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        place = {"default": 0, "min": -MAX_RESOLUTION, "max": MAX_RESOLUTION}
        side = {"default": 0, "min": 0, "max": MAX_RESOLUTION}
        return {
            "required": {"image": ("IMAGE", {})},
            "optional": {
                "layers": ("LAYERS", {}),
                "mask": ("MASK", {}),
                "name": ("STRING", {"default": "", "multiline": False}),
                "x": ("INT", place),
                "y": ("INT", place),
                "opacity": ("FLOAT", {"default": 1.0, "min": 0.0, "max": 1.0, "step": 0.01}),
                "blend_mode": ("COMBO", {"default": "normal", "multiselect": False, "options": list(MODES)}),
                "rotation": ("FLOAT", {"default": 0.0, "min": -360.0, "max": 360.0, "step": 1.0}),
                "width": ("INT", side),
                "height": ("INT", side),
                "z_index": ("INT", {"default": 0, "min": -1000, "max": 1000}),
                "flip_h": ("BOOLEAN", {"default": False}),
                "flip_v": ("BOOLEAN", {"default": False}),
            },
        }

    def add(
        self,
        image: Tensor,
        layers: Document | None = None,
        mask: Tensor | None = None,
        name: str = "",
        x: int = 0,
        y: int = 0,
        opacity: float = 1.0,
        blend_mode: str = "normal",
        rotation: float = 0.0,
        width: int = 0,
        height: int = 0,
        z_index: int = 0,
        flip_h: bool = False,
        flip_v: bool = False,
    ) -> tuple[Document]:
        """Return the stack with the layer on top of those of its z_index. rotation: degrees, clockwise."""
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
        return (_stacked(layers, [item]),)


class LayersFromBoundingBoxes:
    """Each picture of a batch as a layer, where its box says."""

    RETURN_TYPES = ("LAYERS",)
    FUNCTION = "stack"
    CATEGORY = "image"
    EXPERIMENTAL = True

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        side = {"default": 0, "min": 0, "max": MAX_RESOLUTION}
        return {
            "required": {"image": ("IMAGE", {}), "bboxes": ("BOUNDING_BOX,ARRAY,STRING", {})},
            "optional": {
                "mask": ("MASK", {}),
                "layers": ("LAYERS", {}),
                "crop_to_content": ("BOOLEAN", {"default": True}),
                "canvas_width": ("INT", side),
                "canvas_height": ("INT", side),
            },
        }

    def stack(
        self,
        image: Tensor,
        bboxes: Any,
        mask: Tensor | None = None,
        layers: Document | None = None,
        crop_to_content: bool = True,
        canvas_width: int = 0,
        canvas_height: int = 0,
    ) -> tuple[Document]:
        """Return the stack with a layer for each picture; one without a box lies at the origin.

        crop_to_content: cut to metadata.content_rect of the box. Errors: NodeError for boxes that cannot be read.
        """
        boxes = read_boxes(bboxes, canvas_width, canvas_height)
        before = (layers or {}).get("layers") or []
        lowest = max((_whole(item.get("z_index")) for item in before), default=-1) + 1
        items = []
        for number in range(len(image)):
            box = boxes[number] if number < len(boxes) else {}
            item = _boxed(image[number : number + 1], _frame_mask(mask, number), box, crop=crop_to_content)
            told = box.get("metadata")
            z_index = told.get("z_index") if isinstance(told, Mapping) else None
            items.append({**item, "z_index": _whole(z_index, lowest + number)})
        document = _stacked(layers, items)
        if canvas_width > 0 and canvas_height > 0:
            document["canvas"] = (canvas_width, canvas_height)
        return (document,)


class ImageCompositor:
    """A stack as one picture: as its layers say, or as it was arranged on the page."""

    RETURN_TYPES = ("IMAGE", "MASK")
    FUNCTION = "compose"
    CATEGORY = "image"
    EXPERIMENTAL = True
    OUTPUT_NODE = True
    HAS_INTERMEDIATE_OUTPUT = True
    SEARCH_ALIASES = ("compositor", "composite", "layer", "layers", "layer editor", "psd")

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        return {
            "required": {"layers": ("LAYERS", {}), "compositor": ("COMPOSITOR", {"default": {}, "socketless": True})},
            "hidden": {"prompt": "PROMPT", "extra_pnginfo": "EXTRA_PNGINFO", "store": "STORE"},
        }

    async def compose(
        self, layers: Document, prompt: Any, extra_pnginfo: Any, store: Files, compositor: Any = None
    ) -> dict[str, Any]:
        """Return the picture (1,H,W,3|4) and where it is transparent, and show it and each layer.

        compositor: an arrangement of the page, which counts while the layers are those that it was made of.
        """
        stack = list(_layers(layers))
        digests = [layer.digest() for layer in stack]
        state = _state(compositor)
        kept = state is not None and bool(stack) and state.get("inputs") == digests
        if kept and state is not None:
            arranged = _arranged(stack, state)
            canvas, background = _canvas(state), state.get("background")
        else:
            arranged = stack
            canvas, background = _size(layers) or _extent(stack), None
        if stack:
            image, mask = _outputs(await asyncio.to_thread(_composed, arranged, canvas, background))
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


def _stacked(before: Document | None, items: Sequence[Mapping[str, Any]]) -> Document:
    document: Document = {"version": 1, "layers": [*((before or {}).get("layers") or ()), *items]}
    if (size := _size(before)) is not None:
        document["canvas"] = size
    return document


def _boxed(image: Tensor, mask: Tensor | None, box: Mapping[str, Any], *, crop: bool) -> dict[str, Any]:
    """Return the item of one picture, where its box says, and as large unless it is cut."""
    told = box.get("metadata")
    told = told if isinstance(told, Mapping) else {}
    x, y, width, height = (_whole(box.get(key)) for key in ("x", "y", "width", "height"))
    item: dict[str, Any] = {"type": "raster"}
    cut = told.get("content_rect")
    rows, columns = image.shape[1:3]
    if crop and isinstance(cut, list | tuple) and len(cut) == 4:
        left, top, wide, high = (max(_whole(value), 0) for value in cut)
        left, top = min(left, columns), min(top, rows)
        inside = slice(top, top + min(high, rows - top)), slice(left, left + min(wide, columns - left))
        if (part := image[:, inside[0], inside[1]]).numel():
            image, mask = part, None if mask is None else mask[:, inside[0], inside[1]]
            x, y, width, height = x + left, y + top, 0, 0
    item |= {"image": image, "x": x, "y": y}
    item |= {key: value for key, value in (("w", width), ("h", height)) if value > 0}
    if mask is not None:
        item["mask"] = mask
    name = next((told[key] for key in ("name", "desc") if isinstance(told.get(key), str) and told[key]), None)
    return item if name is None else {**item, "name": name}


def _frame_mask(mask: Tensor | None, number: int) -> Tensor | None:
    if mask is None or len(mask) == 1:
        return mask
    return mask[number : number + 1] if number < len(mask) else None


def _layers(document: Any) -> Iterator[Layer]:
    """Yield the layers from the lowest up, one for each picture of an item. Errors: NodeError for what is no stack."""
    if not isinstance(document, Mapping) or document.get("version", 1) != 1:
        raise NodeError("layers are {'version': 1, 'layers': […]}, as Add Layer makes them")
    items = [item for item in document.get("layers") or () if isinstance(item, Mapping)]
    count = 0
    for item in sorted(items, key=lambda item: _whole(item.get("z_index"))):
        mode = item.get("blend_mode") or "normal"
        if item.get("type", "raster") != "raster" or mode not in MODES:
            raise NodeError(
                f"a layer of type {item.get('type')!r} and mode {mode!r}; only rasters of {', '.join(MODES)}"
            )
        image = item.get("image")
        if not isinstance(image, Tensor):
            continue
        count += len(image)
        if count > MOST_LAYERS:
            raise NodeError(f"there are {count} layers or more; {MOST_LAYERS} is the most")
        for number in range(len(image)):
            frame = image[number : number + 1]
            wide, high = _whole(item.get("w")), _whole(item.get("h"))
            yield Layer(
                frame,
                _alpha(frame, _frame_mask(item.get("mask"), number)),
                item["name"] if isinstance(item.get("name"), str) else None,
                _whole(item.get("x")),
                _whole(item.get("y")),
                wide if wide > 0 else frame.shape[2],
                high if high > 0 else frame.shape[1],
                _number(item.get("rotation"), 0.0),
                _number(item.get("opacity"), 1.0),
                mode,
                bool(item.get("visible", True)),
                bool(item.get("flip_h", False)),
                bool(item.get("flip_v", False)),
            )


def _alpha(image: Tensor, mask: Tensor | None) -> Tensor | None:
    alpha = image[..., 3] if image.shape[-1] == 4 else None
    if mask is None:
        return alpha
    mask = mask.float()
    if mask.shape[1:] != image.shape[1:3]:
        mask = interpolate(mask[:, None], size=image.shape[1:3], mode="bilinear")[:, 0]
    kept = (1 - mask).clamp(0, 1)
    return kept if alpha is None else alpha * kept


def _state(given: Any) -> Mapping[str, Any] | None:
    """Return an arrangement of the page, None for none or for what is none."""
    if isinstance(given, str):
        try:
            given = json.loads(given)
        except ValueError:
            return None
    if not isinstance(given, Mapping) or given.get("version", 1) != 1 or not isinstance(given.get("layers"), list):
        return None
    canvas = given.get("canvas")
    sides = [canvas.get("w"), canvas.get("h")] if isinstance(canvas, Mapping) else []
    return given if sides and all(_number(side, 0) >= 0.5 for side in sides) else None


def _canvas(state: Mapping[str, Any]) -> tuple[int, int]:
    return round(_number(state["canvas"]["w"], 0)), round(_number(state["canvas"]["h"], 0))


def _arranged(stack: Sequence[Layer], state: Mapping[str, Any]) -> list[Layer]:
    """Return the layers as an arrangement has them, the lowest first."""
    told = state["layers"]
    arranged = [_moved(layer, told[number] if number < len(told) else None) for number, layer in enumerate(stack)]
    order = state.get("order")
    if not isinstance(order, list) or not all(type(place) is int for place in order):
        return arranged
    if sorted(order) != list(range(len(told))):
        return arranged
    return [arranged[place] for place in order if place < len(arranged)]


def _moved(layer: Layer, told: Any) -> Layer:
    """Return a layer where an arrangement has it. That comes from a client: its numbers are kept within bounds."""
    told = told if isinstance(told, Mapping) else {}
    place = told.get("transform")
    place = place if isinstance(place, Mapping) else {}
    rows, columns = layer.image.shape[1:3]
    w, h = (_number(place.get(key), side) for key, side in (("w", columns), ("h", rows)))
    mode = told.get("blend")
    return replace(
        layer,
        x=min(max(_number(place.get("x"), 0.0), -MAX_RESOLUTION), MAX_RESOLUTION),
        y=min(max(_number(place.get("y"), 0.0), -MAX_RESOLUTION), MAX_RESOLUTION),
        w=min(w, MAX_RESOLUTION) if w > 0 else columns,
        h=min(h, MAX_RESOLUTION) if h > 0 else rows,
        rotation=_number(place.get("rotation"), 0.0),
        opacity=min(max(_number(told.get("opacity"), 1.0), 0.0), 1.0),
        mode=mode if isinstance(mode, str) else "normal",
        visible=bool(told.get("visible", True)),
        flip_h=bool(told.get("flipH", False)),
        flip_v=bool(told.get("flipV", False)),
    )


def _composed(stack: Sequence[Layer], canvas: tuple[int, int], background: Any) -> Tensor:
    """Return the layers over one another, (1,H,W,4). Errors: NodeError for a canvas over the limits."""
    width, height = canvas
    if max(canvas) > MAX_RESOLUTION:
        raise NodeError(f"the canvas is {width}×{height}; {MAX_RESOLUTION} is the most for a side")
    allow(1, height, width, 4)
    made = torch.zeros(height, width, 4)
    if isinstance(background, Mapping) and background.get("visible", True):
        ground = torch.ones(height, width, 4)
        ground[..., :3] = to_linear(torch.tensor(_colour(background.get("color"))))
        made = over(made, ground, "normal", min(max(_number(background.get("opacity"), 1.0), 0.0), 1.0))
    for layer in stack:
        if not layer.visible:
            continue
        left, top, wide, high = _bounds(layer)
        x, y, right, bottom = max(left, 0), max(top, 0), min(left + wide, width), min(top + high, height)
        if x < right and y < bottom:
            placed = _placed(layer, wide, high)[y - top : bottom - top, x - left : right - left]
            made[y:bottom, x:right] = over(made[y:bottom, x:right], placed, layer.mode, layer.opacity)
    colours = from_linear(made[..., :3].clamp(0, 1))
    return torch.cat([colours, made[..., 3:].clamp(0, 1)], dim=-1)[None]


def _placed(layer: Layer, wide: int, high: int) -> Tensor:
    """Return a layer as it is shown, in the middle of its bounds, (high,wide,4) in linear light."""
    allow(1, high, wide, 4)
    pixels = _bytes(layer.image[0, :, :, :3])
    alpha = np.full(pixels.shape[:2], 255, np.uint8) if layer.alpha is None else _bytes(layer.alpha[0])
    image = Image.fromarray(np.dstack([pixels, alpha]), "RGBA")
    if layer.flip_h:
        image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    if layer.flip_v:
        image = image.transpose(Image.Transpose.FLIP_TOP_BOTTOM)
    size = max(1, round(layer.w)), max(1, round(layer.h))
    if image.size != size:
        image = image.resize(size, Image.Resampling.LANCZOS)
    if layer.rotation:
        image = image.rotate(-degrees(layer.rotation), Image.Resampling.BICUBIC, expand=True, fillcolor=(0, 0, 0, 0))
    drawn = torch.from_numpy(np.asarray(image, np.float32) / 255)
    drawn = torch.cat([to_linear(drawn[..., :3]), drawn[..., 3:]], dim=-1)
    rows, columns = drawn.shape[:2]
    left, top = (wide - columns) // 2, (high - rows) // 2
    made = torch.zeros(high, wide, 4)
    into = made[max(top, 0) : top + rows, max(left, 0) : left + columns]
    into.copy_(drawn[max(-top, 0) :, max(-left, 0) :][: into.shape[0], : into.shape[1]])
    return made


def _bounds(layer: Layer) -> tuple[int, int, int, int]:
    """Return (left, top, width, height) of the pixels that a layer may reach."""
    across, down = abs(cos(layer.rotation)), abs(sin(layer.rotation))
    half = (layer.w * across + layer.h * down) / 2, (layer.w * down + layer.h * across) / 2
    middle = layer.x + layer.w / 2, layer.y + layer.h / 2
    left, top = (floor(m - h) for m, h in zip(middle, half, strict=True))
    right, bottom = (ceil(m + h) for m, h in zip(middle, half, strict=True))
    return left, top, max(1, right - left), max(1, bottom - top)


def _extent(stack: Sequence[Layer]) -> tuple[int, int]:
    ends = [(left + wide, top + high) for left, top, wide, high in map(_bounds, stack)]
    return max([1, *(right for right, _ in ends)]), max([1, *(bottom for _, bottom in ends)])


def _outputs(made: Tensor) -> tuple[Tensor, Tensor]:
    """Return a picture without alpha if it is whole, and where it is transparent."""
    alpha = made[..., 3]
    if bool((alpha >= OPAQUE).all()):
        return made[..., :3], torch.zeros_like(alpha)
    return made, (1 - alpha).clamp(0, 1)


def _preview(layer: Layer) -> Tensor:
    colours = layer.image[0, :, :, :3]
    return colours if layer.alpha is None else torch.cat([colours, layer.alpha[0][..., None]], dim=-1)


def _colour(value: Any) -> tuple[float, float, float]:
    """Return #RRGGBB or #RGB as red, green and blue in 0…1; white for anything else."""
    found = _HEX.fullmatch(value.strip()) if isinstance(value, str) else None
    if found is None:
        return (1.0, 1.0, 1.0)
    digits = found[1] if len(found[1]) == 6 else "".join(2 * digit for digit in found[1])
    return rgb(f"#{digits}")


def _size(document: Any) -> tuple[int, int] | None:
    canvas = document.get("canvas") if isinstance(document, Mapping) else None
    if not isinstance(canvas, list | tuple) or len(canvas) != 2:
        return None
    width, height = map(_whole, canvas)
    return (width, height) if width > 0 and height > 0 else None


def _whole(value: Any, otherwise: int = 0) -> int:
    return int(_number(value, otherwise))


def _number(value: Any, otherwise: float) -> float:
    usable = isinstance(value, int | float) and not isinstance(value, bool) and isfinite(value)
    return value if usable else otherwise


def _bytes(numbers: Tensor) -> np.ndarray:
    rounded: np.ndarray = (numbers.float().cpu() * 255).round().clamp(0, 255).to(torch.uint8).numpy()
    return rounded


NODE_CLASS_MAPPINGS: Mapping[str, type] = {
    "AddLayer": AddLayer,
    "LayersFromBoundingBoxes": LayersFromBoundingBoxes,
    "ImageCompositor": ImageCompositor,
}

NODE_DISPLAY_NAME_MAPPINGS: Mapping[str, str] = {
    "AddLayer": "Add Layer",
    "LayersFromBoundingBoxes": "Layers From Bounding Boxes",
    "ImageCompositor": "Create Layered Image",
}
