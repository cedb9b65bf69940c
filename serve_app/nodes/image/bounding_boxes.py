"""The nodes that draw bounding boxes, cut images by them, and describe a picture's layout to a model as JSON.

BOUNDING_BOX is {x, y, width, height} in pixels, perhaps with "metadata"; a list of them for an image, or a list of such
lists, an image each. An element is what a layout says of a box: its kind, its sides in thousandths, texts and colours.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, TypeAlias

import torch
from torch import Tensor
from torch.nn.functional import pad

from serve_app.errors import NodeError
from serve_app.execution.size import allow
from serve_app.nodes.declare import node
from serve_app.nodes.image.layout_drawing import Region, draw_detections, draw_layout
from serve_app.nodes.image.match_size import resize
from serve_app.nodes.inputs import Combo, InputType, Int, Text
from serve_app.nodes.sockets import ARRAY, DICT, IMAGE

Box: TypeAlias = Mapping[str, Any]

SIDES = ("x", "y", "width", "height")
THOUSANDTHS = 1000
PALETTE = 5
"""How many colours an element has at most."""
NOTHING_FOUND, FROM_TOP = 0.3, 0.1
"""Where boxes hold nothing of an image: the side of the square that is cut, of the shorter side, and its place."""
EMPTY = 640


Side: TypeAlias = Annotated[int, Int(1024, min=64, max=16384, step=16)]


@node(
    "CreateBoundingBoxes",
    "Create Bounding Boxes",
    category="utilities",
    function="create",
    return_types=("IMAGE", "BOUNDING_BOX", "ARRAY"),
    return_names=("preview", "bboxes", "elements"),
    output_node=True,
    experimental=True,
    description="Draws boxes on a canvas; returns a picture of them, the boxes in pixels, and a prompt's elements.",
    required=("editor_state",),
)
def create_bounding_boxes(
    width: Side,
    height: Side,
    editor_state: Annotated[Any, InputType("BOUNDING_BOXES", {"default": [], "socketless": False})] = None,
    background: IMAGE | None = None,
    bboxes: Annotated[Any, InputType("BOUNDING_BOX,ARRAY,STRING")] = None,
    last_incoming: Annotated[Any, InputType("BOUNDING_BOXES", {"default": [], "socketless": True})] = None,
) -> dict[str, Any]:
    """Boxes drawn on the page, or those that are linked.

    Return a picture of the boxes, the boxes, and their elements.

    What the page has drawn counts until what is linked differs from last_incoming, which it was drawn over.
    Errors: NodeError for a link that holds no boxes.
    """
    linked = read_boxes(bboxes, width, height)
    drawn = editor_state if isinstance(editor_state, list) else []
    boxes = linked if linked and linked != last_incoming else drawn
    regions = [_region(box, width, height) for box in boxes if isinstance(box, Mapping)]
    frame = [_pixels(region, width, height) for region in regions]
    shown: dict[str, Any] = {"dims": [width, height]}
    if linked:
        shown["input_bboxes"] = linked
    picture = draw_layout(regions, width, height, background)
    return {"ui": shown, "result": (picture, [frame] if frame else [], [_element(region) for region in regions])}


def read_boxes(given: Any, width: int, height: int) -> list[dict[str, Any]]:
    """Return boxes of what is linked: boxes, elements, or either as JSON; of several images' boxes the first's.

    width, height: of the canvas that elements are for. Errors: NodeError.
    """
    if isinstance(given, str):
        try:
            given = json.loads(given) if given.strip() else None
        except ValueError as error:
            raise NodeError(f"bboxes is a text that is no JSON: {error}") from error
    if given is None or given == []:
        return []
    listed = given if isinstance(given, list) else [given]
    listed = listed[0] if isinstance(listed[0], list) else listed
    if not listed:
        return []
    if _is_element(listed[0]):
        if width <= 0 or height <= 0:
            raise NodeError("boxes of elements are shares of a canvas; its width and height are to be given")
        return [_box(element, width, height) for element in listed if isinstance(element, Mapping)]
    if not isinstance(listed[0], Mapping) or not listed[0].keys() >= set(SIDES):
        raise NodeError(f"bboxes is {str(given)[:200]!r}; it must have boxes (x, y, width, height) or elements (bbox)")
    boxes = [box for box in listed if isinstance(box, Mapping)]
    return [
        {side: box.get(side, 0) for side in SIDES}
        | ({"metadata": box["metadata"]} if isinstance(box.get("metadata"), Mapping) else {})
        for box in boxes
    ]


def _is_element(value: Any) -> bool:
    box = value.get("bbox") if isinstance(value, Mapping) else None
    return isinstance(box, list | tuple) and len(box) == 4


def _box(element: Mapping[str, Any], width: int, height: int) -> dict[str, Any]:
    """Return an element's box. Errors: NodeError for sides that are no numbers."""
    try:
        top, left, bottom, right = (float(side) / THOUSANDTHS for side in element.get("bbox") or ())
    except (TypeError, ValueError) as error:
        raise NodeError(f"an element's bbox is {element.get('bbox')!r}; it must be four numbers") from error
    written = element.get("type") == "text"
    return {
        "x": round(min(left, right) * width),
        "y": round(min(top, bottom) * height),
        "width": round(abs(right - left) * width),
        "height": round(abs(bottom - top) * height),
        "metadata": {
            "type": "text" if written else "obj",
            "text": element.get("text", "") if written else "",
            "desc": element.get("desc", ""),
            "palette": element.get("color_palette") or [],
        },
    }


