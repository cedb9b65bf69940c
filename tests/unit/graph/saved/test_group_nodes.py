from __future__ import annotations

import pytest

from serve_app.errors import WorkflowFileError
from serve_app.graph.saved.convert import convert
from tests.unit.graph.page_workflows import CLASSES, node, workflow

OWN = {**CLASSES, "Load": {**CLASSES["Load"], "output": ["MODEL"]}, "Patch": {**CLASSES["Patch"], "output": ["MODEL"]}}


def grouped(*inside, values, links, inputs=None, group=None, kind="workflow>mine", **keys):
    """Return a workflow with a group node 7 between a Load and a Sample. links: inside, by places."""
    inner = [{key: value for key, value in one.items() if key != "id"} for one in inside]
    definition = {"nodes": inner, "links": [[*ends, 99, "MODEL"] for ends in links], "external": [], **(group or {})}
    return workflow(
        node(1, "Load"),
        node(7, kind, inputs or {"model": ("MODEL", 1)}, widgets_values=values),
        node(2, "Sample", {"model": ("MODEL", 2)}),
        links={1: (1, 0, 7, 0), 2: (7, 0, 2, 0)},
        extra={"groupNodes": {"mine": definition}},
        **keys,
    )


PATCHES = (
    node(0, "Patch", {"model": ("MODEL", None)}, widgets_values=[0.5]),
    node(0, "Patch", {"model": ("MODEL", 3)}, widgets_values=[0.25]),
)


@pytest.mark.parametrize("kind", ["workflow>mine", "workflow/mine"])
@pytest.mark.parametrize(("last", "ids"), [(7, ("10:8", "10:9")), (20, ("23:21", "23:22"))])
def test_a_group_node_stands_for_the_nodes_inside_with_the_values_that_it_shows(kind, last, ids):
    saved = grouped(*PATCHES, values=[0.125, 0.75], links=[(0, 0, 1, 0)], kind=kind, last_node_id=last)
    prompt = convert(saved, OWN)
    assert list(prompt) == ["1", "2", *ids]
    assert prompt[ids[0]]["inputs"] == {"model": ["1", 0], "strength": 0.125}
    assert prompt[ids[1]]["inputs"] == {"model": [ids[0], 0], "strength": 0.75}
    assert prompt["2"]["inputs"]["model"] == [ids[1], 0]


def test_what_a_group_node_has_not_saved_is_as_inside():
    prompt = convert(grouped(*PATCHES, values=[0.125], links=[(0, 0, 1, 0)]), OWN)
    assert [prompt[name]["inputs"]["strength"] for name in ("10:8", "10:9")] == [0.125, 0.25]


def test_an_output_linked_inside_and_outside_the_group_is_an_exit_too():
    saved = grouped(*PATCHES, values=[], links=[(0, 0, 1, 0)], group={"external": [[0, 0, "MODEL"]]})
    assert convert(saved, OWN)["2"]["inputs"]["model"] == ["10:8", 0]
    hidden = {"external": [[0, 0, "MODEL"]], "config": {"0": {"output": {"0": {"visible": False}}}}}
    saved = grouped(*PATCHES, values=[], links=[(0, 0, 1, 0)], group=hidden)
    assert convert(saved, OWN)["2"]["inputs"]["model"] == ["10:9", 0]


def test_a_widget_made_into_an_input_stands_behind_the_others_as_an_input_and_with_its_value():
    first = node(0, "Patch", {"model": ("MODEL", None), "strength": ("FLOAT", None)}, widgets_values=[0.5])
    first["inputs"][1]["widget"] = {"name": "strength"}
    inputs = {"model": ("MODEL", 1), "strength": ("FLOAT", 3)}
    sized = {**OWN["Patch"]["input"]["required"], "size": ["INT", {"default": 1, "control_after_generate": True}]}
    classes = {**OWN, "Patch": {"input": {"required": sized}, "output": ["MODEL"]}}
    values = [8, "fixed", 0.75, 9, "fixed", 0.875]
    saved = grouped(first, PATCHES[1], values=values, links=[(0, 0, 1, 0)], inputs=inputs)
    assert convert(saved, classes)["10:8"]["inputs"] == {"model": ["1", 0], "strength": 0.875, "size": 8}
    saved["links"].append([3, 1, 1, 7, 1, "FLOAT"])
    prompt = convert(saved, classes)
    assert prompt["10:8"]["inputs"] == {"model": ["1", 0], "strength": ["1", 1], "size": 8}
    assert prompt["10:9"]["inputs"] == {"model": ["10:8", 0], "strength": 0.75, "size": 9}


def test_newer_pages_save_an_input_of_every_widget_and_the_values_in_order():
    first = node(0, "Patch", {"model": ("MODEL", None), "strength": ("FLOAT", None)}, widgets_values=[0.5])
    first["inputs"][1]["widget"] = {"name": "strength"}
    prompt = convert(grouped(first, PATCHES[1], values=[0.125, 0.75], links=[(0, 0, 1, 0)]), OWN)
    assert [prompt[name]["inputs"]["strength"] for name in ("10:8", "10:9")] == [0.125, 0.75]


def test_reroutes_and_primitives_inside_pass_on():
    reroute = node(0, "Reroute", {"": ("*", None)}, makes=("MODEL",))
    primitive = node(0, "PrimitiveNode", {}, ("FLOAT",), widgets_values=[0.5])
    patch = node(0, "Patch", {"model": ("MODEL", 1), "strength": ("FLOAT", 2)}, widgets_values=[0.25])
    patch["inputs"][1]["widget"] = {"name": "strength"}
    saved = grouped(reroute, primitive, patch, values=[0.75], links=[(0, 0, 2, 0), (1, 0, 2, 1)])
    prompt = convert(saved, OWN)
    assert prompt["11:10"]["inputs"] == {"model": ["1", 0], "strength": 0.75}
    assert prompt["2"]["inputs"]["model"] == ["11:10", 0]


def test_a_class_that_is_missing_inside_is_named():
    saved = grouped(node(0, "Nowhere", {"model": ("MODEL", None)}), values=[], links=[])
    with pytest.raises(WorkflowFileError, match="node 9:8: no node class 'Nowhere' is installed"):
        convert(saved, OWN)


def test_the_ids_of_a_second_group_node_stand_behind_those_of_the_first():
    saved = grouped(*PATCHES, values=[], links=[(0, 0, 1, 0)])
    saved["nodes"].append(node(6, "workflow>mine"))
    assert list(convert(saved, OWN)) == ["1", "2", "10:8", "10:9", "13:11", "13:12"]
