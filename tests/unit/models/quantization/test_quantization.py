"""Weights of eight bits: what a file's tensors and metadata say of them, that they stay so, and what they come to."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from serve_app.errors import ModelFileError
from serve_app.models.families.family import BackboneFamily, Rows
from serve_app.models.files.checkpoint import Checkpoint
from serve_app.models.kernels.packing import move_to, plain
from serve_app.models.lora.forward import with_loras
from serve_app.models.lora.layers import LoraSet, parameters
from serve_app.models.lora.layouts import read
from serve_app.models.quantization.block_scales import Mxfp8Weight, Nvfp4Weight
from serve_app.models.quantization.eight_bit import EightBitWeight
from serve_app.models.quantization.ggml_blocks import TYPES, BlockWeight
from serve_app.models.quantization.quantized_linear import QuantizedLinear, QuantizedWeight
from serve_app.models.weights.weights import Weights
from serve_app.recipe.recipe import Recipe
from serve_app.recipe.training import Discrete
from serve_app.sampling.forward import Canvas
from serve_app.store.models.catalog import Catalog
from tests.parity.dit_cases import POOLED_WIDTH, TEXT_WIDTH, noise, weights
from tests.parity.figures import GOLDEN, Figures

CPU = torch.device("cpu")
KEYS = json.loads((GOLDEN / "dit_keys.json").read_text())["flux"]
FIGURES = Figures("quantized")
FUSED, PLAIN, WIDE = "double_blocks.0.img_attn.qkv", "single_blocks.1.linear2", "txt_in"
GROUP = 16


@pytest.mark.parametrize(
    ("name", "dtype", "group"),
    [
        ("float8_e4m3fn", torch.float8_e4m3fn, 0),
        ("int8", torch.int8, 0),
        ("int8_rows", torch.int8, 0),
        ("int8_convrot_64", torch.int8, 64),
    ],
)
def test_a_weight_is_widened_as_comfyui_does(name: str, dtype: torch.dtype, group: int) -> None:
    weight = EightBitWeight(FIGURES[f"{name}|stored"].view(dtype), FIGURES[f"{name}|scale"].reshape(-1, 1), group)
    FIGURES.assert_agrees(weight.wide(), f"{name}|wide", 1e-6)
    x = noise("x", (5, weight.stored.shape[1]))
    layer = QuantizedLinear(weight, None)
    layer.move_to(lambda tensor: tensor, CPU, torch.float32)
    torch.testing.assert_close(layer(x), x @ FIGURES[f"{name}|wide"].T, rtol=1e-5, atol=1e-5)


class Written:
    """A file of the tiny Flux with some layers in eight bits, and the wide weights they stand for."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.wide = weights(KEYS)
        self.tensors = dict(self.wide)
        self.metadata: dict[str, str] = {}

    def store(self, layer: str, settings: Mapping[str, Any], *, rows: bool, old: bool = False, group: int = 0) -> None:
        weight = self.wide[f"{layer}.weight"]
        turned = EightBitWeight(weight.to(torch.float32), None, group).wide() if group else weight
        dtype = torch.int8 if "int8" in settings["format"] else getattr(torch, settings["format"])
        top = 127 if dtype == torch.int8 else 448
        scale = (turned.abs().amax(dim=1, keepdim=True) if rows else turned.abs().amax()) / top
        stored = (turned / scale).round().to(dtype) if dtype == torch.int8 else (turned / scale).to(dtype)
        self.tensors[f"{layer}.weight"] = stored
        self.tensors[f"{layer}.{'scale_weight' if old else 'weight_scale'}"] = scale
        self.wide[f"{layer}.weight"] = EightBitWeight(stored, scale.reshape(-1, 1), group).wide()

    def said(self, layer: str, settings: Mapping[str, Any]) -> None:
        self.tensors[f"{layer}.comfy_quant"] = torch.tensor(list(json.dumps(settings).encode()), dtype=torch.uint8)

    def opened(self) -> Checkpoint:
        save_file({name: t.contiguous() for name, t in self.tensors.items()}, self.path, self.metadata)
        return Checkpoint(self.path)


def old_fp8(made: Written) -> None:
    for layer in (FUSED, PLAIN):
        made.store(layer, {"format": "float8_e4m3fn"}, rows=False, old=True)
    made.tensors["scaled_fp8"] = torch.zeros(2).to(torch.float8_e4m3fn)
    made.tensors[f"{FUSED}.scale_input"] = torch.tensor(1.0)


def fp8_tensors(made: Written) -> None:
    for layer, rows in ((FUSED, True), (PLAIN, False)):
        made.store(layer, {"format": "float8_e4m3fn"}, rows=rows)
        made.said(layer, {"format": "float8_e4m3fn", "full_precision_matrix_mult": True})


