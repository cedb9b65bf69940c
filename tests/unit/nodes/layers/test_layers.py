"""Stacks of layers: what the nodes make of pictures and boxes, and what the page is told. Pixels: tests/parity."""

from __future__ import annotations

import asyncio
import json
from math import pi
from typing import Any

import pytest
import torch

from serve_app.errors import NodeError
from serve_app.nodes.layers.layers import add_layer, image_compositor, layers_from_bounding_boxes
from tests.parity.test_layers import Shown

IMAGE = torch.rand(2, 6, 8, 3, generator=torch.Generator().manual_seed(1))


def composed(document: Any, state: Any = "") -> dict[str, Any]:
    return asyncio.run(image_compositor(document, {}, {}, Shown(), state))  # type: ignore[arg-type]


def test_a_layer_says_only_what_is_unusual() -> None:
    plain = add_layer(IMAGE)
    assert plain == {"version": 1, "layers": [{"image": IMAGE, "type": "raster", "x": 0, "y": 0, "z_index": 0}]}
    mask = torch.zeros(1, 6, 8)
    more = add_layer(IMAGE, {**plain, "canvas": [9, 7]}, mask, "top", 3, -4, 0.5, "screen", 180.0, 5, 0, 2, True)
    assert more["layers"][0] is plain["layers"][0]
    top = {"x": 3, "y": -4, "z_index": 2, "name": "top", "opacity": 0.5, "blend_mode": "screen", "w": 5, "flip_h": True}
    rotation, given = more["layers"][1].pop("rotation"), more["layers"][1].pop("mask")
    assert more["layers"][1] == {"image": IMAGE, "type": "raster", **top}
    assert (rotation, given is mask, more["canvas"]) == (pytest.approx(pi), True, (9, 7))


def test_each_picture_lies_where_its_box_says() -> None:
    boxes: list[dict[str, Any]] = [
        {"x": 4, "y": 5, "width": 3, "height": 2, "metadata": {"desc": "cup", "z_index": 9}},
        {"x": 1, "y": 2, "width": 9, "height": 9, "metadata": {"name": "tree", "content_rect": [2, 1, 4, 90]}},
    ]
    before = add_layer(IMAGE[:1], z_index=5)
    mask = torch.rand(2, 6, 8)
    document = layers_from_bounding_boxes(IMAGE, json.dumps(boxes), mask, before, True, 20, 10)
    _, cup, tree = document["layers"]
    assert document["canvas"] == (20, 10)
    assert {**cup, "image": 0, "mask": 0} == {
        "type": "raster",
        "image": 0,
        "mask": 0,
        "x": 4,
        "y": 5,
        "w": 3,
        "h": 2,
        "name": "cup",
        "z_index": 9,
    }
    assert torch.equal(tree["image"], IMAGE[1:, 1:, 2:6])
    assert torch.equal(tree["mask"], mask[1:, 1:, 2:6])
    assert {key: tree.get(key) for key in "xywh"} == {"x": 3, "y": 3, "w": None, "h": None}
    assert tree["z_index"] == 7
    uncut = layers_from_bounding_boxes(IMAGE, boxes[1:], crop_to_content=False)
    assert [(item["x"], item.get("w"), item["z_index"]) for item in uncut["layers"]] == [(1, 9, 0), (0, None, 1)]
    with pytest.raises(NodeError, match="boxes of elements are shares of a canvas"):
        layers_from_bounding_boxes(IMAGE, [{"bbox": [0, 0, 500, 500]}])


def test_an_arrangement_counts_only_for_the_layers_it_was_made_of() -> None:
    document = add_layer(IMAGE)
    first = composed(document)["ui"]
    assert [one["name"] for one in first["compositor_bboxes"]] == [None, None]
    state = {"canvas": {"w": 5, "h": 4}, "layers": [{}, {}], "inputs": first["compositor_inputs"]}
    kept = composed(document, json.dumps(state))
    assert kept["result"][0].shape == (1, 4, 5, 3)
    assert "compositor_state_stale" not in kept["ui"]
    other = add_layer(IMAGE, opacity=0.5)
    stale = composed(other, state)
    assert stale["ui"]["compositor_state_stale"] == [True]
    assert stale["result"][0].shape == (1, 6, 8, 4)
    for none in ("", "{}", {}, None, "no JSON", {"version": 2, "layers": [{}]}):
        assert composed(other, none)["result"][0].shape == (1, 6, 8, 4)


def test_without_layers_the_picture_is_black() -> None:
    image, mask = composed({"version": 1, "layers": []})["result"]
    assert (image.shape, float(image.max()), float(mask.max())) == ((1, 64, 64, 3), 0.0, 0.0)


@pytest.mark.parametrize(
    ("document", "said"),
    [
        ({"version": 2}, r"layers are \{'version': 1, 'layers': …\}"),
        ("text", r"layers are \{'version': 1, 'layers': …\}"),
        ({"layers": [{"type": "text"}]}, "a layer of type 'text' and mode 'normal'; only rasters of normal, multiply"),
        ({"layers": [{"blend_mode": "odd"}]}, "mode 'odd'"),
        ({"layers": [{"image": torch.zeros(51, 1, 1, 3)}]}, "there are 51 layers or more; 50 is the most"),
        ({"layers": [{"image": IMAGE}], "canvas": (20000, 1)}, "the canvas is 20000×1; 16384 is the most for a side"),
    ],
)
def test_what_is_no_stack_is_refused(document: Any, said: str) -> None:
    with pytest.raises(NodeError, match=said.replace("…", r"\[…\]")):
        composed(document)
