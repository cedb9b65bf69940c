"""What the classes that ComfyUI has got since 0.3.64 make of what, and a program that asks ComfyUI itself.

In a checkout of ComfyUI 0.33, `python today_cases.py today.json` writes what its classes make; the tests compare ours.
"""

from __future__ import annotations

import asyncio
import json
import sys
from typing import Any

import torch

EXPRESSIONS = [
    ("a + b", {"a": 2, "b": 3.5}),
    ("max(((a + 15) // 16) * 16, 256)", {"a": 333}),
    ("round(a / b) * 8 if a > 3 else -1", {"a": 9, "b": 2}),
    ("a > 2 and not b", {"a": 3, "b": False}),
    ("sum(values) + len_ if False else sum(1, 2) % 2", {"a": 1}),
    ("pow(2, 10) ** 0.5 + sqrt(16) + ceil(a) + floor(a) + int(a)", {"a": 1.5}),
    ("min(values) - max(a, b) * abs(-2)", {"a": 1, "b": 4}),
    ("values[1] == b", {"a": 1, "b": 4}),
    ("log(a) + log2(8) + log10(100) + sin(0) + cos(0) + tan(0)", {"a": 1.0}),
]
RESIZES: list[dict[str, Any]] = [
    {"resize_type": "scale dimensions", "width": 4, "height": 0, "crop": "disabled"},
    {"resize_type": "scale dimensions", "width": 4, "height": 4, "crop": "center"},
    {"resize_type": "scale by multiplier", "multiplier": 1.5},
    {"resize_type": "scale longer dimension", "longer_size": 9},
    {"resize_type": "scale shorter dimension", "shorter_size": 4},
    {"resize_type": "scale width", "width": 5},
    {"resize_type": "scale height", "height": 7},
    {"resize_type": "scale total pixels", "megapixels": 0.00005},
    {"resize_type": "match size", "match": ["tensor", 1, 3, 5], "crop": "center"},
    {"resize_type": "scale to multiple", "multiple": 4},
    {"resize_type": "scale to multiple", "multiple": 5},
]
IMAGE, TALL, MASK = ["tensor", 2, 6, 8, 3], ["tensor", 1, 7, 5, 4], ["tensor", 2, 6, 8]

BOX = {"x": 8, "y": 30, "width": 40, "height": 20}
TOLD = {"type": "text", "text": "Hi", "desc": "a sign", "palette": ["#ff8000", "#102030", "red"]}
ELEMENT = {"type": "text", "bbox": [100, 250, 50, 900], "text": "Hi", "desc": "a", "color_palette": ["#0000ff"]}
LAYOUTS: list[dict[str, Any]] = [
    {"editor_state": [{**BOX, "metadata": TOLD}, {"x": 60, "y": 20, "width": -30, "height": 70}]},
    {"editor_state": [], "background": IMAGE},
    {"editor_state": [BOX], "bboxes": [[{**BOX, "x": 5}], [BOX]]},
    {"editor_state": [BOX], "bboxes": [{**BOX, "x": 5}], "last_incoming": [{**BOX, "x": 5}], "background": IMAGE},
    {"editor_state": [], "bboxes": [ELEMENT, {**ELEMENT, "type": "obj"}]},
    {"editor_state": [], "bboxes": json.dumps(ELEMENT)},
    {"editor_state": [], "bboxes": " "},
]
SAID = {"background": "a wall", "aesthetics": "moody", "lighting": "dim", "medium": "photograph"}
PROMPTS: list[dict[str, Any]] = [
    {**SAID, "style": {"style": "none"}, "high_level_description": " ", "color_palette": ["#ff00aa"]},
    {**SAID, "style": {"style": "photo", "photo": "35mm"}, "high_level_description": "x", "color_palette": ["#ff00aa"]},
    {**SAID, "style": {"style": "art_style", "art_style": "flat"}, "color_palette": []},
]

