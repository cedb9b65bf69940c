from __future__ import annotations

import subprocess
import sys
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from serve_app.errors import FileMissingError
from serve_app.graph.parse import parse
from serve_app.graph.signature import signatures
from serve_app.graph.spec import Input
from tests.unit.graph.classes import SPECS, spec, wire


def sign(prompt: dict[str, Any], **tags: str) -> dict[str, str]:
    return signatures(parse(prompt), SPECS, lambda folder, name: tags.get(folder, "tag"))


def changed(node_id: str, **inputs: Any) -> dict[str, Any]:
    prompt = wire()
    prompt[node_id]["inputs"].update(inputs)
    return prompt


def differing(prompt: dict[str, Any], **tags: str) -> set[str]:
    base, other = sign(wire()), sign(prompt, **tags)
    return {node_id for node_id in base if base[node_id] != other[node_id]}


def test_a_changed_constant_changes_the_node_and_what_follows_it() -> None:
    assert differing(changed("3", seed=8)) == {"3", "8", "9"}
    assert differing(changed("9", prefix="y")) == {"9"}
    assert differing(changed("6", text="a dog")) == {"6", "3", "8", "9"}


def test_another_slot_is_another_signature() -> None:
    assert differing(changed("8", vae=["4", 1])) == {"8", "9"}


def test_a_replaced_file_changes_all_that_came_from_it() -> None:
    assert differing(wire(), checkpoints="newer") == {"4", "6", "3", "8", "9"}
    assert differing(wire(), input="newer") == set()


def test_an_undeclared_constant_does_not_matter_but_an_undeclared_link_does() -> None:
    assert differing(changed("8", note="x")) == set()
    assert differing(changed("8", extra=["5", 0])) == {"8", "9"}


def test_another_class_with_the_same_inputs_has_another_signature() -> None:
    specs = {name: spec(name, [], "INT") for name in ("One", "Other")}
    graph = parse({name: {"class_type": name, "inputs": {}} for name in specs})
    signed = signatures(graph, specs, lambda folder, name: "")
    assert signed["One"] != signed["Other"]


def test_types_of_constants_are_part_of_the_signature() -> None:
    assert len({sign(changed("3", seed=value))["3"] for value in (1, True, 1.0, "1")}) == 4


def test_equal_work_under_other_ids_has_the_same_signature() -> None:
    renamed = {f"n{node_id}": node for node_id, node in wire().items()}
    for node in renamed.values():
        node["inputs"] = {k: [f"n{v[0]}", v[1]] if isinstance(v, list) else v for k, v in node["inputs"].items()}
    assert {node_id.removeprefix("n"): s for node_id, s in sign(renamed).items()} == sign(wire())


@pytest.mark.parametrize(("class_type", "same"), [("Random", False), ("Named", False), ("Any", True)])
def test_ids_are_part_of_the_signature_only_where_the_class_uses_them(class_type: str, same: bool) -> None:
    prompt = {i: {"class_type": class_type, "inputs": {"seed": 1}} for i in "ab"}
    signed = sign(prompt)
    assert (signed["a"] == signed["b"]) is same


@given(st.permutations(list(wire())), st.randoms())
def test_the_order_of_nodes_and_inputs_does_not_matter(order: list[str], random: Any) -> None:
    prompt = {}
    for node_id in order:
        node = wire()[node_id]
        names = list(node["inputs"])
        random.shuffle(names)
        prompt[node_id] = {**node, "inputs": {name: node["inputs"][name] for name in names}}
    assert sign(prompt) == sign(wire())


def test_another_process_computes_the_same_signatures() -> None:
    code = "from tests.unit.graph.test_signature import *\nprint(sorted(sign(wire()).items()))"
    run = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, env={"PYTHONHASHSEED": "77"}
    )
    assert run.stdout.strip() == str(sorted(sign(wire()).items()))


def test_nodes_without_a_whole_ancestry_have_no_signature() -> None:
    prompt = changed("5", width=["circle", 0])
    prompt["circle"] = {"class_type": "Any", "inputs": {"value": ["circle", 0]}}
    prompt["lost"] = {"class_type": "Any", "inputs": {"value": ["nowhere", 0]}}
    prompt["new"] = {"class_type": "Unknown", "inputs": {}}
    assert set(sign(prompt)) == {"4", "6"}


def test_a_missing_file_is_left_to_its_node_to_report() -> None:
    def missing(folder: str, name: str) -> str:
        raise FileMissingError(name)

    signed = signatures(parse(wire()), SPECS, missing)
    assert set(signed) == set(wire())
    assert signed["4"] != sign(wire())["4"]
    assert signed["5"] == sign(wire())["5"]


def test_a_fingerprint_is_part_of_what_a_node_is() -> None:
    prompt = wire()
    prompt["6"]["is_changed"] = [1]
    assert differing(prompt) == {"6", "3", "8", "9"}
    other = wire()
    other["6"]["is_changed"] = [2]
    assert sign(prompt)["6"] != sign(other)["6"]


def test_a_salt_sets_all_work_apart() -> None:
    salted = signatures(parse(wire()), SPECS, lambda folder, name: "tag", "job")
    assert not set(salted.values()) & set(sign(wire()).values())


def test_a_value_for_a_hidden_input_of_a_packs_own_is_a_constant() -> None:
    specs = {"Open": spec("Open", [], "INT", hidden={"first": "*"})}

    def signed(value: int) -> dict[str, str]:
        return signatures(parse({"1": {"class_type": "Open", "inputs": {"first": value}}}), specs, lambda *_: "")

    assert signed(1) != signed(2)


def test_a_list_that_is_no_link_is_no_part_of_a_node():
    without = wire()
    del without["3"]["inputs"]["seed"]
    assert sign(changed("3", seed=[1, 2, 3])) == sign(without)


def test_what_is_impersonal_has_everyones_salt_and_what_is_of_the_client_and_comes_of_it_its_own() -> None:
    specs = {
        "Make": spec("Make", [], "INT"),
        "Use": spec("Use", [Input("x", "INT")], "INT", hidden={"runtime": "RUNTIME"}),
        "Upload": spec("Upload", [Input("x", "COMBO", folder="input folders")], "INT"),
        "Hidden": spec("Hidden", [Input("x", "INT")], "INT", hidden={"prompt": "PROMPT"}),
        "Changes": spec("Changes", [Input("x", "INT")], "INT", fingerprinted=True),
        "Save": spec("Save", [Input("x", "INT")], output_node=True),
    }
    made = {"class_type": "Make", "inputs": {}}
    prompt: dict[str, dict[str, Any]] = {"made": made, "upload": {"class_type": "Upload", "inputs": {"x": "a"}}}
    for name in ("Use", "Hidden", "Changes", "Save"):
        prompt[name] = {"class_type": name, "inputs": {"x": ["made", 0]}}
    prompt["of upload"] = {"class_type": "Use", "inputs": {"x": ["upload", 0]}}

    def signed(salt: str, everyones: str | None) -> dict[str, str]:
        return signatures(parse(prompt), specs, lambda *_: "the same file", salt, everyones)

    a, b, alone = signed("a@", ""), signed("b@", ""), signed("a@", None)
    assert {name for name in prompt if a[name] == b[name]} == {"made", "Use"}
    assert not set(alone.values()) & set(b.values())
