"""Each kind of kept weight in a whole replica on a card that only claims to be one: loads, draws by graphs, saves."""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from serve_app.models.quantization.eight_bit import EightBitWeight
from serve_app.models.quantization.ggml_blocks import TYPES
from serve_app.nodes.registry import specs
from tests.templates import tiny
from tests.unit.models.files.test_gguf import HALVES
from tests.unit.models.quantization.test_block_scales import tiled
from tests.unit.replica.test_card_families import Files, drawing, trouble
from tests.unit.replica.test_card_replicas import GPU, a_card, replicas

WIDTH = 256
"""As many numbers as the largest blocks have."""
FLUX = replace(tiny.FLUX, width=WIDTH, heads=2)
LOADED_AS = ("fp8_e4m3fn", "fp8_e4m3fn_fast", "fp8_e5m2")
GROUP = 64


def plain(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in tensors.items()}


def layers(tensors: Mapping[str, Tensor]) -> list[str]:
    """Return the linear layers of the blocks, without ".weight"."""
    found = (name for name, tensor in tensors.items() if "blocks." in name and tensor.ndim == 2)
    return [name.removesuffix(".weight") for name in found]


def stored(kind: str, wide: Tensor) -> dict[str, Any]:
    """Return what a file has of a layer in a format of ComfyUI's: its tensors, and its settings as comfy_quant."""
    out, inside = wide.shape
    scale, draw = wide.abs().amax(), torch.Generator().manual_seed(inside)
    match kind:
        case "float8_e4m3fn":
            made = {"weight": (wide / scale * 448).to(torch.float8_e4m3fn), "weight_scale": scale / 448}
        case "int8_tensorwise":
            made = {"weight": (wide / scale * 127).round().to(torch.int8), "weight_scale": scale / 127}
        case "convrot":
            turned = EightBitWeight(wide, None, GROUP).wide()
            rows = turned.abs().amax(dim=1, keepdim=True) / 127
            made = {"weight": (turned / rows).round().to(torch.int8), "weight_scale": rows}
        case "nvfp4":
            codes = torch.randint(0, 256, (out, inside // 2), generator=draw, dtype=torch.uint8)
            scales = torch.full((out, inside // 16), 1.0).to(torch.float8_e4m3fn)
            made = {"weight": codes, "weight_scale": tiled(scales.view(torch.uint8)), "weight_scale_2": scale / 6}
        case "mxfp8":
            exponents = torch.full((out, inside // 32), 127, dtype=torch.uint8)
            made = {"weight": wide.to(torch.float8_e4m3fn), "weight_scale": tiled(exponents)}
    settings = {"format": "int8_tensorwise", "convrot": True, "convrot_groupsize": GROUP}
    settings = settings if kind == "convrot" else {"format": kind}
    return made | {"comfy_quant": torch.tensor(list(json.dumps(settings).encode()), dtype=torch.uint8)}


FORMATS = ("float8_e4m3fn", "int8_tensorwise", "convrot", "nvfp4", "mxfp8")


def write_safetensors(path: Path, kind: str, tensors: Mapping[str, Tensor]) -> None:
    made = plain(tensors)
    for layer in layers(tensors):
        made |= {f"{layer}.{name}": tensor for name, tensor in stored(kind, tensors[f"{layer}.weight"]).items()}
    save_file(made, path)


def write_gguf(path: Path, kind: str, tensors: Mapping[str, Tensor]) -> None:
    """Write a file whose blocks have random bytes and scales of a hundredth."""
    writer, of = gguf.GGUFWriter(path, "flux"), gguf.GGMLQuantizationType[kind]
    blocks_of, known = {f"{layer}.weight" for layer in layers(tensors)}, TYPES[kind]
    draw = np.random.default_rng(0)
    for name, tensor in tensors.items():
        if name not in blocks_of:
            writer.add_tensor(name, tensor.float().numpy())
            continue
        count = tensor.shape[1] // known.size
        blocks = draw.integers(0, 256, (len(tensor), count, known.nbytes), dtype=np.uint8)
        for at in HALVES.get(kind, (0,)):
            blocks[..., at : at + 2] = np.array([0.01], np.float16).view(np.uint8)
        writer.add_tensor(name, blocks.reshape(len(tensor), -1), raw_dtype=of)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def prompts(models: Path, kinds: Collection[str]) -> dict[str, dict[str, Any]]:
    """Write a file of each kind, and return the workflow that draws with it."""
    usual = drawing(Files("flux1", "flux", ("clip_l", "t5xxl")))
    tiny.write(models, usual, specs())
    folder, wide = models / "unet", tiny.network(FLUX)
    save_file(plain(wide), folder / "wide.safetensors")

    def loaded(kind: str, **inputs: str) -> dict[str, Any]:
        return usual | {"7": {"class_type": kind, "inputs": inputs}}

    made = {
        name: loaded("UNETLoader", unet_name="wide.safetensors", weight_dtype=name)
        for name in LOADED_AS
        if name in kinds
    }
    for kind in set(FORMATS) & set(kinds):
        write_safetensors(folder / f"{kind}.safetensors", kind, wide)
        made[kind] = loaded("UNETLoader", unet_name=f"{kind}.safetensors", weight_dtype="default")
    for kind in set(TYPES) & set(kinds):
        write_gguf(folder / f"{kind}.gguf", kind, wide)
        made[kind] = loaded("UnetLoaderGGUF", unet_name=f"{kind}.gguf")
    return made


FEW = ("fp8_e4m3fn_fast", *FORMATS, "Q4_K", "Q8_0", "IQ4_NL", "IQ4_XS")
EVERY = (*LOADED_AS, *FORMATS, *TYPES)


@pytest.mark.parametrize("kinds", [FEW, pytest.param(EVERY, marks=pytest.mark.long)], ids=["few", "all"])
async def test_every_kind_of_kept_weight_loads_draws_and_saves(tmp_path: Path, kinds: Collection[str]) -> None:
    asked = prompts(tmp_path / "models", kinds)
    assert asked.keys() == set(kinds)
    with a_card() as (card, driver):
        async with replicas(tmp_path, (GPU,)) as running:
            found = {}
            for name, made in asked.items():
                replayed = driver.asked["replay"]
                found[name] = await trouble(running, made)
                models = running.runners["gpu"].models
                assert models is not None
                if driver.asked["replay"] == replayed:
                    found[name] += "no forward was replayed"
        assert {name: said for name, said in found.items() if said} == {}
        assert models.replays.failures == 0
        assert card.order.early == []
