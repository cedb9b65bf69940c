"""How the problems of a prompt are worded as ComfyUI words them."""

from __future__ import annotations

import pytest

from serve_app.api.comfy.jobs.node_errors import LISTED, NodeErrors
from serve_app.graph.parse import parse
from serve_app.graph.spec import Input, NodeSpec
from serve_app.graph.validate import validate


@pytest.mark.parametrize("count", [LISTED, LISTED + 1])
@pytest.mark.parametrize("options", [{}, {"multiselect": False}], ids=["V1", "V3"])
def test_a_choice_of_either_generation_repeats_a_short_list_and_counts_a_long_one(options, count):
    choices = tuple(f"c{number}" for number in range(count))
    picked = Input("mode", "COMBO", choices=choices, options=options)
    specs = {"Pick": NodeSpec("Pick", (picked,), (), (), (), output_node=True)}
    prompt = {"1": {"class_type": "Pick", "inputs": {"mode": "x"}}}
    problems = validate(parse(prompt), specs, lambda folder: ()).problems
    [error] = NodeErrors(prompt, problems, specs, {}).by_node()["1"]["errors"]
    allowed = [*choices] if count <= LISTED else f"(list of length {count})"
    assert (error["type"], error["details"]) == ("value_not_in_list", f"mode: 'x' not in {allowed}")