def fp8_metadata(made: Written) -> None:
    layers = {layer: {"format": "float8_e4m3fn"} for layer in (FUSED, PLAIN)}
    for layer, settings in layers.items():
        made.store(layer, settings, rows=False)
    made.metadata["_quantization_metadata"] = json.dumps({"format_version": "1.0", "layers": layers})


def int8_convrot(made: Written) -> None:
    settings = {"format": "int8_tensorwise", "convrot": True, "convrot_groupsize": GROUP}
    made.store(FUSED, settings, rows=True, group=GROUP)
    made.said(FUSED, settings)
    made.store(PLAIN, {"format": "int8_tensorwise"}, rows=False)
    made.said(PLAIN, {"format": "int8_tensorwise"})


def int8_params(made: Written) -> None:
    settings = {"format": "int8_tensorwise", "params": {"convrot": True, "convrot_groupsize": GROUP}}
    for layer in (FUSED, PLAIN):
        made.store(layer, settings, rows=True, group=GROUP)
        made.said(layer, settings)


LAYOUTS = [old_fp8, fp8_tensors, fp8_metadata, int8_convrot, int8_params]


def loaded(file: Checkpoint) -> tuple[BackboneFamily, nn.Module]:
    family, module = file.load("backbone")
    assert isinstance(family, BackboneFamily)
    move_to(module, CPU, torch.float32)
    return family, module


def rows(family: BackboneFamily) -> list[Rows]:
    x = noise("x", (2, 16, 6, 4))
    options = {"pooled_output": noise("pooled", (1, POOLED_WIDTH))}
    inputs = family.inputs(noise("text", (1, 3, TEXT_WIDTH)), options, "positive", Canvas(x, x), CPU, Discrete())
    return [Rows(x, 0.5, torch.full((2,), 0.5), inputs)]


@torch.inference_mode()
@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_file_is_the_network_of_its_widened_weights_and_keeps_eight_bits(tmp_path: Path, layout: Any) -> None:
    made = Written(tmp_path / "eight.safetensors")
    layout(made)
    file = made.opened()
    family, module = loaded(file)
    save_file(made.wide, tmp_path / "wide.safetensors")
    _, wide = loaded(Checkpoint(tmp_path / "wide.safetensors"))
    (answer,), (expected,) = family.forward(module, rows(family)), family.forward(wide, rows(family))
    torch.testing.assert_close(answer, expected, rtol=1e-4, atol=1e-5)
    layers = {name: layer for name, layer in module.named_modules() if isinstance(layer, QuantizedLinear)}
    assert set(layers) == {
        *(f"transformer_blocks.0.attn.to_{kind}" for kind in "qkv"),
        "single_transformer_blocks.1.proj_out",
    }
    for name, layer in layers.items():
        assert isinstance(layer.quantized, EightBitWeight)
        assert layer.quantized.stored.dtype.itemsize == 1
        assert layer.weight.shape == wide.get_submodule(name).weight.shape
        torch.testing.assert_close(plain(layer).weight, plain(wide.get_submodule(name)).weight)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_what_it_takes_is_known_before_it_is_loaded(tmp_path: Path, layout: Any) -> None:
    made = Written(tmp_path / "eight.safetensors")
    layout(made)
    file = made.opened()
    eight = sum(made.tensors[f"{layer}.weight"].numel() for layer in (FUSED, PLAIN))
    every = sum(tensor.numel() for tensor in made.wide.values())
    assert file.nbytes("backbone", dtype=torch.bfloat16) == 2 * every - eight
    assert file.nbytes("backbone", dtype=torch.bfloat16, rounded="float8_e4m3fn") < 1.2 * every


