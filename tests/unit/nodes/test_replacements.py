from __future__ import annotations

from typing import Any

import pytest

from serve_app.graph.graph import Link
from serve_app.graph.parse import parse
from serve_app.graph.validate import validate
from serve_app.nodes.registry import specs
from serve_app.nodes.replacements import REPLACEMENTS, replaced


def prompt(class_type: str, **inputs: Any) -> dict[str, Any]:
    empty = {"width": 64, "height": 64, "batch_size": 1, "color": 0}
    return {
        "made": {"class_type": "EmptyImage", "inputs": empty},
        "old": {"class_type": class_type, "inputs": inputs},
        "saved": {"class_type": "PreviewImage", "inputs": {"images": ["old", 0]}},
    }


@pytest.mark.parametrize(
    ("old", "inputs"),
    [
        ("ImageBatch", {"image1": ["made", 0], "image2": ["made", 0]}),
        ("ImageScaleBy", {"image": ["made", 0], "upscale_method": "area", "scale_by": 0.5}),
        ("ResizeImagesByLongerEdge", {"images": ["made", 0], "longer_edge": 32}),
    ],
)
def test_a_class_that_went_becomes_one_that_takes_its_inputs(old: str, inputs: dict[str, Any]) -> None:
    known = {name: spec for name, spec in specs().items() if name != old}
    graph = replaced(parse(prompt(old, **inputs)), known)
    assert graph.nodes["old"].class_type == REPLACEMENTS[old].new
    assert validate(graph, known, lambda folder: []).problems == ()


def test_only_the_name_changes_where_the_inputs_are_the_same() -> None:
    graph = replaced(parse(prompt("ConditioningAverage ", conditioning_to=["made", 0], strength=0.5)), specs())
    node = graph.nodes["old"]
    assert node.class_type == "ConditioningAverage"
    assert node.inputs == {"conditioning_to": Link("made", 0), "strength": 0.5}


@pytest.mark.parametrize("class_type", ["ImageScaleBy", "Load3DAnimation", "NobodyHasThis"])
def test_a_class_that_is_known_or_that_nothing_known_replaces_stays(class_type: str) -> None:
    graph = parse(prompt(class_type))
    assert replaced(graph, specs()) is graph
