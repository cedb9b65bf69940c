from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from serve_app.errors import InvalidGraphError, Problem
from serve_app.graph.parse import parse, render
from serve_app.graph.spec import Input
from serve_app.graph.validate import Validated, cycles, matches, needs_prevalidation, validate, with_findings
from tests.unit.graph.classes import FOLDERS, SPECS, graph, number, spec, wire


def check(prompt: dict[str, Any], targets: list[str] | None = None) -> Validated:
    return validate(parse(prompt), SPECS, FOLDERS.__getitem__, targets)


def changed(node_id: str, **inputs: Any) -> dict[str, Any]:
    prompt = wire()
    prompt[node_id]["inputs"].update(inputs)
    return prompt


def only_problem(prompt: dict[str, Any]) -> tuple[str, str]:
    (problem,) = check(prompt).problems
    return problem.type, str(problem)


def test_a_right_workflow_has_no_problem_and_its_output_runs() -> None:
    assert check(wire()) == Validated(graph(), ("9",), ())


@pytest.mark.parametrize(
    ("node_id", "inputs", "type_", "text"),
    [
        (
            "3",
            {"sampler": "eular"},
            "value_not_in_list",
            "Sampler 3: sampler 'eular' is not in the list; did you mean 'euler'?",
        ),
        ("3", {"sampler": None}, "value_not_in_list", "Sampler 3: sampler None is not in the list"),
        ("3", {"sampler": {"a": 1}}, "value_not_in_list", "sampler {'a': 1} is not in the list"),
        ("3", {"seed": "x"}, "invalid_input_type", "Sampler 3: seed is 'x', which is no INT"),
        ("3", {"seed": None}, "invalid_input_type", "seed is None, which is no INT"),
        ("3", {"cfg": {}}, "invalid_input_type", "cfg is {}, which is no FLOAT"),
        ("3", {"cfg": "nan"}, "invalid_input_type", "cfg is 'nan', which is no FLOAT"),
        ("3", {"cfg": "1e999"}, "invalid_input_type", "cfg is '1e999', which is no FLOAT"),
        ("3", {"seed": 10**3000}, "value_bigger_than_max", "bigger than the maximum 18446744073709551615"),
        ("3", {"seed": -1}, "value_smaller_than_min", "seed is -1, smaller than the minimum 0"),
        ("5", {"width": 2000}, "value_bigger_than_max", "Empty 5: width is 2000, bigger than the maximum 1024"),
        ("5", {"width": "15"}, "value_smaller_than_min", "width is 15, smaller than the minimum 16"),
        ("4", {"ckpt_name": "sd51.safetensors"}, "value_not_in_list", "did you mean 'sd15.safetensors'?"),
        ("4", {"ckpt_name": "sd15.ckpt"}, "value_not_in_list", "so it is not: there is 'sd15.safetensors'"),
        ("4", {"ckpt_name": "a/b.CKPT"}, "value_not_in_list", "a .ckpt file is a pickle, which can run code when"),
        ("4", {"ckpt_name": 3}, "value_not_in_list", "ckpt_name 3 is not in the list"),
        ("3", {"model": 5}, "invalid_input_type", "model is 5; MODEL comes by a link"),
        ("3", {"model": None}, "invalid_input_type", "model is None; MODEL comes by a link"),
        ("3", {"mask": "x"}, "invalid_input_type", "mask is 'x'; MASK comes by a link"),
        ("8", {"vae": ["4", 1]}, "return_type_mismatch", "Decode 8: vae takes VAE, but slot 1 of Loader 4 is CLIP"),
        ("8", {"vae": ["4", 3]}, "bad_linked_input", "vae links to slot 3 of Loader 4, which has slots 0 to 2"),
        ("8", {"vae": ["4", -1]}, "bad_linked_input", "vae links to slot -1 of Loader 4"),
        ("8", {"vae": ["9", 0]}, "bad_linked_input", "vae links to slot 0 of Save 9, which has no outputs"),
        ("8", {"vae": ["77", 0]}, "bad_linked_input", "vae links to node '77', which does not exist"),
        ("8", {"vae": ["4"]}, "bad_linked_input", "vae is the list ['4']; a list must be a link"),
        ("8", {"more": ["77", 0]}, "bad_linked_input", "more links to node '77'"),
    ],
)
def test_a_wrong_input_is_named_with_what_was_given_and_allowed(
    node_id: str, inputs: dict[str, Any], type_: str, text: str
) -> None:
    prompt = changed(node_id, **inputs)
    problems = [p for p in check(prompt).problems if p.type != "dependency_cycle"]
    assert [problem.type for problem in problems] == [type_]
    assert text in str(problems[0])
    assert problems[0].node_id == node_id
    assert problems[0].extra["input_name"] in inputs
    assert check(prompt).outputs == ()