@torch.inference_mode()
@pytest.mark.parametrize("after", [0, 20])
def test_a_lora_changes_the_widened_weight(tmp_path: Path, after: int) -> None:
    made = Written(tmp_path / "eight.safetensors")
    int8_convrot(made)
    family, module = loaded(made.opened())
    out, inside = KEYS[f"{FUSED}.weight"]
    up, down = noise("up", (out, 2)), noise("down", (2, inside)) / inside**0.5
    names = {f"diffusion_model.{FUSED}.lora_up.weight": up, f"diffusion_model.{FUSED}.lora_down.weight": down}
    save_file(names, tmp_path / "lora.safetensors")
    adapters = read(
        Checkpoint(tmp_path / "lora.safetensors"), family.lora_names(parameters(module)), "backbone"
    ).adapters
    loras = LoraSet("lora", module, [(adapters, 0.5)])
    changed = made.wide | {f"{FUSED}.weight": made.wide[f"{FUSED}.weight"] + 0.5 * up @ down}
    save_file(changed, tmp_path / "changed.safetensors")
    _, expected = loaded(Checkpoint(tmp_path / "changed.safetensors"))
    for _ in range(after + 1):
        # Once it has had enough forwards to itself, it is merged.
        with with_loras([(2, loras)]):
            (answer,) = family.forward(module, rows(family))
    torch.testing.assert_close(answer, family.forward(expected, rows(family))[0], rtol=1e-4, atol=2e-5)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (
            {"format": "convrot_w4a4"},
            r"'a\.safetensors' has weights in convrot_w4a4 \('txt_in\.weight'\); read are",
        ),
        ({"format": "nvfp4"}, r"has weights in nvfp4 without a scale \('txt_in\.weight'\); read are float8_e4m3fn"),
        ({"format": "int8_tensorwise"}, "has weights in int8_tensorwise without a scale"),
        ({"format": "int8_tensorwise", "convrot": True, "convrot_groupsize": 32}, "rotates groups of 32 inputs"),
    ],
)
def test_what_is_not_read_is_refused_by_name(tmp_path: Path, settings: dict[str, Any], message: str) -> None:
    made = Written(tmp_path / "a.safetensors")
    made.tensors[f"{WIDE}.weight"] = made.tensors[f"{WIDE}.weight"].to(torch.int8)
    if "convrot" in settings:
        made.tensors[f"{WIDE}.weight_scale"] = torch.tensor(1.0)
    made.said(WIDE, settings)
    with pytest.raises(ModelFileError, match=message):
        made.opened()


def test_a_weight_that_no_linear_layer_reads_is_widened(tmp_path: Path) -> None:
    made = Written(tmp_path / "a.safetensors")
    norm: Tensor = made.wide["single_blocks.0.norm.key_norm.weight"]
    made.tensors["single_blocks.0.norm.key_norm.weight"] = norm.to(torch.float8_e4m3fn)
    _, module = loaded(made.opened())
    expected = norm.to(torch.float8_e4m3fn).float()
    assert torch.equal(module.get_parameter("single_transformer_blocks.0.attn.norm_k.weight"), expected)


@pytest.mark.parametrize(
    "weight",
    [
        EightBitWeight(torch.randn(70, 64).to(torch.float8_e4m3fn), torch.rand(70, 1)),
        EightBitWeight(torch.randn(70, 64).to(torch.float8_e5m2)),
        Nvfp4Weight(
            torch.randint(0, 256, (70, 32), dtype=torch.uint8),
            torch.rand(70, 4).to(torch.float8_e4m3fn).view(torch.uint8),
            torch.tensor(0.5),
            torch.rand(64),
        ),
        Mxfp8Weight(torch.randn(70, 64).to(torch.float8_e4m3fn), torch.randint(120, 130, (70, 2), dtype=torch.uint8)),
        BlockWeight(torch.randint(0, 255, (70, 2 * TYPES["Q4_0"].nbytes), dtype=torch.uint8), "Q4_0"),
    ],
    ids=lambda weight: type(weight).__name__,
)
def test_a_large_weight_is_widened_some_rows_at_a_time(
    monkeypatch: pytest.MonkeyPatch, weight: QuantizedWeight
) -> None:
    whole = weight.widened(torch.bfloat16)
    monkeypatch.setattr("serve_app.models.quantization.quantized_linear.AT_ONCE", 16 * 64)
    by_rows = weight.widened(torch.bfloat16)
    assert by_rows.dtype == torch.bfloat16
    torch.testing.assert_close(by_rows, whole, rtol=0, atol=0, equal_nan=True)


@pytest.mark.parametrize("scales", [0, 1, 48])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_inputs_in_eight_bits_times_a_weight_in_eight_bits_are_close_to_the_wide_product(
    scales: int, dtype: torch.dtype
) -> None:
    stored, x = noise("stored", (48, 32)).to(torch.float8_e4m3fn), noise("x", (3, 5, 32)).to(dtype)
    scale = None if not scales else torch.linspace(0.5, 2, scales).reshape(-1, 1)
    layer = QuantizedLinear(EightBitWeight(stored, scale), torch.nn.Parameter(noise("bias", (48,)).to(dtype)))
    with torch.no_grad():
        wide = layer(x)
        layer.in_eight_bits = True
        narrow = layer(x)
    assert narrow.dtype == dtype
    assert narrow.shape == (3, 5, 48)
    assert 1e-4 < float((narrow - wide).norm() / wide.norm()) < 0.04


