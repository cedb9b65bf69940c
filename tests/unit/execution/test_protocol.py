from __future__ import annotations

import json
from typing import Any

import pytest

from serve_app.errors import NodeError
from serve_app.execution.protocol import FolderChoice, spec_of
from serve_app.graph.spec import Input, NodeSpec
from serve_app.nodes.registry import BUILTIN, specs


class AnyType(str):
    """The trick packs use for an input that takes everything."""

    def __ne__(self, other: object) -> bool:
        return False


class Odd:
    RETURN_TYPES = ("IMAGE", AnyType("*"), ["a", "b"])
    OUTPUT_IS_LIST = (False, True, False)
    FUNCTION = "go"
    OUTPUT_NODE = True
    NOT_IDEMPOTENT = True
    CATEGORY = "odd/ones"

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        return {
            "required": {
                "image": ("IMAGE",),
                "mode": (["fast", 2], {"default": "fast"}),
                "mode3": ("COMBO", {"options": ["x", "y"], "tooltip": "t"}),
                "file": [FolderChoice("loras")],
            },
            "optional": {
                "any": (AnyType("*"), {"lazy": True, "check": lambda: 1, "pair": (1, 2), "bad": float("nan")})
            },
            "hidden": {"id": "UNIQUE_ID", "runtime": "RUNTIME"},
        }

    def go(self, **_: Any) -> tuple[()]:
        return ()


def test_a_class_becomes_data() -> None:
    spec = spec_of(Odd, "Odd", "An odd one")
    assert spec == NodeSpec(
        class_type="Odd",
        inputs=(
            Input("image", "IMAGE"),
            Input("mode", "COMBO", choices=("fast", 2), options={"default": "fast"}),
            Input("mode3", "COMBO", choices=("x", "y"), options={"tooltip": "t"}),
            Input("file", "COMBO", folder="loras"),
            Input("any", "*", "optional", options={"lazy": True, "pair": [1, 2]}),
        ),
        outputs=("IMAGE", "*", "COMBO"),
        output_names=("IMAGE", "*", "COMBO"),
        output_is_list=(False, True, False),
        hidden={"id": "UNIQUE_ID", "runtime": "RUNTIME"},
        output_node=True,
        not_idempotent=True,
        category="odd/ones",
        display_name="An odd one",
    )
    assert spec.runtime
    assert type(spec.outputs[1]) is str


def test_a_class_without_its_function_is_refused_by_name() -> None:
    class Broken:
        FUNCTION = "run"

        @classmethod
        def INPUT_TYPES(cls) -> dict[str, Any]:
            return {}

    with pytest.raises(NodeError, match=r"Broken: .* FUNCTION is 'run'; it must name a method"):
        spec_of(Broken, "Broken")
    with pytest.raises(NodeError, match="INPUT_TYPES"):
        spec_of(int, "Int")


def test_specs_survive_the_trip_through_json() -> None:
    described = specs()
    assert described.keys() >= BUILTIN.keys()
    read = {name: NodeSpec.from_json(json.loads(json.dumps(spec.to_json()))) for name, spec in described.items()}
    assert [name for name, spec in described.items() if read[name] != spec] == []


def test_only_the_nodes_that_use_models_ask_for_the_runtime() -> None:
    asking = {name for name, spec in specs().items() if spec.runtime}
    assert {"CLIPTextEncode", "KSampler", "KSamplerAdvanced", "VAEDecode", "VAEEncode"} <= asking
    assert not {"CheckpointLoaderSimple", "LoraLoader", "EmptyLatentImage", "ImageScale", "SaveImage"} & asking


class EveryName(dict[str, Any]):
    """The trick packs use to be given what a page adds to a node, one widget more at a time."""

    def __contains__(self, name: object) -> bool:
        return True


@pytest.mark.parametrize("section", ["required", "optional", "hidden"])
def test_a_class_whose_section_says_it_holds_every_name_is_given_undeclared_constants(section: str) -> None:
    class Flexible(Odd):
        @classmethod
        def INPUT_TYPES(cls) -> dict[str, Any]:
            return {**super().INPUT_TYPES(), section: EveryName()}

    assert spec_of(Flexible, "Flexible").uses("lora_1")
    assert not spec_of(Odd, "Odd").uses("lora_1")
