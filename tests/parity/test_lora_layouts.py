"""Every LoRA layout against ComfyUI 0.3.64: which layer a name is for, and the merged weight within 1e-5.

golden/lora.npz holds comfy.lora.calculate_weight of what comfy.lora.load_lora reads, for every case of `lora_cases`, on
a weight drawn by the case's name; torch.kron was given contiguous factors, without which it refuses a LoKr with a core.
golden/lora_names.json holds a part of model_lora_keys_unet for the mini15 UNet, and model_lora_keys_clip for encoders
of a few layers.
"""

import json

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from serve_app.models.families import ClipText
from serve_app.models.files.checkpoint import Checkpoint
from serve_app.models.files.layout import reverse
from serve_app.models.lora.adapters import merged
from serve_app.models.lora.layouts import read
from tests.parity.checkpoints import models_dir
from tests.parity.figures import GOLDEN
from tests.parity.lora_cases import STRENGTHS, cases, drawn

FIGURES = np.load(GOLDEN / "lora.npz")
NAMES = json.loads((GOLDEN / "lora_names.json").read_text())
CASES = cases()


@pytest.mark.parametrize("name", CASES)
def test_a_weight_is_merged_as_by_comfyui(tmp_path, name):
    shape, tensors = CASES[name]
    save_file({f"lora_unet_layer.{suffix}": t for suffix, t in tensors.items()}, tmp_path / "lora.safetensors")
    adapters = read(Checkpoint(tmp_path / "lora.safetensors"), {"lora_unet_layer": "layer.weight"}, "backbone").adapters
    weight = drawn(f"{name} weight", *shape)
    for strength in STRENGTHS:
        ours = merged(weight, [(a, strength) for a in adapters.values()])
        theirs = torch.from_numpy(FIGURES[f"{name}|{strength}"])
        assert float((ours - theirs).norm() / theirs.norm()) < 1e-5
        assert (float((theirs - weight).norm()) > 0.01) == (not torch.equal(ours, weight))


def test_names_of_a_backbones_layers_are_those_comfyui_knows():
    file = Checkpoint(models_dir("mini15") / "checkpoints" / "mini15.safetensors")
    family = file.family("backbone")
    ours = family.lora_names(list(family.empty().state_dict()))
    in_file = reverse(family.table())
    wrong = {}
    for name, target in NAMES["unet"].items():
        parameter = ours.get(name)
        file_name = None if parameter is None else f"diffusion_model.{_translated(parameter, in_file)}"
        if file_name != target:
            wrong[name] = (file_name, target)
    assert wrong == {}


@pytest.mark.parametrize("towers", ["clip_l", "clip_h", "clip_g", "clip_l clip_g"])
def test_names_of_text_encoders_layers_are_those_comfyui_knows(towers):
    theirs = NAMES[towers]
    ours = {}
    for index, tower in enumerate(towers.split()):
        start = f"{tower}.transformer."
        inside = {target.removeprefix(start) for target in theirs.values() if target.startswith(start)}
        names = ClipText(1, 64, 64, 77, tower[-1]).lora_names(sorted(inside), alone=index == 0)
        ours |= {name: start + parameter for name, parameter in names.items()}
    assert {name: ours.get(name) for name in theirs} == theirs


def _translated(parameter, in_file):
    prefix = max((p for p in in_file if parameter.startswith(f"{p}.")), key=len)
    return in_file[prefix] + parameter.removeprefix(prefix)
