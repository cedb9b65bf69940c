from __future__ import annotations

import json
from importlib.resources import files
from typing import Any

import pytest

from serve_app.cli.convert import own_classes
from serve_app.errors import WorkflowFileError
from serve_app.graph.parse import parse
from serve_app.graph.saved.convert import convert, is_saved_by_page
from serve_app.graph.validate import validate
from serve_app.nodes.registry import specs
from tests.unit.graph.page_workflows import CLASSES, node, subgraph, workflow

MODEL = ("MODEL", 1)
SAVED = [5, "randomize", 30, "heun", "hello", 0.5]
"""The values of a Sample's widgets: seed and its control, steps, name, note, bare."""


def inputs(saved, node_id="2"):
    return convert(saved, CLASSES)[node_id]["inputs"]


def test_comfyuis_default_workflow_runs_as_converted():
    saved = json.loads(files("serve_app.api.comfy.page").joinpath("first_workflow.json").read_text())
    prompt = convert(saved, own_classes())
    assert prompt["3"] == {
        "inputs": {
            "seed": 1,
            "steps": 20,
            "cfg": 5.0,
            "sampler_name": "euler",
            "scheduler": "normal",
            "denoise": 1.0,
            "model": ["4", 0],
            "positive": ["6", 0],
            "negative": ["7", 0],
            "latent_image": ["5", 0],
        },
        "class_type": "KSampler",
        "_meta": {"title": "KSampler"},
    }
    assert prompt["6"]["_meta"] == {"title": "Positive prompt"}
    assert list(prompt) == sorted(prompt, key=int)
    validated = validate(parse(prompt), specs(), lambda folder: ["model.safetensors"])
    assert (validated.outputs, validated.problems) == (("9",), ())


def test_widgets_are_read_by_position_past_those_of_the_page():
    saved = workflow(
        node(1, "Load"), node(2, "Sample", {"model": MODEL}, widgets_values=SAVED), links={1: (1, 0, 2, 0)}
    )
    expected = {"seed": 5, "steps": 30, "name": "heun", "note": "hello", "bare": 0.5, "model": ["1", 0]}
    assert inputs(saved) == expected


def test_values_that_are_not_saved_are_the_defaults():
    saved = workflow(node(2, "Sample", {"model": ("MODEL", None)}, widgets_values=[5]), links={})
    assert inputs(saved) == {"seed": 5, "steps": 20, "name": "euler", "note": "none", "bare": 0.0}


def test_values_may_be_saved_by_name():
    saved = workflow(node(2, "Patch", widgets_values={"strength": 0.25}), links={})
    assert inputs(saved) == {"strength": 0.25}


@pytest.mark.parametrize("values", [[64, 32], ["", 64, 32]])
def test_an_input_that_is_always_a_socket_has_no_value_or_one_that_older_pages_saved(values):
    saved = workflow(node(2, "Forced", {"text": ("STRING", None)}, widgets_values=values), links={})
    assert inputs(saved) == {"width": 64, "height": 32}


def test_an_upload_button_stands_after_the_required_widgets():
    saved = workflow(node(2, "Upload", widgets_values=["y.png", "image", "green"]), links={})
    assert inputs(saved) == {"image": "y.png", "channel": "green"}


def test_a_choice_that_changes_by_itself_has_a_filter_too():
    saved = workflow(node(2, "Chosen", widgets_values=["b", "increment", "", 3]), links={})
    assert inputs(saved) == {"name": "b", "size": 3}


def test_a_list_as_a_value_is_wrapped_lest_it_reads_as_a_link():
    saved = workflow(node(2, "Many", widgets_values=[["a", "b"]]), links={})
    assert inputs(saved) == {"names": {"__value__": ["a", "b"]}}


def test_a_widget_that_became_an_input_is_linked_and_keeps_its_place_among_the_values():
    asks = node(2, "Sample", {"model": ("MODEL", None), "steps": ("INT", 1)}, widgets_values=SAVED)
    found = inputs(workflow(node(1, "Load", makes=("INT",)), asks, links={1: (1, 0, 2, 1)}))
    assert (found["steps"], found["name"]) == (["1", 0], "heun")


def test_a_primitive_gives_its_value_also_through_reroutes():
    saved = workflow(
        node(1, "PrimitiveNode", makes=("INT",), widgets_values=[11, "fixed"]),
        node(3, "Reroute", {"": ("*", 1)}, makes=("INT",)),
        node(2, "Sample", {"model": ("MODEL", None), "steps": ("INT", 2)}, widgets_values=SAVED),
        links={1: (1, 0, 3, 0), 2: (3, 0, 2, 1)},
    )
    assert inputs(saved)["steps"] == 11
    assert list(convert(saved, CLASSES)) == ["2"]


