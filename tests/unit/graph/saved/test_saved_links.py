from __future__ import annotations

import pytest

from serve_app.graph.saved.convert import convert
from tests.unit.graph.page_workflows import CLASSES, node, workflow


def model_of(links, slot=7):
    saved = workflow(node(1, "Load"), node(4, "Load"), node(2, "Patch", {"model": ("MODEL", slot)}), links={})
    return convert({**saved, "links": links}, CLASSES)["2"]["inputs"].get("model")


@pytest.mark.parametrize(
    "damaged",
    [
        [],
        [None],
        [[7]],
        [[7, 1, None, 2, 0, "MODEL"]],
        [[7, 1, "first", 2, 0, "MODEL"]],
        [[7, 9, 0, 2, 0, "MODEL"]],
        ["7"],
    ],
)
def test_a_link_that_cannot_be_read_or_comes_from_nowhere_is_dropped(damaged):
    assert model_of(damaged) is None


def test_the_list_of_links_counts_and_not_what_an_input_names():
    assert model_of([[7, 1, 0, 2, 0, "MODEL"]], slot=None) == ["1", 0]
    assert model_of([[7, 1, 0, 2, 0, "MODEL"]], slot=13) == ["1", 0]


def test_of_two_links_into_one_input_the_named_one_stays_or_else_the_first():
    both = [[6, 1, 0, 2, 0, "MODEL"], [7, 4, 0, 2, 0, "MODEL"]]
    assert model_of(both) == ["4", 0]
    assert model_of(both, slot=None) == ["1", 0]


def test_a_link_follows_its_inputs_name_where_the_class_has_the_input_elsewhere():
    classes = {**CLASSES, "Patch": {"input": {"required": {"mask": ["MASK"], "model": ["MODEL"]}}}}
    saved = workflow(node(1, "Load"), node(2, "Patch", {"model": ("MODEL", 7)}), links={7: (1, 0, 2, 0)})
    assert convert(saved, classes)["2"]["inputs"] == {"model": ["1", 0]}


def test_a_bypassed_node_that_has_no_such_output_passes_nothing_on():
    saved = workflow(
        node(1, "Load"),
        node(3, "Join", {"one": ("IMAGE", None)}, makes=(), mode=4),
        node(2, "Patch", {"model": ("MODEL", 3)}),
        links={3: (3, 5, 2, 0)},
    )
    assert "model" not in convert(saved, CLASSES)["2"]["inputs"]