@pytest.mark.parametrize(
    "stored", [noise("odd", (48, 24)).to(torch.float8_e4m3fn), noise("other", (48, 32)).to(torch.float8_e5m2)]
)
def test_what_no_device_multiplies_in_eight_bits_is_widened(stored: torch.Tensor) -> None:
    layer = QuantizedLinear(EightBitWeight(stored), None)
    x = noise("x", (3, stored.shape[1]))
    wide = layer(x)
    layer.in_eight_bits = True
    assert torch.equal(layer(x), wide)


def plain_fp8(made: Written) -> None:
    for layer in (FUSED, PLAIN):
        made.tensors[f"{layer}.weight"] = made.wide[f"{layer}.weight"].to(torch.float8_e4m3fn)


def old_fp8_to_multiply(made: Written) -> None:
    old_fp8(made)
    made.tensors["scaled_fp8"] = torch.zeros(0).to(torch.float8_e4m3fn)


@pytest.mark.parametrize(
    ("make", "by_default", "asked_for"),
    [
        (fp8_metadata, True, True),
        (old_fp8_to_multiply, True, True),
        (fp8_tensors, False, False),
        (old_fp8, False, False),
        (plain_fp8, False, True),
        (int8_params, False, False),
    ],
    ids=lambda value: getattr(value, "__name__", None),
)
def test_layers_of_a_backbone_multiply_in_eight_bits_as_their_file_and_the_pool_say(
    tmp_path: Path, make: Any, by_default: bool, asked_for: bool
) -> None:
    (tmp_path / "diffusion_models").mkdir()
    make(made := Written(tmp_path / "diffusion_models" / "a.safetensors"))
    made.opened()
    for fp8_matmul, expected in ((None, by_default), (True, asked_for), (False, False)):
        weights = Weights(
            Catalog(tmp_path), CPU, dtype="auto", vae_dtype="auto", budget_bytes=10**9, fp8_matmul=fp8_matmul
        )
        network = weights.backbone(Recipe("backbone", "diffusion_models", "a.safetensors")).network.module
        kept = [layer for layer in network.modules() if isinstance(layer, QuantizedLinear)]
        assert kept
        assert {layer.in_eight_bits and layer.quantized.may_multiply is not False for layer in kept} == {expected}


@pytest.mark.parametrize("scales", [1, 70])
@pytest.mark.parametrize("bias", [None, noise("bias", (70,))])
def test_the_product_is_scaled_as_the_weight_would_be(scales: int, bias: Tensor | None) -> None:
    scale = torch.linspace(0.001, 0.002, scales).reshape(-1, 1)
    weight = EightBitWeight((noise("stored", (70, 64)) * 100).to(torch.float8_e4m3fn), scale)
    sent = weight.sent(lambda tensor: tensor)
    assert sent.largest == pytest.approx(float(scale.max()))
    # Halves have no room for the sum of the stored numbers, before the scale.
    for dtype, near in ((torch.float32, 1e-5), (torch.float16, 1e-2)):
        x, added = (noise("x", (2, 3, 64)) * 500).to(dtype), None if bias is None else bias.to(dtype)
        torch.testing.assert_close(sent.product(x, added), weight.product(x, added), rtol=near, atol=near * 50)
        assert sent.product(x, added).isfinite().all()


@pytest.mark.parametrize("fused", [False, True])
def test_inputs_are_rounded_by_the_files_scale(fused: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    if fused:
        pytest.importorskip("comfy_kitchen")
        monkeypatch.setattr("serve_app.models.kernels.comfy_kitchen.DEVICES", {"cpu"})
    stored = noise("stored", (48, 32)).to(torch.float8_e4m3fn)
    weight = EightBitWeight(stored, torch.tensor([[0.5]]), inputs=torch.tensor(4.0), may=True)
    x = noise("x", (5, 32)).bfloat16() * 1000
    rounded = (x.float() / 4).clamp(-448, 448).to(torch.float8_e4m3fn).float() * 4
    expected = rounded @ stored.float().T * 0.5
    torch.testing.assert_close(weight.multiplied(x, None).float(), expected, rtol=1e-2, atol=1.0)


@pytest.mark.parametrize("multiplies", [True, False])
def test_a_merged_layer_multiplies_as_the_one_without_a_lora_does(multiplies: bool) -> None:
    stored = noise("stored", (48, 32)).to(torch.float8_e4m3fn)
    layer = QuantizedLinear(EightBitWeight(stored, torch.tensor([[0.5]]), inputs=torch.tensor(1.0), may=True), None)
    layer.in_eight_bits = multiplies
    merged = layer.holding(layer.quantized.wide() + 1)
    assert (merged.in_eight_bits, merged.quantized.may_multiply) == (multiplies, True)