def _region(box: Box, width: int, height: int) -> Region:
    metadata = box.get("metadata")
    described = metadata if isinstance(metadata, Mapping) else {}
    return Region(
        left=box.get("x", 0) / width,
        top=box.get("y", 0) / height,
        width=box.get("width", 0) / width,
        height=box.get("height", 0) / height,
        text=str(described.get("text", "")) if described.get("type") == "text" else None,
        description=str(described.get("desc") or ""),
        palette=tuple(colour for colour in described.get("palette") or () if isinstance(colour, str) and colour),
    )


def _pixels(region: Region, width: int, height: int) -> dict[str, Any]:
    return {
        "x": round(min(region.left, region.right) * width),
        "y": round(min(region.top, region.bottom) * height),
        "width": round(abs(region.width) * width),
        "height": round(abs(region.height) * height),
    }


def _element(region: Region) -> dict[str, Any]:
    sides = (region.top, region.left, region.bottom, region.right)
    top, left, bottom, right = (max(0, min(THOUSANDTHS, round(side * THOUSANDTHS))) for side in sides)
    box = [min(top, bottom), min(left, right), max(top, bottom), max(left, right)]
    element: dict[str, Any] = {"type": "obj" if region.text is None else "text", "bbox": box}
    if region.text is not None:
        element["text"] = region.text
    element["desc"] = region.description
    if region.palette:
        element["color_palette"] = [colour.upper() for colour in region.palette[:PALETTE]]
    return element


_STYLES = {
    "none": {},
    "photo": {"photo": ("STRING", {"default": "", "multiline": False})},
    "art_style": {"art_style": ("STRING", {"default": "", "multiline": False})},
}


HighLevelDescription: TypeAlias = Annotated[str, Text("", multiline=True)]
Aesthetics: TypeAlias = Annotated[str, Text("", multiline=False)]


@node(
    "BuildJsonPromptIdeogram",
    "Build JSON Prompt (Ideogram)",
    category="text",
    function="build",
    return_names=("prompt",),
    experimental=True,
    description="Builds a JSON prompt for Ideogram 4.",
    required=("high_level_description", "background", "aesthetics", "lighting", "medium", "color_palette"),
    order=("element", "high_level_description", "background"),
)
def build_json_prompt_ideogram(
    element: ARRAY,
    style: Annotated[
        Mapping[str, Any],
        InputType(
            "COMFY_DYNAMICCOMBO_V3",
            {
                "options": [
                    {"key": "none", "inputs": {"required": {}}},
                    {
                        "key": "photo",
                        "inputs": {"required": {"photo": ("STRING", {"default": "", "multiline": False})}},
                    },
                    {
                        "key": "art_style",
                        "inputs": {"required": {"art_style": ("STRING", {"default": "", "multiline": False})}},
                    },
                ]
            },
        ),
    ],
    high_level_description: HighLevelDescription = "",
    background: HighLevelDescription = "",
    aesthetics: Aesthetics = "",
    lighting: Aesthetics = "",
    medium: Aesthetics = "",
    color_palette: Annotated[Sequence[Any], InputType("COLORS", {"default": [], "socketless": False})] = (),
) -> DICT:
    """A layout and what is to be said of the picture, as Ideogram 4 reads it.

    Return the prompt; its members stand in the order in which the model has learned them.
    """
    prompt: dict[str, Any] = {}
    if high_level_description.strip():
        prompt["high_level_description"] = high_level_description
    kind = style.get("style", "none")
    if kind != "none":
        own = {kind: style.get(kind, "")}
        last = {**own, "medium": medium} if kind == "photo" else {"medium": medium, **own}
        prompt["style_description"] = {"aesthetics": aesthetics, "lighting": lighting, **last}
        if colours := [colour.upper() for colour in color_palette if isinstance(colour, str) and colour]:
            prompt["style_description"]["color_palette"] = colours
    elements = element if isinstance(element, list) else []
    prompt["compositional_deconstruction"] = {"background": background, "elements": elements}
    return prompt


