from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from serve_app.errors import InvalidGraphError
from serve_app.graph.graph import BadLink, Graph, Link
from serve_app.graph.parse import parse, render
from tests.unit.graph.classes import wire


def one(value: Any) -> Any:
    return parse({"1": {"class_type": "C", "inputs": {"a": value}}}).nodes["1"].inputs["a"]


def problems(prompt: Any) -> list[str]:
    with pytest.raises(InvalidGraphError) as caught:
        parse(prompt)
    return [str(problem) for problem in caught.value.problems]


def test_a_workflow_becomes_nodes_with_links() -> None:
    graph = parse(wire())
    assert list(graph.nodes) == ["4", "5", "6", "3", "8", "9"]
    assert graph.nodes["3"].inputs["positive"] == graph.nodes["3"].inputs["negative"] == Link("6", 0)
    assert graph.nodes["3"].inputs["seed"] == 7


@pytest.mark.parametrize(
    ("value", "link"),
    [(["a b", 1], Link("a b", 1)), ([4, 0], Link("4", 0)), ([4.0, -1], Link("4", -1)), (["1", True], Link("1", 1))],
)
def test_a_list_of_an_id_and_an_integer_is_a_link(value: list[Any], link: Link) -> None:
    assert one(value) == link


@pytest.mark.parametrize("value", [[], ["1"], ["1", 0, 0], ["1", "0"], ["1", 0.5], [None, 0], [True, 0], [[], 0]])
def test_any_other_list_is_a_bad_link(value: list[Any]) -> None:
    assert one(value) == BadLink(value)


def test_a_wrapped_value_is_a_constant_whatever_it_looks_like() -> None:
    assert one({"__value__": ["1", 0]}) == ["1", 0]
    assert one({"__value__": 3}) == 3


def test_keys_that_say_nothing_that_runs_are_ignored() -> None:
    plain = {"1": {"class_type": "C", "inputs": {}}}
    dressed = {"1": {"class_type": "C", "inputs": {}, "_meta": {"title": "T"}, "title": 3, "metadata": None}}
    assert parse(dressed) == parse(plain)


def test_a_node_may_have_no_inputs_at_all() -> None:
    assert parse({"1": {"class_type": "C"}}).nodes["1"].inputs == {}


@pytest.mark.parametrize("prompt", [None, [], "x", 3, True])
def test_a_prompt_that_is_no_object_is_refused(prompt: Any) -> None:
    assert "must be an object" in problems(prompt)[0]


def test_every_structural_problem_is_found() -> None:
    found = problems(
        {
            "a": None,
            "b": {"inputs": {}},
            "c": {"class_type": 3, "inputs": []},
            "d": {"class_type": "D", "inputs": {"x": float("nan"), "y": "\ud800", "ok": 1}},
            "ok": {"class_type": "C", "inputs": {}},
        }
    )
    assert [text.split(";")[0] for text in found] == [
        "node a: node 'a' is null",
        "node b: node 'b' has no class_type",
        "node c: node 'c' has a number as class_type",
        "node c: its inputs are a list",
        "D d: input 'x' holds nan, which is no JSON number",
        "D d: input 'y' holds half a surrogate pair, which is no Unicode text",
    ]


def test_a_constant_nested_absurdly_deep_is_refused_without_recursion() -> None:
    deep: Any = 0
    for _ in range(100_000):
        deep = [deep]
    assert (
        "nested deeper than 64 levels" in problems({"1": {"class_type": "C", "inputs": {"a": {"__value__": deep}}}})[0]
    )


def test_an_integer_too_long_to_write_is_refused() -> None:
    assert "more than 4000 digits" in problems({"1": {"class_type": "C", "inputs": {"a": 10**5000}}})[0]


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=8),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=9) | st.just("__value__"), inner, max_size=3)
    ),
    max_leaves=8,
)


@given(
    st.dictionaries(
        st.text(max_size=3),
        st.fixed_dictionaries(
            {"class_type": st.text(max_size=3), "inputs": st.dictionaries(st.text(max_size=3), JSON)}
        ),
        max_size=4,
    )
)
def test_rendering_a_graph_gives_wire_json_of_the_same_graph(prompt: dict[str, Any]) -> None:
    graph = parse(prompt)
    assert parse(render(graph)) == graph


@given(
    JSON
    | st.dictionaries(st.text(max_size=3), JSON)
    | st.dictionaries(st.text(max_size=1), st.dictionaries(st.sampled_from(["class_type", "inputs"]), JSON))
)
def test_any_json_is_a_graph_or_has_problems(prompt: Any) -> None:
    try:
        graph = parse(prompt)
    except InvalidGraphError as error:
        refused = error.problems
    else:
        assert isinstance(graph, Graph)
        return
    assert refused


@pytest.mark.parametrize(
    "prompt",
    [
        {"x" * 10**6: {"class_type": "C", "inputs": {}}},
        {"1": {"class_type": "x" * 10**6, "inputs": {}}},
        {"1": {"class_type": "C", "inputs": {"x" * 10**6: 1}}},
    ],
)
def test_a_name_of_absurd_length_is_refused_and_not_repeated(prompt: Any) -> None:
    (text,) = problems(prompt)
    assert "more than 500 characters" in text
    assert len(text) < 1000