def test_notes_and_muted_nodes_go_and_what_they_gave_is_missing():
    saved = workflow(
        node(1, "Load", mode=2),
        node(2, "Sample", {"model": MODEL}),
        node(3, "Note", widgets_values=["x"]),
        node(4, "Unheard", mode=2),
        links={1: (1, 0, 2, 0)},
    )
    assert list(convert(saved, CLASSES)) == ["2"]
    assert "model" not in inputs(saved)


def test_a_bypassed_node_passes_on_its_first_input_of_the_outputs_type():
    saved = workflow(
        node(1, "Load"),
        node(2, "Sample", {"model": ("MODEL", 3)}),
        node(3, "Join", {"one": ("IMAGE", None), "two": ("MODEL", 1)}, mode=4),
        links={1: (1, 0, 3, 1), 3: (3, 0, 2, 0)},
    )
    assert inputs(saved)["model"] == ["1", 0]


def test_a_bypassed_node_that_has_nothing_of_the_type_passes_on_nothing():
    saved = workflow(
        node(1, "Load", makes=("IMAGE",)),
        node(2, "Sample", {"model": ("MODEL", 3)}),
        node(3, "Join", {"one": ("IMAGE", 1)}, mode=4),
        links={1: (1, 0, 3, 0), 3: (3, 0, 2, 0)},
    )
    assert "model" not in inputs(saved)


INNER = subgraph(
    "s",
    node(5, "Patch", {"model": ("MODEL", 1), "strength": ("FLOAT", 2)}, widgets_values=[0.75]),
    node(6, "Patch", {"model": ("MODEL", 3)}, widgets_values=[0.5]),
    links={1: (-10, 0, 5, 0), 2: (-10, 1, 5, 1), 3: (5, 0, 6, 0), 4: (6, 0, -20, 0)},
    inputs=("model", "strength"),
)

INNER["nodes"][0]["inputs"][1]["widget"] = {"name": "strength"}


def around(**keys):
    """Return a workflow with one use of INNER between a Load and a Sample."""
    slots = {"model": ("MODEL", 1), "strength": ("FLOAT", None)}
    host = node(3, "s", slots, **keys)
    host["inputs"][1]["widget"] = {"name": "strength"}
    return workflow(
        node(1, "Load"),
        node(2, "Sample", {"model": ("MODEL", 2)}),
        host,
        links={1: (1, 0, 3, 0), 2: (3, 0, 2, 0)},
        definitions={"subgraphs": [INNER]},
    )


def test_a_subgraph_unfolds_into_nodes_named_after_its_host():
    prompt = convert(around(), CLASSES)
    assert list(prompt) == ["1", "2", "3:5", "3:6"]
    assert prompt["3:5"]["inputs"] == {"strength": 0.75, "model": ["1", 0]}
    assert prompt["3:6"]["inputs"] == {"strength": 0.5, "model": ["3:5", 0]}
    assert prompt["2"]["inputs"]["model"] == ["3:6", 0]


@pytest.mark.parametrize(
    "properties", [{}, {"proxyWidgets": [["-1", "strength"]]}, {"proxyWidgets": [["5", "strength"]]}]
)
def test_what_a_subgraphs_host_shows_counts_before_what_is_inside(properties):
    prompt = convert(around(widgets_values=[0.125], properties=properties), CLASSES)
    assert (prompt["3:5"]["inputs"]["strength"], prompt["3:6"]["inputs"]["strength"]) == (0.125, 0.5)


@pytest.mark.parametrize(
    ("nested", "shown", "value"),
    [(False, {}, 0.75), (True, {}, 0.75), (True, {"widgets_values": [0.25]}, 0.25)],
)
def test_an_input_of_a_subgraph_that_is_a_widget_inside_gives_its_value_to_all_that_are_linked_to_it(
    nested, shown, value
):
    def holding(name, widget, other):
        inner = subgraph(
            name,
            widget,
            node(other, "Forced", {"text": ("*", 2)}),
            links={1: (-10, 0, widget["id"], 0), 2: (-10, 0, other, 0)},
            inputs=("strength",),
        )
        inner["nodes"][0]["inputs"][0]["widget"] = {"name": "strength"}
        return inner

    patch = node(5, "Patch", {"strength": ("FLOAT", 1)}, widgets_values=[0.75])
    definitions = [holding("s", patch, 6)]
    if nested:
        definitions.append(holding("o", node(7, "s", {"strength": ("FLOAT", 1)}, (), **shown), 8))
    host = node(3, definitions[-1]["name"], {}, ())
    prompt = convert(workflow(host, links={}, definitions={"subgraphs": definitions}), CLASSES)
    given = {name: made["inputs"] for name, made in prompt.items()}
    path, other = ("3:7", "3:8") if nested else ("3", "3:6")
    assert (given[f"{path}:5"]["strength"], given[f"{path}:6"]["text"], given[other]["text"]) == (value,) * 3


