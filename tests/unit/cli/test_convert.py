from __future__ import annotations

import json
from importlib.resources import files
from pathlib import Path

import pytest

from serve_app.cli import main
from tests.unit.cli.conftest import makes


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    """ComfyUI's default workflow as the web page saves it."""
    path = tmp_path / "saved.json"
    data = json.loads(files("serve_app.api.comfy.page").joinpath("first_workflow.json").read_text())
    next(node for node in data["nodes"] if node["id"] == 4)["widgets_values"] = ["sd15.safetensors"]
    path.write_text(json.dumps(data))
    return path


def test_a_saved_workflow_is_converted_by_the_servers_classes_or_the_built_in_ones(url, saved, tmp_path, capsys):
    asked, alone = tmp_path / "asked.json", tmp_path / "alone.json"
    assert main(["convert", str(saved), "--server", url, "-o", str(asked)]) == 0
    assert main(["convert", str(saved), "--offline", "-o", str(alone)]) == 0
    assert main(["convert", str(saved), "--offline"]) == 0
    prompt = json.loads(alone.read_text())
    assert prompt["4"]["inputs"] == {"ckpt_name": "sd15.safetensors"}
    assert json.loads(asked.read_text()).keys() == prompt.keys()
    assert json.loads(capsys.readouterr().out) == prompt


def test_a_workflow_in_api_format_is_written_as_it_is(workflow, tmp_path):
    out = tmp_path / "out.json"
    assert main(["convert", str(workflow), "--offline", "-o", str(out)]) == 0
    assert json.loads(out.read_text()) == json.loads(workflow.read_text())


def test_a_file_that_cannot_be_written_is_named(saved, tmp_path, capsys):
    assert main(["convert", str(saved), "--offline", "-o", str(tmp_path / "none" / "a.json")]) == 1
    assert f"{tmp_path / 'none' / 'a.json'}: No such file" in capsys.readouterr().err


def test_a_saved_workflow_is_submitted_and_travels_along(url, server, volume, saved, tmp_path):
    server.next_job(makes(volume))
    assert main(["submit", str(saved), "--set", "3.seed=9", "--server", url, "--out", str(tmp_path / "out")]) == 0
    [job] = server.jobs().values()
    assert job.prompt["3"]["inputs"]["seed"] == 9
    assert job.extra_data["extra_pnginfo"]["workflow"] == json.loads(saved.read_text())
