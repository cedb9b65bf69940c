from __future__ import annotations

import pytest

from serve_app.graph.saved.convert import convert
from tests.unit.graph.page_workflows import CLASSES, node, subgraph, workflow


@pytest.mark.parametrize(
    ("last", "saved_last"), [(3, {}), (9, {}), (9, {"last_node_id": 20}), (9, {"state": {"lastNodeId": 20}})]
)
def test_a_node_of_a_subgraph_whose_id_another_graph_has_gets_the_next_one(last, saved_last):
    inner = subgraph(
        "s",
        node(1, "Load"),
        node(5, "Patch", {"model": ("MODEL", 1), "strength": ("FLOAT", 2)}),
        links={1: (1, 0, 5, 0), 2: (-10, 0, 5, 1)},
        inputs=("strength",),
    )
    inner["nodes"][1]["inputs"][1]["widget"] = {"name": "strength"}
    proxies = {"proxyWidgets": [["1", "file"], ["5", "strength"]]}
    host = node(3, "s", widgets_values=["b", 0.25], properties=proxies)
    saved = workflow(node(1, "Load"), node(last, "Load"), links={}, definitions={"subgraphs": [inner]}, **saved_last)
    saved["nodes"] = [*saved["nodes"], host] if last != 3 else [saved["nodes"][0], host]
    prompt = convert(saved, CLASSES)
    new = f"3:{21 if saved_last else last + 1}"
    assert prompt["1"]["inputs"] == {"file": "a"}
    assert prompt[new]["inputs"] == {"file": "b"}
    assert prompt["3:5"]["inputs"] == {"model": [new, 0], "strength": 0.25}
