"""`serve-app adopt` with a folder like a ComfyUI's: what it says of models, packs and workflows, and what it writes."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from textwrap import dedent
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import load_file

from serve_app.cli.adopting.places import convert
from serve_app.config import load
from serve_app.errors import ModelFileError
from serve_app.store.models.catalog import Catalog
from serve_app.store.models.extra_paths import directories_with, read_extra_paths
from tests.unit.models.sample import write_sample_checkpoint

PACK = """
    class {name}:
        RETURN_TYPES = ("INT",)
        FUNCTION = "go"
        @classmethod
        def INPUT_TYPES(cls):
            return {{"required": {{"x": ("INT",)}}}}
        def go(self, x):
            return (x,)
    NODE_CLASS_MAPPINGS = {{"{name}": {name}}}
"""


class RunsCode:
    def __reduce__(self) -> tuple[Any, ...]:
        return print, ("this ran",)


@pytest.fixture
def comfyui(tmp_path: Path) -> Path:
    """A ComfyUI's folder with models in two places, packs, and saved workflows."""
    folder = tmp_path / "ComfyUI"
    for below in ("models/checkpoints", "custom_nodes", "user/default/workflows", "venv/bin"):
        (folder / below).mkdir(parents=True)
    (folder / "main.py").touch()
    (folder / "venv/bin/python").touch()
    (folder / "extra_model_paths.yaml").write_text(f"disk:\n  base_path: {tmp_path}/disk\n  loras: loras\n")
    (tmp_path / "disk/loras").mkdir(parents=True)
    torch.save({"state_dict": {"a.lora_up.weight": torch.ones(2)}}, tmp_path / "disk/loras/old.pt")
    torch.save({"weight": RunsCode()}, folder / "models/checkpoints/evil.ckpt")
    write_sample_checkpoint(folder / "models/checkpoints/sd15.safetensors")
    (folder / "custom_nodes/good.py").write_text(dedent(PACK.format(name="Good")))
    (folder / "custom_nodes/broken.py").write_text("import a_module_that_is_nowhere")
    saved = {"native": ["KSampler", "Good", "Note"], "videos": ["KSampler", "EmptyLatentHunyuan3Dv2"]}
    for name, types in saved.items():
        workflow = {"nodes": [{"id": number, "type": each} for number, each in enumerate(types)]}
        (folder / f"user/default/workflows/{name}.json").write_text(json.dumps(workflow))
    return folder


def adopted(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    line = [sys.executable, "-m", "serve_app.cli", "adopt", str(folder), "-o", "c.yaml", *arguments]
    return subprocess.run(line, cwd=folder.parent, capture_output=True, text=True, timeout=120, check=False)


def test_what_runs_here_in_the_pool_and_nowhere_is_said_and_the_configuration_written(comfyui: Path):
    done = adopted(comfyui, "--json", "--convert")
    found = {each["name"]: each for each in json.loads(done.stdout)["found"]}
    assert {name: each["place"] for name, each in found.items()} == {
        "checkpoints/sd15.safetensors": "here",
        "checkpoints/evil.ckpt": "pool",
        "loras/old.safetensors": "here",
        "good": "here",
        "broken": "pool",
        "user/default/workflows/native.json": "here",
        "user/default/workflows/videos.json": "pool",
    }
    assert "EmptyLatentHunyuan3Dv2" in found["user/default/workflows/videos.json"]["why"]
    assert "'evil.ckpt' holds more than tensors" in done.stderr
    assert "this ran" not in done.stdout
    written = load(comfyui.parent / "c.yaml")
    assert written.custom_nodes_dir == comfyui / "custom_nodes"
    assert [pool.name for pool in written.pools] == ["gpu", "comfyui"]
    extra = directories_with(path for file in written.extra_model_paths for path in read_extra_paths(file))
    assert Catalog(written.models_dir, extra).names("loras") == ["old.safetensors"]
    assert not list(comfyui.rglob("*.safetensors"))[1:]


def test_without_a_python_there_is_no_pool_and_nothing_is_overwritten(comfyui: Path):
    (comfyui / "venv/bin/python").unlink()
    done = adopted(comfyui)
    assert "workflows: 1 run here, 1 run nowhere" in done.stdout
    assert "with --python FILE what runs nowhere runs in a pool that is ComfyUI" in done.stdout
    [application] = yaml.safe_load((comfyui.parent / "c.yaml").read_text())["applications"]
    assert [pool["name"] for pool in application["args"]["pools"]] == ["gpu"]
    again = adopted(comfyui)
    assert (again.returncode, "c.yaml is there already" in again.stderr) == (1, True)


def test_a_folder_that_is_no_comfyui_is_refused(tmp_path: Path):
    (tmp_path / "empty").mkdir()
    assert "is no ComfyUI: it has no main.py" in adopted(tmp_path / "empty").stderr


def test_a_pickle_of_tensors_becomes_a_file_of_the_same_tensors_though_they_share_memory(tmp_path: Path):
    shared = torch.arange(6.0)
    torch.save({"a": shared, "b": shared.view(2, 3).T, "step": 3}, tmp_path / "old.ckpt")
    convert(tmp_path / "old.ckpt", tmp_path / "new.safetensors")
    made = load_file(tmp_path / "new.safetensors")
    assert made.keys() == {"a", "b"}
    assert torch.equal(made["b"], shared.view(2, 3).T)
    torch.save([shared], tmp_path / "list.ckpt")
    with pytest.raises(ModelFileError, match="holds no tensors by name"):
        convert(tmp_path / "list.ckpt", tmp_path / "none.safetensors")