_WHOLE = {"x": 0, "y": 0, "width": 512, "height": 512}
Found: TypeAlias = Annotated[
    Any, InputType("BOUNDING_BOX", {"default": _WHOLE, "socketless": True, "forceInput": True})
]


@node("DrawBBoxes", "Draw BBoxes", category="image/detection", function="draw", return_names=("out_image",))
def draw_b_boxes(bboxes: Found, image: IMAGE | None = None) -> IMAGE:
    """Boxes, drawn on images.

    Return the images with each one's boxes; without images, black ones that the boxes fit into.
    """
    frames = boxes_by_image(bboxes)
    if image is None:
        corners = [(box["x"] + box["width"], box["y"] + box["height"]) for frame in frames for box in frame]
        width, height = (max((int(c[axis]) for c in corners), default=EMPTY) for axis in (0, 1))
        allow(1, height, width, 3)
        image = torch.zeros(1, height, width, 3)
    if len(frames) == 1:
        frames *= len(image)
    frames += [[]] * (len(image) - len(frames))
    return torch.stack([draw_detections(one, boxes) for one, boxes in zip(image, frames, strict=False)])


OutputSide: TypeAlias = Annotated[int, Int(512, min=64, max=4096, step=8)]


@node(
    "CropByBBoxes",
    "Crop By Bounding Boxes",
    category="image/transform",
    function="crop",
    description="Cuts from each image what its boxes hold, and resizes it.",
    required=("keep_aspect",),
)
def crop_by_b_boxes(
    image: IMAGE,
    bboxes: Found,
    output_width: OutputSide,
    output_height: OutputSide,
    padding: Annotated[int, Int(0, min=0, max=1024, step=1)],
    keep_aspect: Annotated[str, Combo(["stretch", "pad"], default="stretch")] = "stretch",
) -> IMAGE:
    """What boxes hold of images, all at one size.

    Return a crop of each image that has boxes, around all of them; the images as they are if none has.

    padding: pixels more on each side. The last list of boxes stands for the images beyond. Errors: NodeError if the
    crops together would be too large.
    """
    frames = boxes_by_image(bboxes) if bboxes != [] else []
    allow(len(image), output_height, output_width, image.shape[-1])
    crops = []
    for index, one in enumerate(image):
        boxes = frames[min(index, len(frames) - 1)] if frames else []
        if boxes:
            cut = _cut(one, boxes, padding)[None]
            if cut.numel():
                crops.append(_sized(cut, output_width, output_height, keep=keep_aspect == "pad"))
            else:
                crops.append(image.new_zeros(1, output_height, output_width, image.shape[-1]))
    return torch.cat(crops) if crops else image


def boxes_by_image(bboxes: Any) -> list[list[Box]]:
    """Return boxes by image; one list stands for all images. Errors: NodeError for what holds no boxes."""
    frames = bboxes if isinstance(bboxes, list) else [[bboxes]]
    if not frames or isinstance(frames[0], Mapping):
        frames = [frames]
    for frame in frames:
        if not isinstance(frame, list) or not all(isinstance(b, Mapping) and b.keys() >= set(SIDES) for b in frame):
            raise NodeError(f"bboxes has {str(frame)[:200]!r}; it must have boxes with x, y, width and height")
    return list(frames)


def _cut(image: Tensor, boxes: Sequence[Box], padding: int) -> Tensor:
    """Return what the boxes hold together of an image (H,W,C); where that is nothing, a square in its upper middle.

    Of an image of few pixels that square has none.
    """
    height, width = image.shape[:2]
    left = max(0, min(int(box["x"]) for box in boxes) - padding)
    top = max(0, min(int(box["y"]) for box in boxes) - padding)
    right = min(width, max(int(box["x"] + box["width"]) for box in boxes) + padding)
    bottom = min(height, max(int(box["y"] + box["height"]) for box in boxes) + padding)
    if right <= left or bottom <= top:
        side = int(min(height, width) * NOTHING_FOUND)
        left, top = (width - side) // 2, int(height * FROM_TOP)
        right, bottom = left + side, top + side
    return image[top:bottom, left:right]


def _sized(crop: Tensor, width: int, height: int, *, keep: bool) -> Tensor:
    """Return a crop (1,h,w,C) at another size. keep: in the middle of black, its aspect kept."""
    if not keep:
        return resize(crop, width, height, "area")
    factor = min(width / crop.shape[2], height / crop.shape[1])
    wide, high = max(1, round(crop.shape[2] * factor)), max(1, round(crop.shape[1] * factor))
    left, top = (width - wide) // 2, (height - high) // 2
    return pad(resize(crop, wide, high, "area"), (0, 0, left, width - wide - left, top, height - high - top))
