"""The node of RT-DETR: boxes around objects of known kinds."""

from __future__ import annotations

from typing import Annotated, Any

from torch import Tensor

from serve_app.nodes.declare import node
from serve_app.nodes.image.layout_drawing import COCO
from serve_app.nodes.inputs import Combo, Float, InputType, Int
from serve_app.nodes.sockets import BOUNDING_BOX, RUNTIME
from serve_app.recipe.recipe import Recipe
from serve_app.values import ObjectSearch

ALL = "all"


@node(
    "RTDETR_detect",
    "Run Real-Time Detection (RT-DETR)",
    category="image/detection",
    return_names=("bboxes",),
    search_aliases=("bbox", "bounding box", "object detection", "coco"),
)
async def rtdetr_detect(
    model: Annotated[Recipe, InputType("MODEL", {"display_name": "model"})],
    image: Annotated[Tensor, InputType("IMAGE", {"display_name": "image"})],
    threshold: Annotated[float, Float(0.5, display_name="threshold")],
    class_name: Annotated[str, Combo([ALL, *COCO], default=ALL, tooltip="The kind of what is found; all: any.")],
    max_detections: Annotated[
        int, Int(100, display_name="max_detections", tooltip="Boxes of an image at most, the surest first.")
    ],
    runtime: RUNTIME,
) -> BOUNDING_BOX:
    """Boxes around objects, with label and score, a list each image, the surest first.

    threshold: the score that they are above. Errors: NodeError for a model that finds no objects.
    """
    height, width = image.shape[1:3]
    made = []
    for labels, boxes, scores in await runtime.search(model, ObjectSearch(image)):
        found = [
            _box(box, COCO[int(label)], float(score), width, height)
            for label, box, score in zip(labels, boxes, scores, strict=True)
            if score > threshold and class_name in (ALL, COCO[int(label)])
        ]
        made.append(found[:max_detections])
    return made


def _box(box: Tensor, label: str, score: float, width: int, height: int) -> dict[str, Any]:
    left, top, right, bottom = box * box.new_tensor([width, height, width, height])
    return {
        "x": float(left),
        "y": float(top),
        "width": float(right - left),
        "height": float(bottom - top),
        "label": label,
        "score": score,
    }