def test_a_missing_input_is_named_and_so_is_what_looks_like_it() -> None:
    prompt = wire()
    prompt["3"]["inputs"]["postive"] = prompt["3"]["inputs"].pop("positive")
    assert only_problem(prompt) == (
        "required_input_missing",
        "Sampler 3: required input 'positive' is missing; is that 'postive'?",
    )


def test_an_unknown_class_is_named_with_the_nearest_one() -> None:
    prompt = wire()
    prompt["3"]["class_type"] = "Samplr"
    assert only_problem(prompt) == (
        "missing_node_type",
        "Samplr 3: no node class 'Samplr' is installed; did you mean 'Sampler'?",
    )


@pytest.mark.parametrize(
    ("node_id", "name", "given", "held"),
    [
        ("3", "seed", "33", 33),
        ("3", "seed", True, 1),
        ("3", "seed", 3.9, 3),
        ("3", "cfg", 7, 7.0),
        ("3", "cfg", "7.5", 7.5),
        ("3", "preview", "false", True),
        ("3", "preview", 0, False),
        ("3", "mask", None, None),
        ("6", "text", 12, "12"),
        ("6", "text", {"__value__": ["a", 1]}, "['a', 1]"),
    ],
)
def test_constants_are_converted_as_in_comfyui(node_id: str, name: str, given: Any, held: Any) -> None:
    result = check(changed(node_id, **{name: given}))
    assert result.problems == ()
    value = result.graph.nodes[node_id].inputs[name]
    assert (value, type(value)) == (held, type(held))


def test_every_problem_of_every_node_is_found_reachable_or_not() -> None:
    prompt = changed("3", seed=-1, sampler="x", latent=["4", 0])
    prompt["lost"] = {"class_type": "Empty", "inputs": {"width": 1}}
    found = [(p.node_id, p.type) for p in check(prompt).problems]
    assert sorted(found) == [
        ("3", "return_type_mismatch"),
        ("3", "value_not_in_list"),
        ("3", "value_smaller_than_min"),
        ("lost", "required_input_missing"),
        ("lost", "value_smaller_than_min"),
    ]


def test_valid_outputs_are_named_with_the_invalid_ones() -> None:
    prompt = wire()
    prompt["load"] = {"class_type": "Load", "inputs": {"image": "dog.png"}}
    prompt["bad"] = {"class_type": "Save", "inputs": {"images": ["load", 0], "prefix": "x"}}
    result = check(prompt)
    assert result.outputs == ("9",)
    assert [p.node_id for p in result.problems] == ["load"]


def test_targets_choose_among_the_output_nodes() -> None:
    prompt = wire()
    prompt["10"] = {"class_type": "Save", "inputs": {"images": ["8", 0], "prefix": "y"}}
    assert check(prompt).outputs == ("9", "10")
    assert check(prompt, ["10", "8", "unknown"]).outputs == ("10",)
    for targets in ([], ["8"], ["unknown"]):
        result = check(prompt, targets)
        assert result.outputs == ()
        assert [p.type for p in result.problems] == ["prompt_no_outputs"]


def test_a_graph_without_an_output_node_has_nothing_to_run() -> None:
    prompt = wire()
    del prompt["9"]
    assert only_problem(prompt)[0] == "prompt_no_outputs"
    assert [p.type for p in check({}).problems] == ["prompt_no_outputs"]


