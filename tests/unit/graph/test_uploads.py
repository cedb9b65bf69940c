"""Files that a workflow names by a folder or an area and that are not there."""

from __future__ import annotations

from typing import Any

import pytest

from serve_app.graph.parse import parse
from serve_app.graph.spec import Input, NodeSpec
from serve_app.graph.uploads import LOOK_UPS, with_uploads
from serve_app.graph.validate import Validated, validate
from serve_app.nodes.registry import specs

SPECS = specs()


def loads(*names: str, kind: str = "LoadImage", input_name: str = "image") -> tuple[dict[str, Any], tuple[str, ...]]:
    prompt: dict[str, Any] = {}
    for number, name in enumerate(names):
        prompt[f"l{number}"] = {"class_type": kind, "inputs": {input_name: name}}
        prompt[f"p{number}"] = {"class_type": "PreviewAny", "inputs": {"source": [f"l{number}", 0]}}
    return prompt, tuple(f"p{number}" for number in range(len(names)))


def checked(prompt: dict[str, Any], outputs: tuple[str, ...], *there: str) -> Validated:
    return with_uploads(Validated(parse(prompt), outputs, ()), SPECS, set(there).__contains__)


def test_only_the_outputs_that_need_a_missing_file_are_left_out() -> None:
    found = checked(*loads("sub/a.png", "b.png [output]", "sub/c.png", "plain.png"), "sub/a.png")
    assert found.outputs == ("p0", "p3")
    assert [(p.node_id, p.class_type, p.type, p.details) for p in found.problems] == [
        ("l1", "LoadImage", "custom_validation_failed", "image - Invalid image file: b.png [output]"),
        ("l2", "LoadImage", "custom_validation_failed", "image - Invalid image file: sub/c.png"),
    ]


@pytest.mark.parametrize(
    ("kind", "input_name", "what"),
    [
        ("LoadImage", "image", "image"),
        ("LoadImageMask", "image", "image"),
        ("LoadImageOutput", "image", "image"),
        ("LoadVideo", "file", "video"),
        ("LoadAudio", "audio", "audio"),
        ("LoadLatent", "latent", "latent"),
    ],
)
def test_every_kind_of_file_is_refused_in_comfyuis_words(kind: str, input_name: str, what: str) -> None:
    [problem] = checked(*loads("sub/x [temp]", kind=kind, input_name=input_name)).problems
    assert problem.details == f"{input_name} - Invalid {what} file: sub/x [temp]"


def test_a_file_is_looked_up_once_and_a_limited_number_of_a_workflow() -> None:
    asked: list[str] = []
    prompt, outputs = loads(*[f"sub/{number}" for number in range(LOOK_UPS + 50)], "sub/0", "sub/0")
    with_uploads(Validated(parse(prompt), outputs, ()), SPECS, lambda name: not asked.append(name))
    assert asked == [f"sub/{number}" for number in range(LOOK_UPS)]


@pytest.mark.parametrize(("name", "wrong"), [("none", []), ("", []), ("x.glb", ["Invalid 3D model file: x.glb"])])
def test_a_3d_viewer_of_a_pool_of_comfyui_may_have_no_model(name: str, wrong: list[str]) -> None:
    file = Input("model_file", "COMBO", folder="input", options={"file_upload": True, "options": ["none"]})
    known = {"Load3D": NodeSpec("Load3D", (file,), (), (), (), output_node=True)}
    found = validate(parse({"1": {"class_type": "Load3D", "inputs": {"model_file": name}}}), known, lambda folder: [])
    assert [problem.details.removeprefix("model_file - ") for problem in found.problems] == wrong


def test_a_file_that_is_chosen_from_no_list_is_left_to_its_node() -> None:
    assert SPECS["Painter"].input("mask") is not None
    assert checked(*loads("sub/x.png [temp]", kind="Painter", input_name="mask")).problems == ()
