"""Dynamic inputs: which a node has, how they reach its function, and what is refused."""

from __future__ import annotations

from typing import Any

import pytest

from serve_app.graph.dynamic import opened, strays
from serve_app.graph.graph import Link
from serve_app.graph.parse import parse
from serve_app.graph.signature import signatures
from serve_app.graph.spec import MATCH_TYPE, Input
from serve_app.graph.validate import validate
from tests.unit.graph.classes import spec

LINK = Link("1", 0)
IMAGES = {"template": {"input": {"required": {"image": ["IMAGE", {}]}}, "prefix": "image", "min": 2, "max": 4}}
NAMED = {"template": {"input": {"required": {"value": ["FLOAT,INT", {}]}}, "names": ["a", "b", "c"], "min": 0}}
OPTIONAL = {"template": {"input": {"required": {}, "optional": {"x": ["*", {}]}}, "prefix": "x", "min": 2, "max": 3}}
SIZES = {
    "options": [
        {"key": "by", "inputs": {"required": {"factor": ["FLOAT", {"min": 0.0}]}}},
        {"key": "to", "inputs": {"required": {"width": ["INT", {}]}, "optional": {"crop": [["no", "yes"], {}]}}},
        {"key": "like", "inputs": {"required": {"images": ["COMFY_AUTOGROW_V3", IMAGES]}}},
    ]
}
ROWS = {
    "template": {"required": {"name": [["a", "b"]]}, "optional": {"strength": ["FLOAT", {}]}},
    "min": 1,
    "max": 2,
}
SLOT = {"slotType": "MASK", "inputs": {"required": {"grow": ["INT", {}]}}}
SPEC = spec(
    "Dynamic",
    [
        Input("images", "COMFY_AUTOGROW_V3", options=IMAGES),
        Input("values", "COMFY_AUTOGROW_V3", options=NAMED),
        Input("mode", "COMFY_DYNAMICCOMBO_V3", options=SIZES),
        Input("loras", "COMFY_DYNAMICGROUP_V3", options=ROWS),
        Input("mask", "COMFY_DYNAMICSLOT_V3", options=SLOT, section="optional"),
        Input("n", "INT"),
    ],
    "IMAGE",
    output_node=True,
)
SOURCE = spec("Source", [], "IMAGE MASK LATENT")
WHOLE = {"images.image0": LINK, "images.image1": LINK, "mode": "by", "mode.factor": 2.0, "loras.0.name": "a", "n": 1}


def known(**given: Any) -> dict[str, str]:
    return {i.name: i.section for i in opened(SPEC, given).inputs}


def nested(given: dict[str, Any], *, named: bool = False) -> dict[str, Any]:
    nesting = opened(SPEC, given).nesting
    assert nesting is not None
    return nesting.nested(given, named=named)


def problems(**given: Any) -> dict[str, str]:
    inputs = {**WHOLE, **given}
    inputs = {k: [v.node_id, v.slot] if isinstance(v, Link) else v for k, v in inputs.items() if v is not ...}
    prompt = {"1": {"class_type": "Source", "inputs": {}}, "2": {"class_type": "Dynamic", "inputs": inputs}}
    specs = {"Source": SOURCE, "Dynamic": SPEC}
    found = validate(parse(prompt), specs, lambda folder: [])
    return {str(p.extra.get("input_name")): p.type for p in found.problems}


def test_a_class_without_dynamic_inputs_is_opened_as_it_is() -> None:
    assert opened(SOURCE, {"x": 1}) is SOURCE


def test_a_node_has_the_inputs_it_is_given_and_those_it_must_be() -> None:
    assert known() == {
        "images.image0": "required",
        "images.image1": "required",
        "mode": "required",
        "loras.0.name": "required",
        "loras.0.strength": "optional",
        "mask": "optional",
        "n": "required",
    }
    given = {"images.image3": LINK, "values.b": 1, "mode": "to", "mask": LINK, "loras.1.name": "a"}
    assert known(**given).keys() - known().keys() == {
        "images.image3",
        "values.b",
        "mode.width",
        "mode.crop",
        "mask.grow",
        "loras.1.name",
        "loras.1.strength",
    }


def test_dotted_inputs_reach_the_function_as_dicts_and_lists() -> None:
    assert nested(WHOLE) == {
        "images": {"image0": LINK, "image1": LINK},
        "values": {},
        "mode": {"mode": "by", "factor": 2.0},
        "loras": [{"name": "a", "strength": None}],
        "n": 1,
    }


def test_dynamic_inputs_nest_in_each_other() -> None:
    given = {"mode": "like", "mode.images.image1": 5, "mask": 3, "mask.grow": 4, "loras.1.name": "b"}
    assert nested(given) == {
        "images": {},
        "values": {},
        "mode": {"mode": "like", "images": {"image1": 5}},
        "mask": {"mask": 3, "grow": 4},
        "loras": [{"name": None, "strength": None}, {"name": "b", "strength": None}],
    }


