from __future__ import annotations

import pytest

from serve_app.graph.saved.convert import convert
from tests.unit.graph.page_workflows import CLASSES, node, subgraph, workflow

SAMPLER = {
    "input": {"required": {"positive": ["COND"], "negative": ["COND"], "seed": ["INT", {"default": 1}], "any": ["*"]}}
}
MORE = {**CLASSES, "Guide": SAMPLER, "Text": {"input": {"required": {"text": ["STRING"]}}}}
NEW = {"version": "7.8"}


def sender(node_id, values, kind="Anything Everywhere", settings=NEW, **keys):
    """Return a controller. values: the name of each input, with (type, link)."""
    properties = {"ue_properties": settings} if settings else keys.pop("properties", {})
    return node(node_id, kind, values, (), properties=properties, **keys)


def models(*senders, links=None, muted=False, **keys):
    """Return which node's model the Patches 2 and 3 have, of Loads 1 and 4 that are broadcast by link 1 and 2."""
    saved = workflow(
        node(1, "Load"),
        node(4, "Load", mode=2 if muted else 0),
        node(2, "Patch", {"model": ("MODEL", None)}, title="First", pos=[0, 100], size=[10, 10], color="#111"),
        node(3, "Patch", {"model": ("MODEL", None)}, title="Second", pos=[500, 100], size=[10, 10]),
        *senders,
        links=links or {1: (1, 0, 5, 0), 2: (4, 0, 6, 0)},
        **keys,
    )
    for link in saved["links"]:
        link[5] = "MODEL"
    prompt = convert(saved, MORE)
    assert not {"5", "6"} & prompt.keys()
    return [prompt[name]["inputs"].get("model", [None])[0] for name in ("2", "3")]


ONE = {"anything": ("*", 1)}
OTHER = {"anything": ("*", 2)}


def test_a_value_goes_to_every_input_of_its_type_without_a_link():
    assert models(sender(5, ONE)) == ["1", "1"]
    assert models(sender(5, ONE, mode=4)) == [None, None]


@pytest.mark.parametrize(
    ("settings", "reached"),
    [
        ({"title_regex": "^First"}, ["1", None]),
        ({"title_regex": "^First", "title_regex_invert": True}, [None, "1"]),
        ({"input_regex": "mod"}, ["1", "1"]),
        ({"input_regex": "vae"}, [None, None]),
        ({"title_regex": "(", "input_regex": ".*"}, ["1", "1"]),
        ({"group_regex": "^left$"}, ["1", None]),
        ({"group_restricted": 1}, ["1", None]),
        ({"group_restricted": 2}, [None, "1"]),
        ({"color_restricted": 1}, ["1", None]),
        ({"color_restricted": 2}, [None, "1"]),
    ],
)
def test_a_controller_sends_where_its_restrictions_allow(settings, reached):
    one = sender(5, ONE, settings={**NEW, **settings}, pos=[50, 100], size=[10, 10], color="#111")
    assert models(one, groups=[{"title": "left", "bounding": [-20, 0, 200, 300]}]) == reached


def test_the_higher_priority_wins_and_of_two_equal_ones_neither():
    assert models(sender(5, ONE), sender(6, OTHER)) == [None, None]
    assert models(sender(5, ONE, settings={**NEW, "priority": 11}), sender(6, OTHER)) == ["1", "1"]
    assert models(sender(5, ONE), sender(6, OTHER, settings={**NEW, "title_regex": "First"})) == ["4", "1"]


def test_older_controllers_keep_their_restrictions_in_widgets_and_properties():
    old = {"kind": "Anything Everywhere?", "settings": None, "widgets_values": ["Second", ".*", ".*"]}
    assert models(sender(5, ONE, **old)) == [None, "1"]
    coloured = {"settings": None, "properties": {"color_restricted": 1}, "color": "#111"}
    assert models(sender(5, ONE, kind="Anything Everywhere3", **coloured)) == ["1", None]


def test_a_bypassed_source_sends_what_comes_into_it():
    links = {3: (1, 0, 7, 0), 1: (7, 0, 5, 0)}
    assert models(sender(5, ONE), node(7, "Patch", {"model": ("MODEL", 3)}, mode=4), links=links) == ["1", "1"]


