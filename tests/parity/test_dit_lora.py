"""Names of layers in LoRA files of diffusion transformers, against ComfyUI's; and what a LoRA of them does."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from serve_app.models.families.family import BackboneFamily, Rows
from serve_app.models.files.checkpoint import Checkpoint
from serve_app.models.files.layout import places
from serve_app.models.files.parts import find_part
from serve_app.models.files.tensors import Tensors
from serve_app.models.kernels.packing import move_to
from serve_app.models.lora.forward import with_loras
from serve_app.models.lora.layers import LoraSet, parameters
from serve_app.models.lora.layouts import read
from serve_app.recipe.training import Discrete
from serve_app.sampling.forward import Canvas
from tests.parity.dit_cases import CASES, asked, noise, weights
from tests.parity.figures import GOLDEN

CPU = torch.device("cpu")
KEYS = json.loads((GOLDEN / "dit_keys.json").read_text())
NAMES = json.loads((GOLDEN / "dit_lora_names.json").read_text())
FLUX_2 = (".linear_in", ".linear_out", "_linear_in", "_linear_out", "attn.to_out", "attn_to_out", "to_qkv_mlp_proj")
"""What Flux.2's layers are called in diffusers: names that ComfyUI has for Flux.1 too, and that no file of it has."""

FLUX_1 = ("_net_", "time_text_embed", "single_transformer_blocks_", "linear1_qkv")
"""The converse: parts of what Flux.1's layers are called, and that no file of Flux.2 has."""


def known(name: str, weight: str, ours: dict[str, object], net: str) -> bool:
    """Whether a name is one that files have, of a parameter that a layer has."""
    part_of_layer = weight.endswith((".weight", ".bias", ".scale"))
    of_flux_1 = net == "flux2" and any(part in name.replace(".", "_") for part in FLUX_1)
    other_family = (of_flux_1 or name.endswith(FLUX_2)) and name not in ours
    return part_of_layer and not other_family and "controlnet" not in name and "pos_embed" not in weight


def family_of(net: str) -> BackboneFamily:
    tensors = Tensors({name: tuple(shape) for name, shape in KEYS[net].items()}, "'a.safetensors'")
    family = find_part("backbone", [tensors]).family
    assert isinstance(family, BackboneFamily)
    return family


@pytest.mark.parametrize("net", NAMES)
def test_every_name_that_comfyui_knows_is_known_for_the_same_weight(net: str) -> None:
    family = family_of(net)
    ours = family.lora_names(parameters(family.empty()))
    table = family.table()
    for name, target in NAMES[net].items():
        weight, *rows = (target,) if isinstance(target, str) else target
        theirs = weight.removeprefix("diffusion_model.")
        if not known(name, theirs, dict(ours), net) or theirs not in KEYS[net]:
            continue
        assert name in ours, name
        found = ours[name]
        wanted = places(theirs, table)
        if rows:
            first, end = int(rows[0]), int(rows[0]) + int(rows[1])
            wanted = tuple(p for p in wanted if p.rows is not None and first <= p.rows[0] and p.rows[1] <= end)
            assert [p.name for p in wanted] == ([p.name for p in found] if isinstance(found, tuple) else [found]), name
        else:
            # A file with diffusers' names has the halves of the last modulation as the network has them.
            assert found == wanted or [place.name for place in wanted] == [found], name


def loaded(path: Path, tensors: dict[str, Tensor]) -> tuple[BackboneFamily, torch.nn.Module]:
    save_file(tensors, path)
    family, module = Checkpoint(path).load("backbone")
    assert isinstance(family, BackboneFamily)
    move_to(module, CPU, torch.float32)
    return family, module