CASES: list[tuple[str, dict[str, Any]]] = [
    *(("ComfyMathExpression", {"expression": text, "values": values}) for text, values in EXPRESSIONS),
    *(("ComfyNumberConvert", {"value": value}) for value in (3, 2.9, True, " 12 ", "-7.9", "1e3", 10**20)),
    ("ResolutionSelector", {"aspect_ratio": "16:9 (Widescreen)", "megapixels": 1.0, "multiple": 8}),
    ("ResolutionSelector", {"aspect_ratio": "2:3 (Portrait Photo)", "megapixels": 0.7, "multiple": 64}),
    ("SeedNode", {"seed": 5}),
    ("ColorToRGBInt", {"color": "#0a141e"}),
    ("ColorToRGBInt", {"color": "#ff000080"}),
    ("PrimitiveBoundingBox", {"x": 1, "y": 2, "width": 3, "height": 4}),
    ("ComfySwitchNode", {"switch": True, "on_true": "a", "on_false": None}),
    ("ComfySwitchNode", {"switch": False, "on_true": None, "on_false": "b"}),
    ("ComfyNotNode", {"value": ""}),
    ("ComfyAndNode", {"values": {"value0": 1, "value1": ""}}),
    ("ComfyOrNode", {"values": {"value0": 0, "value1": "x"}}),
    ("CustomCombo", {"choice": "b", "index": 1, "option1": "a", "option2": "b"}),
    ("CreateList", {"inputs": {"input0": [1, 2], "input1": ["x"]}}),
    ("StringFormat", {"values": {"a": 1.5, "b": "x"}, "f_string": "{a:.2f}-{b!r:>6}{{}}"}),
    ("JsonExtractString", {"json_string": '{"a": [1, null], "b": true, "c": null}', "key": "a"}),
    ("JsonExtractString", {"json_string": '{"a": [1, null], "b": true, "c": null}', "key": "b"}),
    ("JsonExtractString", {"json_string": '{"a": [1, null], "b": true, "c": null}', "key": "c"}),
    ("JsonExtractString", {"json_string": "[]", "key": "c"}),
    ("JsonExtractString", {"json_string": "{", "key": "c"}),
    ("ConvertDictionaryToString", {"dictionary": {"é": [1, 2]}, "indent": 0}),
    ("ConvertDictionaryToString", {"dictionary": {"é": [1, 2]}, "indent": 2}),
    ("ConvertArrayToString", {"array": [1, {"a": None}], "indent": 1}),
    ("ManualSigmas", {"sigmas": "1., 0.5;.25 -3 and 0"}),
    *(("ResizeImageMaskNode", {"input": IMAGE, "resize_type": way, "scale_method": "bilinear"}) for way in RESIZES),
    *(("ResizeImageMaskNode", {"input": TALL, "resize_type": RESIZES[i], "scale_method": "area"}) for i in (3, 4, 9)),
    *(
        ("ResizeImageMaskNode", {"input": MASK, "resize_type": RESIZES[i], "scale_method": "nearest-exact"})
        for i in (1, 3, 8, 9)
    ),
    ("BatchImagesNode", {"images": {"image0": IMAGE, "image1": TALL}}),
    ("BatchImagesNode", {"images": {"image0": IMAGE}}),
    ("BatchMasksNode", {"masks": {"mask0": MASK, "mask1": ["tensor", 1, 4, 4]}}),
    (
        "BatchLatentsNode",
        {"latents": {"latent0": {"samples": ["tensor", 2, 4, 3, 2]}, "latent1": {"samples": ["tensor", 1, 4, 2, 2]}}},
    ),
    ("LatentCutToBatch", {"samples": {"samples": ["tensor", 1, 2, 3, 5]}, "dim": "x", "slice_size": 2}),
    ("LatentCutToBatch", {"samples": {"samples": ["tensor", 1, 2, 3, 5]}, "dim": "y", "slice_size": 9}),
    ("LatentCutToBatch", {"samples": {"samples": ["tensor", 1, 2, 3, 5]}, "dim": "t", "slice_size": 1}),
    ("LatentCutToBatch", {"samples": {"samples": ["tensor", 1, 2, 4, 2, 2]}, "dim": "t", "slice_size": 2}),
    (
        "ReplaceVideoLatentFrames",
        {
            "destination": {"samples": ["tensor", 1, 2, 4, 2, 2]},
            "source": {"samples": ["tensor", 1, 2, 2, 2, 2]},
            "index": -3,
        },
    ),
    (
        "ReplaceVideoLatentFrames",
        {
            "destination": {"samples": ["tensor", 1, 2, 4, 2, 2]},
            "source": {"samples": ["tensor", 1, 2, 2, 2, 2]},
            "index": 3,
        },
    ),
    ("SplitImageToTileList", {"image": ["tensor", 1, 5, 7, 1], "tile_width": 4, "tile_height": 3, "overlap": 2}),
    ("SplitImageToTileList", {"image": ["tensor", 1, 5, 7, 1], "tile_width": 4, "tile_height": 3, "overlap": 9}),
    (
        "ImageMergeTileList",
        {
            "image_list": [["tensor", 1, 3, 4, 1]] * 6,
            "final_width": [7],
            "final_height": [5],
            "overlap": [1],
        },
    ),
    *(("CreateBoundingBoxes", {"width": 96, "height": 64, **inputs}) for inputs in LAYOUTS),
    *(("BuildJsonPromptIdeogram", {"element": [{"type": "obj"}], **inputs}) for inputs in PROMPTS),
    ("ImageHistogram", {"image": IMAGE}),
    ("ResizeImagesByShorterEdge", {"images": IMAGE, "shorter_edge": 4}),
    ("ResizeImagesByLongerEdge", {"images": IMAGE, "longer_edge": 5}),
    ("ResizeImagesByLongerEdge", {"images": ["tensor", 1, 7, 5, 3], "longer_edge": 9}),
    ("CenterCropImages", {"images": IMAGE, "width": 3, "height": 4}),
    ("CenterCropImages", {"images": IMAGE, "width": 30, "height": 1}),
    *(("RandomCropImages", {"images": IMAGE, "width": 3, "height": 2, "seed": seed}) for seed in (0, 7, 2**64 - 1)),
    ("NormalizeImages", {"images": IMAGE, "mean": 0.3, "std": 0.2}),
    ("AdjustBrightness", {"images": IMAGE, "factor": 1.3}),
    ("AdjustContrast", {"images": IMAGE, "factor": 1.7}),
    *(
        ("ImageDeduplication", {"images": [IMAGE, ["tensor", 3, 9, 7, 3]], "similarity_threshold": [least]})
        for least in (0.5, 0.9, 1.0)
    ),
    (
        "ImageGrid",
        {"images": [IMAGE, IMAGE], "columns": [3], "cell_width": [32], "cell_height": [40], "padding": [3]},
    ),
    *(("ShuffleDataset", {"images": [IMAGE, IMAGE], "seed": [seed]}) for seed in (3, 2**40)),
    (
        "ShuffleImageTextDataset",
        {"images": [["tensor", 1, n, 1, 1] for n in (1, 2, 3)], "texts": ["a", "b", "c"], "seed": [5]},
    ),
    ("MergeImageLists", {"images": [IMAGE, ["tensor", 1, 2, 2, 3]]}),
    (
        "ResolutionBucket",
        {
            "latents": [{"samples": ["tensor", n, 4, side, 2]} for n, side in ((2, 3), (1, 2), (1, 3))],
            "conditioning": [[["a", {}], ["b", {}]], [["c", {}]], [["d", {}]]],
        },
    ),
    (
        "TextOverlay",
        {
            "images": ["tensor", 1, 24, 40, 3],
            "text": "Long words\\nand ab",
            "font_size": 30.0,
            "color": "#ff8000",
            "position": "bottom",
            "align": "center",
            "outline": True,
        },
    ),
]


