from __future__ import annotations

from datetime import datetime

import pytest

from serve_app.graph.saved.convert import convert
from tests.unit.graph.page_workflows import CLASSES, node, subgraph, workflow

SAVES = {"input": {"required": {"filename_prefix": ["STRING"]}}}
NOW = datetime(2026, 3, 4, 15, 6, 7)


@pytest.mark.parametrize(
    ("prefix", "written"),
    [
        ("%date:yyyy-MM-dd%/x", "2026-03-04/x"),
        ("%date:d.M.yy hh:mm:ss%", "4.3.26 15:06:07"),
        ("%Sample.steps%", "30"),
        ("%My sampler.note%", "a_b"),
        ("%value.seed%", "8"),
        ("%Inside.strength%", "0.5"),
        ("%Sample.none%%None.x%%width%%year%", "%Sample.none%%None.x%%width%%year%"),
    ],
)
def test_a_name_of_files_has_times_and_values_of_widgets_in_it(prefix, written):
    saved = workflow(
        node(2, "Sample", widgets_values=[5, "fixed", 30, "heun", "a/b"], title="My sampler"),
        node(4, "PrimitiveNode", title="value", widgets_values=[8]),
        node(3, "s"),
        node(9, "SaveImage", widgets_values=[prefix]),
        links={},
        definitions={"subgraphs": [subgraph("s", node(5, "Patch", title="Inside", widgets_values=[0.5]), links={})]},
    )
    prompt = convert(saved, {**CLASSES, "SaveImage": SAVES}, now=NOW)
    assert prompt["9"]["inputs"]["filename_prefix"] == written


def test_names_of_other_classes_stay_as_they_are():
    nodes = [
        node(place, kind, widgets_values=["%date:yyyy%%9.x%"]) for place, kind in ((1, "VHS_VideoCombine"), (2, "Own"))
    ]
    prompt = convert(workflow(*nodes, links={}), {"VHS_VideoCombine": SAVES, "Own": SAVES}, now=NOW)
    assert [made["inputs"]["filename_prefix"] for made in prompt.values()] == ["2026%9.x%", "%date:yyyy%%9.x%"]
