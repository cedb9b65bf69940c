"""The sample workflows that come with the package."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from serve_app.cli import examples, main
from serve_app.graph.parse import parse
from serve_app.graph.validate import validate
from serve_app.models.shipped import SHIPPED
from serve_app.nodes.registry import specs
from serve_app.store.models.catalog import Catalog


@pytest.mark.parametrize("name", examples.names())
def test_every_example_is_valid_with_the_models_that_come_with_the_package(name: str):
    validated = validate(parse(examples.read(name)), specs(), Catalog(SHIPPED).choices)
    assert (validated.problems, validated.outputs) == ((), ("8",))


def test_examples_are_listed_printed_and_written(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    assert main(["examples", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["embedding"] == "embedding:flag"
    assert main(["examples", "lora"]) == 0
    assert json.loads(capsys.readouterr().out)["9"]["class_type"] == "LoraLoader"
    assert main(["examples", "--out", str(tmp_path)]) == 0
    assert len(list(tmp_path.glob("*.json"))) == len(examples.names())
    assert main(["examples", "loar"]) == 1
    assert "did you mean 'lora'" in capsys.readouterr().err
