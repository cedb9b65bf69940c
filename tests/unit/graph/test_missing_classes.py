from __future__ import annotations

import pytest

from serve_app.errors import Problem, WorkflowFileError
from serve_app.graph.missing_classes import with_packs
from serve_app.graph.saved.convert import convert
from tests.unit.graph.page_workflows import CLASSES, node, workflow


def refused(*nodes):
    with pytest.raises(WorkflowFileError) as error:
        convert(workflow(*nodes, links={}), CLASSES)
    return str(error.value)


def of(pack, node_id, kind, key="cnr_id"):
    return node(node_id, kind, properties={key: pack})


def test_a_missing_class_names_the_pack_that_its_node_names():
    assert refused(of("kjnodes", 4, "Film")) == (
        "node 4: no node class 'Film' is installed; it is of the pack 'kjnodes'"
    )
    assert refused(of("me/films", 4, "Film", "aux_id")).endswith("; it is of the pack 'me/films'")


@pytest.mark.parametrize("pack", ["comfy-core", "no pack's name", 5, None])
def test_what_names_no_pack_is_not_repeated(pack):
    assert "pack" not in refused(of(pack, 4, "Film"))


def test_missing_classes_of_one_pack_are_named_together():
    nodes = [of("kjnodes", 4, "Film"), of("kjnodes", 5, "Cut"), node(6, "Sampel"), of("kjnodes", 7, "Film")]
    assert refused(*nodes) == (
        "node 6: no node class 'Sampel' is installed; did you mean 'Sample'?; "
        "not installed, of the pack 'kjnodes': Film (nodes 4, 7), Cut (node 5)"
    )


def test_the_words_on_many_missing_classes_are_few():
    nodes = [node(n, f"Class {n % 300}", properties={"cnr_id": f"pack{n % 40}"}) for n in range(1200)]
    said = refused(*nodes, *(node(2000 + n, f"Nobody's {n}") for n in range(300)))
    assert len(said) < 3000
    assert "more packs or classes" in said


def test_a_prompts_missing_class_names_the_pack_of_its_node():
    problem = Problem("missing_node_type", "no node class 'Film' is installed", node_id="4")
    other = Problem("required_input_missing", "x", node_id="4")
    prompt = {"4": {"class_type": "Film", "_meta": {"title": "Film", "aux_id": "me/films"}}}
    assert [found.message for found in with_packs([problem, other], prompt)] == [
        "no node class 'Film' is installed; it is of the pack 'me/films'",
        "x",
    ]
    assert with_packs([problem], {"4": {"class_type": "Film", "_meta": "odd"}}) == [problem]


def test_what_a_node_says_of_its_pack_is_queued_with_it():
    said = {"cnr_id": "kjnodes", "aux_id": "kijai/KJNodes", "ver": "v1.2.3", "other": 1}
    made = convert(workflow(node(4, "Load", properties=said), links={}), CLASSES)["4"]
    assert made["_meta"] == {"title": "Load Model", "cnr_id": "kjnodes", "aux_id": "kijai/KJNodes", "ver": "1.2.3"}