def test_a_host_that_leaves_inputs_out_has_a_value_of_each_widget_inside():
    saved = around(widgets_values=[0.125, 3])
    inner = subgraph(
        "s",
        node(5, "Patch", {"model": ("MODEL", 1), "strength": ("FLOAT", 2)}, widgets_values=[0.75]),
        node(6, "Patch", {"model": ("MODEL", 3), "strength": ("FLOAT", 5)}, widgets_values=[0.5]),
        links={1: (-10, 0, 5, 0), 2: (-10, 1, 5, 1), 3: (5, 0, 6, 0), 4: (6, 0, -20, 0), 5: (-10, 2, 6, 1)},
        inputs=("model", "first", "second"),
    )
    for inside in inner["nodes"]:
        inside["inputs"][1]["widget"] = {"name": "strength"}
    saved["definitions"]["subgraphs"] = [inner]
    saved["nodes"][2]["inputs"][1] |= {"name": "second", "widget": {"name": "second"}}
    prompt = convert(saved, CLASSES)
    assert (prompt["3:5"]["inputs"]["strength"], prompt["3:6"]["inputs"]["strength"]) == (0.125, 3)


def test_a_bypassed_subgraph_passes_on_and_a_muted_one_goes_whole():
    prompt = convert(around(mode=4), CLASSES)
    assert (list(prompt), prompt["2"]["inputs"]["model"]) == (["1", "2"], ["1", 0])
    prompt = convert(around(mode=2), CLASSES)
    assert (list(prompt), "model" in prompt["2"]["inputs"]) == (["1", "2"], False)


def test_subgraphs_nest():
    saved = around()
    outer = subgraph(
        "o", node(8, "s", {"model": ("MODEL", 1)}), links={1: (-10, 0, 8, 0), 2: (8, 0, -20, 0)}, inputs=("model",)
    )
    saved["definitions"]["subgraphs"].append(outer)
    saved["nodes"][2] = node(3, "o", {"model": ("MODEL", 1)})
    prompt = convert(saved, CLASSES)
    assert prompt["3:8:5"]["inputs"]["model"] == ["1", 0]
    assert prompt["2"]["inputs"]["model"] == ["3:8:6", 0]


@pytest.mark.parametrize(
    ("saved", "said"),
    [
        (workflow(node(2, "Sampel"), links={}), "node 2: no node class 'Sampel' is installed; did you mean 'Sample'?"),
        (
            workflow(node(2, "workflow>mine"), links={}),
            "node 2 is the group node 'workflow>mine', which the file does not",
        ),
        ({"nodes": [{}]}, "not as the web page saves one: KeyError: 'id'"),
        (
            workflow(
                node(1, "Reroute", {"": ("*", 1)}),
                node(2, "Patch", {"model": ("MODEL", 2)}),
                links={1: (1, 0, 1, 0), 2: (1, 0, 2, 0)},
            ),
            "node 1 passes on what it is given by itself",
        ),
        (
            workflow(node(2, "r"), links={}, definitions={"subgraphs": [subgraph("r", node(1, "r"), links={})]}),
            "node 2:1 is a subgraph that holds itself",
        ),
    ],
)
def test_what_cannot_be_converted_is_refused_saying_what_and_where(saved, said):
    with pytest.raises(WorkflowFileError) as refused:
        convert(saved, CLASSES)
    assert said in str(refused.value)


@pytest.mark.parametrize(
    ("value", "saved"), [({"nodes": []}, True), ({"nodes": {}}, False), ({"1": {}}, False), ([], False)]
)
def test_a_workflow_that_the_page_saved_has_a_list_of_nodes(value, saved):
    assert is_saved_by_page(value) is saved


def test_an_unknown_class_is_refused_in_validations_words():
    saved = workflow(node(2, "Sampled"), node(3, "Sampled"), links={})
    reason = "it is for a model family other than ours"
    problems = validate(
        parse({"2": {"class_type": "Sampled"}}), {}, lambda folder: [], None, {"Sampled": reason}
    ).problems
    with pytest.raises(WorkflowFileError) as error:
        convert(saved, CLASSES, {"Sampled": reason})
    assert str(error.value) == f"nodes 2, 3: {problems[0].message}"
    assert "did you mean" not in str(error.value)


