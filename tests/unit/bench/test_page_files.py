from __future__ import annotations

from bench.page_files import differences


def test_prompts_differ_in_nodes_classes_and_inputs_and_not_in_titles() -> None:
    one = {"class_type": "A", "inputs": {"x": 1, "y": ["2", 0]}, "_meta": {"title": "one"}}
    assert list(differences({"1": one}, {"1": {**one, "_meta": {"title": "other"}}})) == []
    assert list(differences({"1": one, "2": one}, {"1": {**one, "inputs": {"x": 1.5}}, "3": one})) == [
        "1 A.x: 1 and not 1.5",
        "1 A.y: ['2', 0] and not 'nothing'",
        "2: A and not None",
        "3: None and not A",
    ]
