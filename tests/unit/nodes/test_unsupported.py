"""What workflows of ComfyUI may ask for: a class, or the reason why there is none."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from serve_app.graph.parse import parse
from serve_app.graph.saved.page_nodes import PAGE_ONLY
from serve_app.graph.validate import validate
from serve_app.nodes.listing import listing
from serve_app.nodes.registry import BUILTIN, specs
from serve_app.nodes.unsupported import NOT_THERE, UNSUPPORTED

# Every class that ComfyUI 0.33.0 has with its extras and API nodes, by tests.parity.make_figures.
COMFYUI = json.loads((Path(__file__).parents[2] / "parity" / "golden" / "node_classes.json").read_text())


def test_every_class_of_comfyui_is_either_there_or_said_to_be_unsupported():
    assert set(COMFYUI) <= BUILTIN.keys() | UNSUPPORTED.keys()
    assert not BUILTIN.keys() & UNSUPPORTED.keys()
    assert set(COMFYUI) >= UNSUPPORTED.keys()


def test_every_class_that_has_a_help_page_is_either_there_or_said_not_to_be():
    docs = pytest.importorskip("comfyui_embedded_docs", reason="the help pages are not installed")
    pages = {path.name for path in (Path(docs.__path__[0]) / "docs").iterdir() if path.is_dir()}
    assert len(pages) > 1000
    assert pages <= BUILTIN.keys() | NOT_THERE.keys() | PAGE_ONLY
    assert not BUILTIN.keys() & NOT_THERE.keys()


def test_the_page_of_nodes_is_what_the_registry_and_the_table_say():
    page = Path(__file__).parents[3] / "docs" / "nodes.md"
    assert page.read_text() == listing(), "python -m serve_app.nodes.listing > docs/nodes.md writes it"


def test_the_error_of_an_unsupported_class_says_why():
    prompt = {"1": {"class_type": "HypernetworkLoader", "inputs": {}}}
    problems = validate(parse(prompt), specs(), lambda folder: [], None, UNSUPPORTED).problems
    assert [p.message for p in problems if p.type == "missing_node_type"] == [
        "node class 'HypernetworkLoader' is not supported: hypernetworks are not supported"
    ]