def test_each_circle_is_one_problem_that_names_its_nodes() -> None:
    prompt = {
        "a": {"class_type": "Any", "inputs": {"value": ["b", 0]}},
        "b": {"class_type": "Any", "inputs": {"value": ["c", 0]}},
        "c": {"class_type": "Any", "inputs": {"value": ["a", 0]}},
        "self": {"class_type": "Any", "inputs": {"value": ["self", 0]}},
        "free": {"class_type": "Any", "inputs": {"value": 1}},
        "after": {"class_type": "Save", "inputs": {"images": ["a", 0], "prefix": ""}},
        "fine": {"class_type": "Save", "inputs": {"images": ["free", 0], "prefix": ""}},
    }
    result = check(prompt)
    assert [p.type for p in result.problems] == ["dependency_cycle"] * 2
    assert sorted(sorted(p.extra["cycle_nodes"]) for p in result.problems) == [["a", "b", "c"], ["self"]]
    assert result.outputs == ("fine",)


def test_an_uploaded_file_is_looked_for_here_by_its_bare_name_only() -> None:
    def load(name: Any) -> list[tuple[str, str]]:
        prompt = {"1": {"class_type": "Load", "inputs": {"image": name}}, "2": wire()["9"]}
        prompt["2"]["inputs"]["images"] = ["1", 0]
        return [(p.type, p.details) for p in check(prompt).problems]

    assert load("cat.png") == load("sub/dog.png") == load("dog.png [output]") == []
    assert load("dog.png") == [("custom_validation_failed", "image - Invalid image file: dog.png")]
    assert load(3) == [("exception_during_validation", "")]


@pytest.mark.parametrize(
    ("output", "declared", "fits"),
    [
        ("IMAGE", "IMAGE", True),
        ("IMAGE", "MASK", False),
        ("*", "MASK", True),
        ("MASK", "*", True),
        ("FLOAT", "IMAGE,FLOAT", True),
        ("INT", "IMAGE,FLOAT", False),
        ("INT,FLOAT", "IMAGE, FLOAT", True),
    ],
)
def test_types_match_by_name_star_or_a_common_member(output: str, declared: str, fits: bool) -> None:
    assert matches(output, declared) is fits


def test_a_union_input_takes_a_constant() -> None:
    prompt = {"1": {"class_type": "Either", "inputs": {"value": 0.5}}, "2": changed("9", images=["1", 0])["9"]}
    assert check(prompt).problems == ()


def test_long_lists_are_not_sent_back() -> None:
    names = [f"{i}.safetensors" for i in range(21)]
    (problem,) = validate(graph(), SPECS, lambda folder: names).problems
    assert problem.details == "(list of length 21)"


def reaches(prompt: dict[str, Any], start: str, goal: str) -> bool:
    seen, stack = set(), [start]
    while stack:
        for source, _ in prompt[stack.pop()]["inputs"].values():
            if source == goal:
                return True
            if source not in seen:
                seen.add(source)
                stack.append(source)
    return False


@given(
    st.integers(1, 7).flatmap(lambda n: st.lists(st.tuples(st.integers(0, n - 1), st.integers(0, n - 1)), max_size=14))
)
def test_circles_are_the_sets_of_nodes_that_reach_each_other(edges: list[tuple[int, int]]) -> None:
    ids = sorted({i for edge in edges for i in edge})
    prompt: dict[str, Any] = {str(i): {"class_type": "Any", "inputs": {}} for i in ids}
    for index, (source, node) in enumerate(edges):
        prompt[str(node)]["inputs"][f"i{index}"] = [str(source), 0]
    expected = {
        frozenset(b for b in prompt if reaches(prompt, a, b) and reaches(prompt, b, a))
        for a in prompt
        if reaches(prompt, a, a)
    }
    found = [frozenset(members) for members in cycles(parse(prompt))]
    assert set(found) == expected
    assert len(found) == len(expected)


def test_a_chain_of_ten_thousand_nodes_and_a_circle_as_long_are_checked() -> None:
    n = 10_000
    prompt: dict[str, Any] = {str(i): {"class_type": "Any", "inputs": {"value": [str(i - 1), 0]}} for i in range(n)}
    prompt["0"]["inputs"] = {}
    prompt["out"] = {"class_type": "Save", "inputs": {"images": [str(n - 1), 0], "prefix": ""}}
    assert check(prompt).outputs == ("out",)
    prompt["0"]["inputs"] = {"value": [str(n - 1), 0]}
    assert [len(p.extra["cycle_nodes"]) for p in check(prompt).problems] == [n]


ABSURD = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(max_size=5)
    | st.sampled_from(["3", "4", "euler", 10**400]),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3) | st.just("__value__"), inner, max_size=2)
    ),
    max_leaves=6,
)