def decoded(value: Any) -> Any:
    """Return a case's inputs with its tensors, which are written as their shapes."""
    if isinstance(value, list) and value[:1] == ["tensor"]:
        count = torch.Size(value[1:]).numel()
        return ((torch.arange(count) * 37) % 101 / 100).reshape(value[1:])
    if isinstance(value, dict):
        return {key: decoded(member) for key, member in value.items()}
    return [decoded(member) for member in value] if isinstance(value, list) else value


def encoded(value: Any) -> Any:
    """Return what a class made as JSON; of a tensor its shape, and its values to four digits, or their digest."""
    if isinstance(value, torch.Tensor):
        values = [round(v, 4) + 0.0 for v in value.flatten().tolist()]
        if len(values) > 120:
            weights = torch.arange(value.numel(), dtype=torch.float64) % 97
            values = [round((value.flatten().double() * weights).sum().item() / len(values), 3)]
        return {"shape": list(value.shape), "values": values}
    if isinstance(value, dict):
        return {key: encoded(member) for key, member in value.items()}
    return [encoded(member) for member in value] if isinstance(value, list | tuple) else value


async def _theirs() -> list[Any]:
    import comfy.options

    comfy.options.enable_args_parsing()
    import nodes

    await nodes.init_extra_nodes(init_custom_nodes=False, init_api_nodes=False)
    made = []
    for name, inputs in CASES:
        returned = nodes.NODE_CLASS_MAPPINGS[name].execute(**decoded(inputs))
        made.append(encoded(list(returned.args)))
    return made


if __name__ == "__main__":
    target = sys.argv[1]
    sys.argv = ["main.py", "--cpu"]
    with open(target, "w") as file:
        json.dump(asyncio.run(_theirs()), file)
