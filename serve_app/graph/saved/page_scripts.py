"""Table of the page's scripts that change a class's saved values when it is queued, beyond the page's own widgets.

Most classes have none. Facts: the scripts of rgthree-comfy, ComfyUI-VideoHelperSuite, ComfyUI-Impact-Pack,
ComfyUI-Custom-Scripts and ComfyUI-KJNodes; of ComfyUI's frontend 1.58 for 3D.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, TypeAlias

JsonObject: TypeAlias = Mapping[str, Any]


def script_values(node: JsonObject) -> dict[str, Any]:
    """Return the values, by input, that a node is queued with beside or in place of its widgets'."""
    own = _VALUES.get(node["type"])
    return {} if own is None else own(node)


def _loras(node: JsonObject) -> dict[str, Any]:
    """Return the rows of a list of LoRAs, numbered from 1, as they stand among the values of its decorations."""
    separate = (node.get("properties") or {}).get("Show Strengths") == "Separate Model & Clip"
    rows = [value for value in node.get("widgets_values") or () if isinstance(value, Mapping) and "lora" in value]
    found: dict[str, Any] = {"PowerLoraLoaderHeaderWidget": {"type": "PowerLoraLoaderHeaderWidget"}}
    for number, row in enumerate(rows, 1):
        found[f"lora_{number}"] = {key: value for key, value in row.items() if key != "strengthTwo"}
        if separate:
            strength = row.get("strengthTwo")
            found[f"lora_{number}"]["strengthTwo"] = 1 if strength is None else strength
    return {**found, "➕ Add Lora": ""}


def _size(node: JsonObject) -> dict[str, Any]:
    """Return the width and height that a loader's `force_size` of older files stands for: 512x?, Disabled, …"""
    values = node.get("widgets_values")
    size = values.get("force_size") if isinstance(values, Mapping) else None
    if not isinstance(size, str):
        return {}
    if "x" in size:
        sides = zip(("custom_width", "custom_height"), size.split("x"), strict=False)
        return {name: int(side) if side.isdecimal() else 0 for name, side in sides}
    free = {"custom_width": ("Disabled", "Custom Height"), "custom_height": ("Disabled", "Custom Width")}
    return {name: 0 for name, sizes in free.items() if size in sizes}


def _contents(node: JsonObject) -> dict[str, Any]:
    """Return the name of a model that is saved with its picture."""
    values = node.get("widgets_values") or ()
    chosen = values[0] if values and not isinstance(values, Mapping) else None
    name = {"CheckpointLoader|pysssss": "ckpt_name", "LoraLoader|pysssss": "lora_name"}[node["type"]]
    named = {name: chosen["content"]} if isinstance(chosen, Mapping) and "content" in chosen else {}
    return {**named, "example": "[none]"}


def _preview(node: JsonObject) -> dict[str, Any]:
    """Return the id that a preview has in a page that has shown none yet."""
    return {"image": f"${node['id']}-0"}


def _saves(node: JsonObject) -> dict[str, Any]:
    """Return `save_output` by its older name."""
    values = node.get("widgets_values")
    return {"save_output": values["save_image"]} if isinstance(values, Mapping) and "save_image" in values else {}


def _texts(node: JsonObject) -> dict[str, Any]:
    """Return a node's last texts, numbered; an empty first value is the input's own."""
    values = node.get("widgets_values")
    kept = list(values) if isinstance(values, list) else []
    shown = kept[1:] if kept and not kept[0] else kept
    texts = [text for value in shown for text in (value if isinstance(value, list) else [value])]
    return {f"text_{number}": text for number, text in enumerate(texts)}


def _compared(node: JsonObject) -> dict[str, Any]:
    """Return the pictures that a node has last compared; older files have their addresses alone."""
    values = node.get("widgets_values")
    kept = values[0] if isinstance(values, list) and values and isinstance(values[0], list) else []
    images = [
        {"url": image, "name": "B" if number else "A", "selected": True} if isinstance(image, str) else image
        for number, image in enumerate(kept)
    ]
    return {"rgthree_comparer": {"images": images}}


_MULTI = (
    *("ConditioningMultiCombine", "ImageBatchMulti", "ImageAddMulti", "ImageConcatMulti", "MaskBatchMulti"),
    *("CrossFadeImagesMulti", "TransitionImagesMulti", "JoinStringMulti"),
)
"""Classes with a button that adds inputs, which is queued as a widget without a value."""

_VALUES: Mapping[str, Callable[[JsonObject], dict[str, Any]]] = {
    "Power Lora Loader (rgthree)": _loras,
    **dict.fromkeys(("Preview3D", "SaveGLB"), lambda node: {"image": ""}),
    "ShowText|pysssss": _texts,
    "Image Comparer (rgthree)": _compared,
    **dict.fromkeys(("Display Any (rgthree)", "Display Int (rgthree)"), lambda node: {"output": ""}),
    "ImpactSEGSPicker": lambda node: {"pick": "image"},
    **dict.fromkeys(_MULTI, lambda node: {"Update inputs": None}),
    "PreviewBridge": _preview,
    "PreviewBridgeLatent": _preview,
    "CheckpointLoader|pysssss": _contents,
    "LoraLoader|pysssss": _contents,
    "VHS_VideoCombine": _saves,
    **dict.fromkeys(
        ("VHS_LoadVideo", "VHS_LoadVideoPath", "VHS_LoadImages", "VHS_LoadImagesPath", "VHS_LoadVideoFFmpeg"), _size
    ),
}