DYNAMIC: dict[str, Any] = {
    "Resize": {
        "input": {
            "required": {
                "image": ["IMAGE"],
                "how": [
                    "COMFY_DYNAMICCOMBO_V3",
                    {
                        "options": [
                            {"key": "by", "inputs": {"required": {"factor": ["FLOAT", {"default": 2.0}]}}},
                            {
                                "key": "to",
                                "inputs": {
                                    "required": {"width": ["INT"], "height": ["INT", {"default": 9}]},
                                    "optional": {
                                        "edge": [
                                            "COMFY_DYNAMICCOMBO_V3",
                                            {
                                                "options": [
                                                    {"key": "cut", "inputs": {"required": {}}},
                                                    {"key": "pad", "inputs": {"required": {"color": ["COLOR"]}}},
                                                ]
                                            },
                                        ]
                                    },
                                },
                            },
                        ]
                    },
                ],
                "method": ["COMBO", {"options": ["area", "bilinear"]}],
            }
        }
    },
    "Stack": {
        "input": {
            "required": {
                "rows": [
                    "COMFY_DYNAMICGROUP_V3",
                    {
                        "template": {"required": {"name": [["a", "b"]]}, "optional": {"weight": ["FLOAT"]}},
                        "min": 0,
                        "max": 9,
                    },
                ],
                "more": ["COMFY_AUTOGROW_V3", {"template": {"input": {"required": {"n": ["INT", {}]}}, "prefix": "n"}}],
                "last": ["STRING"],
            }
        }
    },
    "Draw": {
        "input": {
            "required": {
                "how": [
                    "COMFY_DYNAMICCOMBO_V3",
                    {"options": [{"key": "on", "inputs": {"required": {"seed": ["INT"], "n": ["INT"]}}}]},
                ],
            }
        }
    },
    "Compare": {"input": {"required": {"view": ["IMAGECOMPARE", {}], "n": ["INT"]}}},
    "CustomCombo": {"input": {"required": {"choice": ["COMBO", {"options": []}]}}},
}


def dynamic_inputs(kind, **keys):
    links = {1: (1, 0, 2, 0)} if "inputs" in keys else {}
    saved = workflow(node(1, "Load"), node(2, kind, **keys), links=links)
    return convert(saved, {**CLASSES, **DYNAMIC})["2"]["inputs"]


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ([], {"how": "by", "how.factor": 2.0, "method": "area"}),
        (["by", 3.0, "bilinear"], {"how": "by", "how.factor": 3.0, "method": "bilinear"}),
        (
            ["to", 4, 5, "cut", "bilinear"],
            {"how": "to", "how.width": 4, "how.height": 5, "how.edge": "cut", "method": "bilinear"},
        ),
        (
            ["to", 4, 5, "pad", "#000000", "bilinear"],
            {
                "how": "to",
                "how.width": 4,
                "how.height": 5,
                "how.edge": "pad",
                "how.edge.color": "#000000",
                "method": "bilinear",
            },
        ),
    ],
)
def test_the_widgets_of_the_chosen_option_stand_behind_its_choice(values, expected):
    assert dynamic_inputs("Resize", widgets_values=values) == expected


def test_a_seed_of_a_chosen_option_has_no_control_unless_its_class_asks_for_one():
    assert dynamic_inputs("Draw", widgets_values=["on", 5, 7]) == {"how": "on", "how.seed": 5, "how.n": 7}


def test_values_saved_by_name_alone_are_read_by_name_and_others_by_position():
    named = {"method": "bilinear", "how": "to", "how.width": 4, "how.edge": "cut"}
    expected = {"how": "to", "how.width": 4, "how.height": 9, "how.edge": "cut", "method": "bilinear"}
    assert dynamic_inputs("Resize", widgets_values=named) == expected
    by_position = dynamic_inputs("Resize", widgets_values=["to"])
    assert dynamic_inputs("Resize", widgets_values=["to"], widgets_values_named=named) == by_position


def test_rows_are_counted_by_a_widget_that_is_no_input_and_grown_inputs_have_none():
    values = [2, "a", 0.5, "b", 1.5, "end"]
    assert dynamic_inputs("Stack", inputs={"more.n0": ("INT", 1)}, widgets_values=values) == {
        "rows.0.name": "a",
        "rows.0.weight": 0.5,
        "rows.1.name": "b",
        "rows.1.weight": 1.5,
        "last": "end",
        "more.n0": ["1", 0],
    }


def test_a_list_that_its_user_wrote_says_which_option_is_chosen():
    given = dynamic_inputs("CustomCombo", widgets_values=["slow", 0, "fast", "slow", ""])
    assert given == {"choice": "slow", "option1": "fast", "option2": "slow", "option3": "", "index": 1}


def test_a_widget_that_is_never_saved_takes_no_place_among_the_values():
    assert dynamic_inputs("Compare", widgets_values=[7]) == {"view": {}, "n": 7}