LAYERS = {
    "zimage": [
        "layers.0.attention.qkv",
        "layers.1.feed_forward.w1",
        "x_embedder",
        "noise_refiner.0.adaLN_modulation.0",
    ],
    "sd35": ["joint_blocks.1.context_block.adaLN_modulation.1", "joint_blocks.0.x_block.attn2.qkv", "context_embedder"],
    "qwen": [
        *("transformer_blocks.0.attn.to_out.0", "transformer_blocks.1.attn.add_q_proj", "img_in", "txt_in"),
        *("transformer_blocks.0.img_mod.1", "transformer_blocks.1.txt_mlp.net.0.proj", "norm_out.linear"),
    ],
    "krea2": ["blocks.0.attn.wq", "blocks.1.mlp.up", "first", "tproj.1", "txtfusion.refiner_blocks.0.attn.wo"],
    "auraflow": [
        *("double_layers.0.attn.w1q", "double_layers.0.modX.1", "single_layers.0.mlp.c_fc2", "init_x_linear"),
        *("single_layers.0.attn.w1o", "modF.1", "cond_seq_linear"),
    ],
    "flux2": [
        *("double_blocks.0.img_attn.qkv", "double_blocks.1.txt_mlp.0", "single_blocks.0.linear1", "img_in", "txt_in"),
        *("single_blocks.1.linear2", "final_layer.adaLN_modulation.1", "double_stream_modulation_txt.lin"),
        *("single_stream_modulation.lin", "time_in.in_layer"),
    ],
    "flux": [
        *("double_blocks.0.img_attn.qkv", "double_blocks.1.txt_mlp.0", "single_blocks.0.linear1"),
        *("single_blocks.1.linear2", "final_layer.adaLN_modulation.1", "img_in", "txt_in", "vector_in.in_layer"),
    ],
}


def lora(net: str, style: str) -> dict[str, Tensor]:
    """Return a file with a change of each layer of `LAYERS`, of rank 3 at alpha 6."""
    tensors: dict[str, Tensor] = {}
    for layer in LAYERS[net]:
        out, inside = KEYS[net][f"{layer}.weight"]
        name = style.format(layer.replace(".", "_") if style.endswith("_{}") else layer)
        tensors[f"{name}.lora_up.weight"] = noise(f"{layer} up", (out, 3)) / 3
        tensors[f"{name}.lora_down.weight"] = noise(f"{layer} down", (3, inside)) / inside**0.5
        tensors[f"{name}.alpha"] = torch.tensor(6.0)
    return tensors


@torch.inference_mode()
@pytest.mark.parametrize("style", ["lora_unet_{}", "diffusion_model.{}"])
@pytest.mark.parametrize("net", LAYERS)
def test_a_lora_of_fused_layers_is_what_merging_it_into_the_file_is(tmp_path: Path, net: str, style: str) -> None:
    plain = weights(KEYS[net])
    changed = dict(plain)
    tensors = lora(net, style)
    for layer in LAYERS[net]:
        name = style.format(layer.replace(".", "_") if style.endswith("_{}") else layer)
        product = tensors[f"{name}.lora_up.weight"] @ tensors[f"{name}.lora_down.weight"]
        changed[f"{layer}.weight"] = plain[f"{layer}.weight"] + 0.7 * 2 * product
    family, module = loaded(tmp_path / "plain.safetensors", plain)
    _, merged = loaded(tmp_path / "merged.safetensors", changed)
    save_file(tensors, tmp_path / "lora.safetensors")
    adapters = read(
        Checkpoint(tmp_path / "lora.safetensors"), family.lora_names(parameters(module)), "backbone"
    ).adapters
    loras = LoraSet("lora", module, [(adapters, 0.7)])
    rows = asked_rows(family, net)
    with with_loras([(1, None), (1, loras)]):
        alone, with_lora = family.forward(module, rows)
    torch.testing.assert_close(alone, family.forward(module, rows[:1])[0], rtol=1e-4, atol=1e-5)
    expected = family.forward(merged, rows[1:])[0]
    assert float((expected - family.forward(module, rows[1:])[0]).norm() / expected.norm()) > 0.05
    torch.testing.assert_close(with_lora, expected, rtol=1e-4, atol=2e-5)


def asked_rows(family: BackboneFamily, net: str) -> list[Rows]:
    a = asked(next(case for case in CASES if case.net == net))
    rows = []
    for i in (0, 1):
        x = a.x[i : i + 1]
        inputs = family.inputs(
            a.text[i : i + 1], {"pooled_output": a.pooled[i : i + 1]}, "positive", Canvas(x, x), CPU, Discrete()
        )
        rows.append(Rows(x, 0.5, a.sigma[i : i + 1], inputs))
    return rows