def test_an_input_may_be_closed_and_a_widget_opened():
    closed = {"ue_properties": {**NEW, "input_ue_unconnectable": {"model": True}}}
    opened = {"ue_properties": {**NEW, "widget_ue_connectable": {"strength": True}}}
    saved = workflow(
        node(1, "Load", makes=("MODEL", "FLOAT")),
        node(2, "Patch", {"model": ("MODEL", None)}, properties=closed),
        node(3, "Patch", {"model": ("MODEL", None)}, properties=opened),
        node(4, "Patch", {"model": ("MODEL", None)}, properties={"rejects_ue_links": True}),
        sender(5, {"a": ("*", 1), "b": ("*", 2)}),
        links={1: (1, 0, 5, 0), 2: (1, 1, 5, 1)},
    )
    saved["links"] = [[*saved["links"][0][:5], "MODEL"], [*saved["links"][1][:5], "FLOAT"]]
    given = [convert(saved, MORE)[name]["inputs"] for name in "234"]
    assert given == [{"strength": 1.0}, {"model": ["1", 0], "strength": ["1", 1]}, {"strength": 1.0}]


@pytest.mark.parametrize("kind", ["Prompts Everywhere", "Anything Everywhere"])
def test_two_values_of_one_type_go_by_the_names_of_inputs(kind):
    names = ("positive", "negative") if kind == "Anything Everywhere" else ("COND", "COND ")
    saved = workflow(
        node(1, "Load", makes=("COND",)),
        node(2, "Load", makes=("COND",)),
        node(3, "Guide"),
        sender(5, {names[0]: ("*", 1), names[1]: ("*", 2)}, kind),
        links={1: (1, 0, 5, 0), 2: (2, 0, 5, 1)},
    )
    given = convert(saved, MORE)["3"]["inputs"]
    assert (given["positive"], given["negative"]) == (["1", 0], ["2", 0])


def test_a_seed_goes_to_inputs_that_were_made_of_widgets_and_is_a_number_without_its_class():
    seeded = node(3, "Guide", {"seed": ("INT", None)}, properties={})
    seeded["inputs"][0]["widget"] = {"name": "seed"}
    saved = workflow(seeded, node(4, "Guide"), node(5, "Seed Everywhere", {}, ("INT",), widgets_values=[77]), links={})
    assert [convert(saved, MORE)[name]["inputs"]["seed"] for name in "34"] == [77, 1]
    known = {**MORE, "Seed Everywhere": {"input": {"required": {"seed": ["INT"]}}}}
    assert convert(saved, known)["3"]["inputs"]["seed"] == ["5", 0]


def test_a_node_of_any_class_may_send_its_outputs():
    properties = {"ue_convert": True, "ue_properties": {**NEW, "output_not_broadcasting": {"COND": True}}}
    saved = workflow(
        node(1, "Load", makes=("MODEL", "COND"), properties=properties), node(2, "Patch"), node(3, "Guide"), links={}
    )
    prompt = convert(saved, MORE)
    assert prompt["2"]["inputs"]["model"] == ["1", 0]
    assert "positive" not in prompt["3"]["inputs"]


@pytest.mark.parametrize(
    ("settings", "given"), [({}, None), ({"send_to_any": 1}, ["1", 0]), ({"string_to_combo": 1}, None)]
)
def test_an_input_of_any_type_takes_what_may_go_to_any(settings, given):
    saved = workflow(
        node(1, "Load"), node(3, "Guide"), sender(5, ONE, settings={**NEW, **settings}), links={1: (1, 0, 5, 0)}
    )
    saved["links"][0][5] = "MODEL"
    assert convert(saved, MORE)["3"]["inputs"].get("any") == given


def test_a_subgraph_broadcasts_in_itself_alone():
    inner = subgraph(
        "s", node(7, "Load"), sender(8, ONE), node(9, "Patch", {"model": ("MODEL", None)}), links={1: (7, 0, 8, 0)}
    )
    saved = workflow(node(2, "Patch"), node(3, "s"), links={}, definitions={"subgraphs": [inner]})
    prompt = convert(saved, MORE)
    assert prompt["3:9"]["inputs"]["model"] == ["3:7", 0]
    assert "model" not in prompt["2"]["inputs"]


def test_a_node_takes_nothing_of_its_own_and_a_muted_source_sends_nothing():
    def models_of(mode):
        saved = workflow(node(2, "Patch", mode=mode), node(3, "Patch"), sender(5, ONE), links={1: (2, 0, 5, 0)})
        saved["links"][0][5] = "MODEL"
        return {name: made["inputs"].get("model") for name, made in convert(saved, MORE).items()}

    assert models_of(0) == {"2": None, "3": ["2", 0]}
    assert models_of(2) == {"3": None}
    assert models(sender(5, ONE), sender(6, OTHER), muted=True) == ["1", "1"]


def test_a_collapsed_node_is_where_its_title_is():
    one = sender(
        5, ONE, settings={**NEW, "group_restricted": 1}, pos=[50, 20], size=[10, 900], flags={"collapsed": True}
    )
    assert models(one, groups=[{"title": "left", "bounding": [-20, -20, 200, 200]}]) == ["1", None]