@given(
    st.dictionaries(
        st.sampled_from(["3", "4", "5", "6", "8", "9", "x"]),
        st.tuples(
            st.sampled_from([*SPECS, "Nope"]),
            st.dictionaries(
                st.sampled_from(sorted({i.name for s in SPECS.values() for i in s.inputs} | {"z"})), ABSURD
            ),
        ),
    )
)
def test_absurd_inputs_give_problems_that_can_be_written_as_json(nodes: dict[str, tuple[str, dict[str, Any]]]) -> None:
    prompt = wire()
    for node_id, (class_type, inputs) in nodes.items():
        node = prompt.setdefault(node_id, {"inputs": {}})
        node["class_type"] = class_type
        node["inputs"] = node["inputs"] | inputs
    try:
        problems = check(prompt).problems
    except InvalidGraphError as error:
        problems = error.problems
    for problem in problems:
        assert json.dumps(
            [str(problem), problem.details, dict(problem.extra)], allow_nan=False, ensure_ascii=False
        ).encode()
        assert len(str(problem)) < 2000


PICKY = {
    "Named": spec("Named", [number("n", max=5), number("m", max=5)], "INT", validator=("n",)),
    "All": spec("All", [number("n", max=5), Input("image", "IMAGE")], "INT", validator=("**",)),
    "Types": spec("Types", [Input("value", "IMAGE")], output_node=True, validator=("input_types",)),
    "Fresh": spec("Fresh", [number("n")], "INT", fingerprinted=True),
    "Plain": spec("Plain", [number("n")], "INT"),
}


def picky(prompt: Mapping[str, tuple[str, Mapping[str, Any]]]) -> Validated:
    nodes = {node_id: {"class_type": kind, "inputs": inputs} for node_id, (kind, inputs) in prompt.items()}
    return validate(parse(nodes), PICKY, lambda folder: [])


@pytest.mark.parametrize(
    ("kind", "inputs", "wrong"),
    [
        ("Named", {"n": 9, "m": 9}, [("value_bigger_than_max", "m")]),
        ("Named", {"n": "x", "m": 1}, [("invalid_input_type", "n")]),
        ("Named", {"n": 9}, [("required_input_missing", "m")]),
        ("All", {"n": 9, "image": "a constant"}, []),
    ],
)
def test_what_a_class_validates_itself_is_converted_and_not_bounded(kind: str, inputs: Any, wrong: Any) -> None:
    found = picky({"1": (kind, inputs), "2": ("Types", {"value": ["1", 0]})})
    assert [(p.type, p.extra["input_name"]) for p in found.problems] == wrong


def test_a_class_that_asks_for_input_types_may_be_linked_to_any() -> None:
    assert picky({"1": ("Plain", {"n": 1}), "2": ("Types", {"value": ["1", 0]})}).problems == ()


def test_only_nodes_that_will_run_need_prevalidation() -> None:
    for kind, asked in (("Plain", False), ("Fresh", True), ("Named", True)):
        prompt: dict[str, tuple[str, dict[str, Any]]] = {
            "1": ("Plain", {"n": 1}),
            "2": ("Types", {"value": ["1", 0]}),
            "3": (kind, {"n": 1, "m": 1}),
        }
        specs = {**PICKY, "Types": replace(PICKY["Types"], validator=None)}
        assert not needs_prevalidation(picky(prompt), specs)
        prompt["2"] = ("Types", {"value": ["3", 0]})
        assert needs_prevalidation(picky(prompt), specs) == asked


def test_what_a_worker_finds_takes_outputs_away_and_stays_with_the_nodes() -> None:
    prompt: dict[str, tuple[str, dict[str, Any]]] = {"1": ("Fresh", {"n": 1})}
    prompt |= {"2": ("Types", {"value": ["1", 0]}), "3": ("Types", {"value": ["1", 0]})}
    found = with_findings(picky(prompt), [Problem("custom_validation_failed", "no", node_id="3")], {"1": [7]})
    assert found.outputs == ("2",)
    assert [p.type for p in found.problems] == ["custom_validation_failed"]
    assert render(found.graph)["1"]["is_changed"] == [7]
    assert parse(render(found.graph)) == found.graph
