"""The node classes that a saved workflow needs."""

from __future__ import annotations

import pytest

from serve_app.errors import WorkflowFileError
from serve_app.graph.saved.classes import needed_classes


def test_a_workflow_needs_the_classes_of_its_nodes_that_run_in_subgraphs_too():
    inside = {"id": "a-b", "nodes": [{"type": "KSampler"}], "definitions": {"subgraphs": []}}
    nodes = [{"type": "a-b"}, {"type": "VAEDecode", "mode": 0}, {"type": "Muted", "mode": 2}, {"type": "Note"}]
    page = {"nodes": [*nodes, {"type": "Bypassed", "mode": 4}], "definitions": {"subgraphs": [inside]}}
    assert needed_classes(page) == {"KSampler", "VAEDecode"}
    assert needed_classes({"1": {"class_type": "KSampler"}}) == {"KSampler"}
    with pytest.raises(WorkflowFileError):
        needed_classes([])
