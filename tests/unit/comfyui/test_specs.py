from __future__ import annotations

import json
from typing import Any

from serve_app.api.comfy.object_info import info
from serve_app.comfyui.specs import parse_object_info
from serve_app.graph.parse import parse
from serve_app.graph.spec import NodeSpec
from serve_app.graph.validate import Validated, validate
from tests.comfyui.standin.main import CLASSES, described


def known(**classes: dict[str, Any]) -> dict[str, NodeSpec]:
    return {spec.class_type: spec for spec in parse_object_info({**CLASSES, **classes})}


def checked(prompt: dict[str, Any], **classes: dict[str, Any]) -> Validated:
    return validate(parse(prompt), known(**classes), lambda folder: ["mine.png"])


def core(name: str, inputs: dict[str, Any], outputs: list[str], **more: bool) -> dict[str, Any]:
    return {**described(name, inputs, outputs, **more), "python_module": "comfy_extras.nodes_x"}


def test_specs_survive_the_database() -> None:
    for spec in known().values():
        assert NodeSpec.from_json(json.loads(json.dumps(spec.to_json()))) == spec


def test_a_class_that_cannot_be_read_is_left_out_and_the_others_stay() -> None:
    assert set(known(Odd={"input": None})) == set(CLASSES)


def test_uploads_are_listed_from_our_store() -> None:
    [image] = known()["LoadImage"].inputs
    assert (image.folder, image.choices) == ("input", None)
    shown = info(known()["LoadImage"], {"input": ["mine.png"]})
    assert shown["input"]["required"]["image"] == [["mine.png"], {"image_upload": True}]
    assert not checked({"1": {"class_type": "LoadImage", "inputs": {"image": "mine.png"}}}).problems[1:]


def test_clients_get_a_class_as_its_server_describes_it() -> None:
    theirs = core("Newer", {"x": ["COMFY_DYNAMICCOMBO_V3", {"options": []}]}, ["COMFY_MATCHTYPE_V3"])
    theirs |= {"search_aliases": ["fresh"], "price_badge": None}
    assert info(known(Newer=theirs)["Newer"], {}) == theirs


def test_a_core_class_is_validated_by_its_declared_bounds() -> None:
    sampler = core("Sampler", {"name": [["euler", "heun"], {}], "steps": ["INT", {"max": 9}]}, [], output_node=True)
    prompt = {"1": {"class_type": "Sampler", "inputs": {"name": "odd", "steps": 10}}}
    assert {p.type for p in checked(prompt, Sampler=sampler).problems} == {"value_not_in_list", "value_bigger_than_max"}


def test_what_a_packs_class_takes_is_its_own_to_say() -> None:
    pack = described("Pack", {"name": [["a"], {}], "what": ["ANY_TRICK", {}]}, [], output_node=True)
    prompt = {
        "1": {"class_type": "StandInDraw", "inputs": {"seed": 1}},
        "2": {"class_type": "Pack", "inputs": {"name": "made by its page", "what": ["1", 0]}},
    }
    assert checked(prompt, Pack=pack).problems == ()


def test_inputs_that_a_client_names_itself_and_outputs_of_any_type_pass() -> None:
    grow = core("Grow", {"items": ["COMFY_AUTOGROW_V3", {}]}, ["COMFY_MATCHTYPE_V3"])
    save = core("Save", {"images": ["IMAGE", {}]}, [], output_node=True)
    prompt = {
        "1": {"class_type": "StandInDraw", "inputs": {"seed": 1}},
        "2": {"class_type": "Grow", "inputs": {"items.item0": ["1", 0]}},
        "3": {"class_type": "Save", "inputs": {"images": ["2", 0]}},
    }
    assert checked(prompt, Grow=grow, Save=save).problems == ()