def test_a_lazy_node_gets_the_name_of_each_value() -> None:
    given = {"mode": "to", "mode.width": None, "n": None}
    assert nested(given, named=True) == {
        "images": {},
        "values": {},
        "mode": {"mode": ("to", "mode"), "width": (None, "mode.width"), "crop": (None, "mode.crop")},
        "loras": [{"name": (None, "loras.0.name"), "strength": (None, "loras.0.strength")}],
        "n": None,
    }


def test_inputs_of_an_optional_kind_are_never_required() -> None:
    grown = spec("Grown", [Input("xs", "COMFY_AUTOGROW_V3", options=OPTIONAL)])
    inputs = opened(grown, {"xs.x0": LINK, "xs.x2": 1}).inputs
    assert [(i.name, i.section) for i in inputs] == [("xs.x0", "optional"), ("xs.x2", "optional")]


def test_what_is_right_is_accepted() -> None:
    assert problems() == {}


@pytest.mark.parametrize(
    ("given", "name", "type_"),
    [
        ({"mode": "sideways"}, "mode", "value_not_in_list"),
        ({"mode": ...}, "mode", "required_input_missing"),
        ({"mode.factor": ...}, "mode.factor", "required_input_missing"),
        ({"mode.factor": -1}, "mode.factor", "value_smaller_than_min"),
        ({"images.image1": ...}, "images.image1", "required_input_missing"),
        ({"images.image1": Link("1", 2)}, "images.image1", "return_type_mismatch"),
        ({"images.image9": LINK}, "images.image9", "invalid_dynamic_input"),
        ({"loras.0.name": ...}, "loras.0.name", "required_input_missing"),
        ({"loras.0.name": "c"}, "loras.0.name", "value_not_in_list"),
        ({"loras.x.name": "a"}, "loras.x.name", "invalid_dynamic_input"),
        ({"loras.01.name": "a"}, "loras.01.name", "invalid_dynamic_input"),
        ({"loras.1.name": "a", "loras.2.name": "a"}, "loras.2.name", "invalid_dynamic_input"),
        ({"mask": LINK, "mask.grow": 1}, "mask", "return_type_mismatch"),
        ({"mask": Link("1", 1)}, "mask.grow", "required_input_missing"),
    ],
)
def test_a_wrong_dynamic_input_is_refused_by_its_dotted_name(given: dict[str, Any], name: str, type_: str) -> None:
    assert problems(**given) == {name: type_}


def test_what_another_option_was_given_may_stay_behind() -> None:
    assert problems(**{"mode.width": 3}) == {}
    assert list(strays(SPEC, {"mode": "by", "mode.width": LINK})) == ["mode.width"]


def test_values_of_dynamic_inputs_are_part_of_the_cache_key() -> None:
    def signed(**given: Any) -> str:
        prompt = {"2": {"class_type": "Dynamic", "inputs": given}}
        return signatures(parse(prompt), {"Dynamic": SPEC}, lambda folder, name: "")["2"]

    assert signed(mode="by", **{"mode.factor": 1.0}) != signed(mode="by", **{"mode.factor": 2.0})
    assert signed(mode="by", **{"mode.width": 1}) == signed(mode="by")


@pytest.mark.parametrize(("slot", "fits"), [(0, True), (1, True), (2, False)])
def test_a_match_type_takes_its_allowed_types_and_its_outputs_fit_anywhere(slot: int, fits: bool) -> None:
    template = {"template": {"template_id": "t", "allowed_types": "IMAGE,MASK"}}
    same = spec("Same", [Input("it", MATCH_TYPE, options=template)], MATCH_TYPE)
    show = spec("Show", [Input("latent", "LATENT")], output_node=True)
    prompt = {
        "1": {"class_type": "Source", "inputs": {}},
        "2": {"class_type": "Same", "inputs": {"it": ["1", slot]}},
        "3": {"class_type": "Show", "inputs": {"latent": ["2", 0]}},
    }
    found = validate(parse(prompt), {"Source": SOURCE, "Same": same, "Show": show}, lambda folder: [])
    assert [p.type for p in found.problems] == ([] if fits else ["return_type_mismatch"])


def test_a_row_named_by_more_digits_than_a_number_has_is_a_stray() -> None:
    name = f"rows.{'9' * 5000}.name"
    grouped = spec("Grouped", [Input("rows", "COMFY_DYNAMICGROUP_V3", options=ROWS)])
    assert list(strays(grouped, {"rows.0.name": "a", name: "a"})) == [name]
