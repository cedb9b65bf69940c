"""NVFP4 and MXFP8: the numbers of ComfyUI's kernels, files that hold them, and what they take."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from serve_app.errors import ModelFileError
from serve_app.models.files.checkpoint import Checkpoint
from serve_app.models.kernels.packing import plain
from serve_app.models.quantization.block_scales import Mxfp8Weight, Nvfp4Weight, untiled
from serve_app.models.quantization.eight_bit import EightBitWeight
from serve_app.models.quantization.quantized_linear import QuantizedLinear
from tests.parity.dit_cases import noise, weights
from tests.parity.figures import GOLDEN, Figures
from tests.unit.models.quantization.test_quantization import loaded, rows

FIGURES = Figures("quantized")
KEYS = json.loads((GOLDEN / "dit_keys.json").read_text())["flux"]
FUSED, PLAIN = "double_blocks.0.img_attn.qkv", "single_blocks.1.linear2"
BLOCK = {"nvfp4": 16, "mxfp8": 32}


def tiled(scales: Tensor) -> Tensor:
    """Return scales (r,c) as bytes in tiles: that of a tile's row i and column j lies at (i%32)·16 + (i//32)·4 + j."""
    row_count, column_count = scales.shape
    down, across = -(-row_count // 128), -(-column_count // 4)
    flat = torch.zeros(down * across * 512, dtype=torch.uint8)
    for row in range(row_count):
        for column in range(column_count):
            i, j, tile = row % 128, column % 4, row // 128 * across + column // 4
            flat[tile * 512 + i % 32 * 16 + i // 32 * 4 + j] = scales[row, column]
    return flat.view(down * 128, across * 4)


@pytest.mark.parametrize("shape", [(1, 1), (24, 4), (130, 3), (160, 12), (128, 4)])
def test_scales_are_found_in_their_tiles(shape: tuple[int, int]) -> None:
    scales = torch.arange(shape[0] * shape[1]).remainder(251).to(torch.uint8).view(shape)
    assert torch.equal(untiled(tiled(scales), *shape), scales)


@pytest.mark.parametrize("name", BLOCK)
def test_a_weight_is_widened_as_comfyui_does(name: str) -> None:
    stored, wide = FIGURES[f"{name}|stored"], FIGURES[f"{name}|wide"]
    scales = untiled(FIGURES[f"{name}|scale"], wide.shape[0], wide.shape[1] // BLOCK[name])
    if name == "nvfp4":
        weight: Any = Nvfp4Weight(stored, scales, FIGURES[f"{name}|second"])
    else:
        weight = Mxfp8Weight(stored.view(torch.float8_e4m3fn), scales)
    assert weight.shape == wide.shape
    assert torch.equal(weight.wide(), wide)


class Written:
    """A file of the tiny Flux with some layers in a format, and the wide weights that they stand for."""

    def __init__(self, path: Path, format: str) -> None:
        self.path, self.format = path, format
        self.wide = weights(KEYS)
        self.tensors = dict(self.wide)

    def store(self, layer: str, inputs: Tensor | None = None) -> None:
        out, inside = KEYS[f"{layer}.weight"]
        draw = torch.Generator().manual_seed(out)
        blocks = (out, inside // BLOCK[self.format])
        if self.format == "nvfp4":
            codes = torch.randint(0, 256, (out, inside // 2), generator=draw, dtype=torch.uint8)
            scales = (torch.rand(blocks, generator=draw) + 0.5).to(torch.float8_e4m3fn)
            second = torch.tensor(0.02)
            steps = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0)
            table = torch.tensor([*steps, *(-step for step in steps)])
            numbers = torch.stack([table[(codes // 16).long()], table[(codes % 16).long()]], dim=-1).view(out, inside)
            wide = numbers * scales.float().repeat_interleave(16, 1) * second
            stored = {"weight": codes, "weight_scale": tiled(scales.view(torch.uint8)), "weight_scale_2": second}
        else:
            numbers = (torch.randn(out, inside, generator=draw)).to(torch.float8_e4m3fn)
            exponents = torch.randint(120, 126, blocks, generator=draw, dtype=torch.uint8)
            wide = numbers.float() * (2.0 ** (exponents.float() - 127)).repeat_interleave(32, 1)
            stored = {"weight": numbers, "weight_scale": tiled(exponents)}
        if inputs is not None:
            stored["pre_quant_scale"] = inputs
            wide = wide * inputs
        said = json.dumps({"format": self.format}).encode()
        stored["comfy_quant"] = torch.tensor(list(said), dtype=torch.uint8)
        self.tensors |= {f"{layer}.{name}": tensor for name, tensor in stored.items()}
        self.wide[f"{layer}.weight"] = wide

    def opened(self) -> Checkpoint:
        save_file(self.tensors, self.path)
        return Checkpoint(self.path)


@torch.inference_mode()
@pytest.mark.parametrize("format", BLOCK)
def test_a_file_is_the_network_of_its_widened_weights_and_keeps_its_bits(tmp_path: Path, format: str) -> None:
    made = Written(tmp_path / "few.safetensors", format)
    made.store(FUSED)
    made.store(PLAIN, noise("inputs", (KEYS[f"{PLAIN}.weight"][1],)).abs() if format == "nvfp4" else None)
    file = made.opened()
    family, module = loaded(file)
    save_file(made.wide, tmp_path / "wide.safetensors")
    _, wide = loaded(Checkpoint(tmp_path / "wide.safetensors"))
    (answer,), (expected,) = family.forward(module, rows(family)), family.forward(wide, rows(family))
    torch.testing.assert_close(answer, expected, rtol=1e-4, atol=1e-5)
    layers = {name: layer for name, layer in module.named_modules() if isinstance(layer, QuantizedLinear)}
    assert len(layers) == 4
    for name, layer in layers.items():
        torch.testing.assert_close(plain(layer).weight, plain(wide.get_submodule(name)).weight)
    elements = sum(layer.weight.numel() for layer in layers.values())
    few = sum(layer.quantized.nbytes for layer in layers.values())
    assert few == elements * (1 / 2 + 1 / 16 if format == "nvfp4" else 1 + 1 / 32)
    every = sum(tensor.numel() for tensor in made.wide.values())
    assert file.nbytes("backbone", dtype=torch.bfloat16) == 2 * (every - elements) + few
    assert file.nbytes("backbone", dtype=torch.bfloat16, mixed=True) == 2 * (every - elements) + elements


@pytest.mark.parametrize("format", BLOCK)
def test_other_numbers_are_kept_in_eight_bits(tmp_path: Path, format: str) -> None:
    made = Written(tmp_path / "few.safetensors", format)
    made.store(PLAIN)
    weight = made.opened().quantized(f"{PLAIN}.weight")
    assert weight is not None
    other = noise("other", weight.shape)
    again = weight.holding(other)
    assert isinstance(again, EightBitWeight)
    assert float((again.wide() - other).norm() / other.norm()) < 0.03


@pytest.mark.parametrize(
    ("format", "lacking", "message"),
    [
        ("nvfp4", "weight_scale", r"'a\.safetensors' has weights in nvfp4 without a scale \('single_blocks"),
        ("nvfp4", "weight_scale_2", r"has weights in nvfp4 without a scale of its scales"),
        ("mxfp8", "weight_scale", r"has weights in mxfp8 without a scale"),
    ],
)
def test_scales_that_are_not_there_are_named(tmp_path: Path, format: str, lacking: str, message: str) -> None:
    made = Written(tmp_path / "a.safetensors", format)
    made.store(PLAIN)
    del made.tensors[f"{PLAIN}.{lacking}"]
    with pytest.raises(ModelFileError, match=message):
        made.opened()


def test_scales_too_few_are_refused_with_how_many_it_takes(tmp_path: Path) -> None:
    made = Written(tmp_path / "a.safetensors", "nvfp4")
    made.store(PLAIN)
    made.tensors[f"{PLAIN}.weight_scale"] = torch.zeros(3, dtype=torch.uint8)
    with pytest.raises(ModelFileError, match=r"of shape \(64, 320\) in nvfp4 with 3 scales; that takes 2560"):
        made.opened().load("backbone")
