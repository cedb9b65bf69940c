from __future__ import annotations

import pytest

from serve_app.graph.saved.convert import convert
from serve_app.graph.saved.page_nodes import GETTERS, PAGE_ONLY
from tests.unit.graph.page_workflows import CLASSES, node, subgraph, workflow


def named(setter, getter, name="m", **keys):
    """Return a workflow in which a Load is named and a Patch asks for it by name."""
    return workflow(
        node(1, "Load"),
        node(5, setter, {"MODEL": ("MODEL", 1)}, widgets_values=["m"], **keys),
        node(6, getter, widgets_values=[name]),
        node(2, "Patch", {"model": ("MODEL", 2)}),
        links={1: (1, 0, 5, 0), 2: (6, 0, 2, 0)},
    )


@pytest.mark.parametrize(("getter", "setter"), GETTERS.items())
def test_what_is_got_by_name_is_what_was_set(getter, setter):
    assert convert(named(setter, getter), CLASSES)["2"]["inputs"]["model"] == ["1", 0]
    assert "model" not in convert(named(setter, getter, name="other"), CLASSES)["2"]["inputs"]


def test_a_set_node_passes_on_what_it_names():
    saved = workflow(
        node(1, "Load"),
        node(5, "SetNode", {"MODEL": ("MODEL", 1)}, widgets_values=["m"]),
        node(2, "Patch", {"model": ("MODEL", 2)}),
        links={1: (1, 0, 5, 0), 2: (5, 0, 2, 0)},
    )
    assert convert(saved, CLASSES)["2"]["inputs"]["model"] == ["1", 0]


def test_a_name_is_looked_for_in_the_subgraph_first_and_then_around_it():
    inner = subgraph(
        "s",
        node(7, "GetNode", widgets_values=["m"]),
        node(8, "Patch", {"model": ("MODEL", 1)}),
        links={1: (7, 0, 8, 0)},
    )
    saved = workflow(
        node(1, "Load"),
        node(5, "SetNode", {"MODEL": ("MODEL", 1)}, widgets_values=["m"]),
        node(3, "s"),
        links={1: (1, 0, 5, 0)},
        definitions={"subgraphs": [inner]},
    )
    assert convert(saved, CLASSES)["3:8"]["inputs"]["model"] == ["1", 0]
    saved["definitions"]["subgraphs"].append(subgraph("outer", node(4, "s"), links={}))
    saved["nodes"][2] = node(3, "outer")
    assert convert(saved, CLASSES)["3:4:8"]["inputs"]["model"] == ["1", 0]
    saved["nodes"][2] = node(3, "s")
    inner["nodes"] += [node(9, "Load"), node(10, "SetNode", {"MODEL": ("MODEL", 2)}, widgets_values=["m"])]
    inner["links"].append({"id": 2, "origin_id": 9, "origin_slot": 0, "target_id": 10, "target_slot": 0, "type": "*"})
    assert convert(saved, CLASSES)["3:8"]["inputs"]["model"] == ["3:9", 0]


def test_a_name_that_goes_in_a_circle_is_refused_and_not_followed_for_ever():
    saved = named("SetNode", "GetNode")
    saved["links"][0][1] = 6
    with pytest.raises(Exception, match="passes on what it is given by itself"):
        convert(saved, CLASSES)


@pytest.mark.parametrize("kind", sorted(PAGE_ONLY))
def test_what_exists_in_the_page_alone_is_not_queued(kind):
    saved = workflow(node(1, "Load"), node(5, kind, {"": ("*", 1)}, ()), links={1: (1, 0, 5, 0)})
    assert list(convert(saved, CLASSES)) == ["1"]


def test_a_reroute_of_rgthrees_passes_on():
    saved = workflow(
        node(1, "Load"),
        node(5, "Reroute (rgthree)", {"": ("*", 1)}),
        node(2, "Patch", {"model": ("MODEL", 2)}),
        links={1: (1, 0, 5, 0), 2: (5, 0, 2, 0)},
    )
    assert convert(saved, CLASSES)["2"]["inputs"]["model"] == ["1", 0]


def test_a_primitives_value_does_not_go_by_name():
    saved = workflow(
        node(1, "PrimitiveNode", makes=("FLOAT",), widgets_values=[0.25]),
        node(5, "SetNode", {"FLOAT": ("FLOAT", 1)}, widgets_values=["m"]),
        node(6, "GetNode", widgets_values=["m"]),
        node(2, "Patch", {"strength": ("FLOAT", 2)}, widgets_values=[0.75]),
        links={1: (1, 0, 5, 0), 2: (6, 0, 2, 1)},
    )
    assert convert(saved, CLASSES)["2"]["inputs"]["strength"] == 0.75


def test_a_primitives_value_does_not_go_through_a_reroute_into_a_subgraph():
    inner = subgraph(
        "s",
        node(7, "Reroute", {"": ("*", 1)}),
        node(8, "Patch", {"strength": ("FLOAT", 2)}, widgets_values=[0.75]),
        links={1: (-10, 0, 7, 0), 2: (7, 0, 8, 1)},
        inputs=("strength",),
    )
    saved = workflow(
        node(1, "PrimitiveNode", makes=("FLOAT",), widgets_values=[0.25]),
        node(3, "s", {"strength": ("FLOAT", 1)}),
        links={1: (1, 0, 3, 0)},
        definitions={"subgraphs": [inner]},
    )
    assert convert(saved, CLASSES)["3:8"]["inputs"]["strength"] == 0.75
