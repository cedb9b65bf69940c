"""GGUF files: their numbers are those of the `gguf` package, their names those of families, and blocks stay blocks."""

from __future__ import annotations

import io
import json
import sys
from collections.abc import Mapping
from pathlib import Path

import gguf
import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from serve_app.errors import ModelFileError
from serve_app.models.families.family import BackboneFamily
from serve_app.models.families.text.t5 import T5Text
from serve_app.models.files.checkpoint import Checkpoint
from serve_app.models.files.gguf_file import GgufFile
from serve_app.models.files.layout import reverse, translate
from serve_app.models.kernels.packing import move_to
from serve_app.models.lora.forward import with_loras
from serve_app.models.lora.layers import LoraSet, parameters
from serve_app.models.lora.layouts import read
from serve_app.models.quantization.ggml_blocks import TYPES, BlockWeight, widened
from serve_app.models.quantization.quantized_linear import QuantizedLinear
from serve_app.nodes.registry import BUILTIN
from serve_app.recipe.recipe import Recipe
from serve_app.recipe.text import LoadedAs
from serve_app.store.models.catalog import Catalog
from serve_app.store.models.check import ModelCheck
from serve_app.store.models.gguf_header import HEADER_BYTES, shapes
from tests.parity.dit_cases import noise, weights
from tests.parity.figures import GOLDEN
from tests.unit.models.quantization.test_quantization import rows
from tests.unit.models.sample import cpu_weights

CPU = torch.device("cpu")
KEYS = json.loads((GOLDEN / "dit_keys.json").read_text())["flux"]
HALVES = {
    "Q2_K": (80, 82),
    "Q3_K": (108,),
    "Q6_K": (208,),
    "Q4_K": (0, 2),
    "Q5_K": (0, 2),
    "Q4_1": (0, 2),
    "Q5_1": (0, 2),
}
"""Where the half-precision numbers of a block lie; the others have one at the beginning."""


def written(path: Path, architecture: str, tensors: Mapping[str, Tensor], kinds: Mapping[str, str]) -> Path:
    """Write a file whose tensors are of the kinds given, the others in single precision."""
    writer = gguf.GGUFWriter(path, architecture)
    if architecture == "llama":
        writer.add_head_count(4)
        writer.add_head_count_kv(2)
    for name, tensor in tensors.items():
        kind = gguf.GGMLQuantizationType[kinds.get(name, "F32")]
        writer.add_tensor(name, gguf.quants.quantize(tensor.numpy(), kind), raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def numbers(tensor: Tensor, kind: str) -> Tensor:
    """Return what a tensor becomes in blocks."""
    of = gguf.GGMLQuantizationType[kind]
    return torch.from_numpy(gguf.quants.dequantize(gguf.quants.quantize(tensor.numpy(), of), of).reshape(tensor.shape))


@pytest.mark.parametrize("kind", TYPES)
def test_blocks_are_widened_to_the_numbers_of_the_gguf_package(kind: str) -> None:
    known = TYPES[kind]
    draw = np.random.default_rng(0)
    blocks = draw.integers(0, 256, (40, 3 * known.nbytes), dtype=np.uint8)
    for block in range(3):
        for at in HALVES.get(kind, (0,)):
            halves = draw.normal(size=40).astype(np.float16).view(np.uint8).reshape(40, 2)
            blocks[:, block * known.nbytes + at : block * known.nbytes + at + 2] = halves
    theirs = gguf.quants.dequantize(blocks, gguf.GGMLQuantizationType[kind])
    weight = BlockWeight(torch.from_numpy(blocks), kind)
    assert weight.shape == theirs.shape == (40, 3 * known.size)
    assert weight.nbytes == blocks.nbytes
    assert np.array_equal(weight.wide().numpy(), theirs)
    assert np.array_equal(widened(torch.from_numpy(blocks[5]), kind).numpy(), theirs[5])
    size, nbytes = gguf.GGML_QUANT_SIZES[gguf.GGMLQuantizationType[kind]]
    assert (known.size, known.nbytes) == (size, nbytes)


FUSED, PLAIN, HALF, BRAIN = (
    "double_blocks.0.img_attn.qkv.weight",
    "single_blocks.1.linear2.weight",
    "txt_in.weight",
    "img_in.weight",
)
KINDS = {FUSED: "Q8_0", PLAIN: "Q5_1", HALF: "F16", BRAIN: "BF16"}


@pytest.fixture
def catalog(tmp_path: Path) -> Catalog:
    own = weights(KEYS)
    for folder in ("unet", "diffusion_models", "loras", "text_encoders"):
        (tmp_path / folder).mkdir()
    written(tmp_path / "unet" / "flux.gguf", "flux", own, KINDS)
    wide = own | {name: numbers(own[name], kind) for name, kind in KINDS.items()}
    save_file(wide, tmp_path / "diffusion_models" / "wide.safetensors")
    return Catalog(tmp_path)


@torch.inference_mode()
def test_a_backbone_answers_as_its_widened_weights_do_and_keeps_its_blocks(catalog: Catalog) -> None:
    [recipe] = BUILTIN["UnetLoaderGGUF"]().load_unet("flux.gguf")  # type: ignore[attr-defined]
    held, wide = cpu_weights(catalog), cpu_weights(catalog)
    ours, theirs = held.backbone(recipe), wide.backbone(Recipe("backbone", "diffusion_models", "wide.safetensors"))
    family = ours.network.family
    assert isinstance(family, BackboneFamily)
    (answer,) = family.forward(ours.network.module, rows(family))
    (expected,) = family.forward(theirs.network.module, rows(family))
    torch.testing.assert_close(answer, expected, rtol=1e-4, atol=1e-5)
    layers = {name: layer for name, layer in ours.network.module.named_modules() if isinstance(layer, QuantizedLinear)}
    assert set(layers) == {
        *(f"transformer_blocks.0.attn.to_{kind}" for kind in "qkv"),
        "single_transformer_blocks.1.proj_out",
    }
    blocks = sum(layer.quantized.nbytes for layer in layers.values())
    elements = sum(layer.weight.numel() for layer in layers.values())
    assert blocks == sum(np.prod(KEYS[name]) * size for name, size in ((FUSED, 34 / 32), (PLAIN, 24 / 32)))
    assert held.resident_bytes == wide.resident_bytes - 4 * elements + blocks
    assert list(held.needs.of(recipe).nbytes.values()) == [held.resident_bytes]


@torch.inference_mode()
def test_a_lora_lies_beside_blocks(catalog: Catalog, tmp_path: Path) -> None:
    family, module = Checkpoint(catalog.path("unet_gguf", "flux.gguf")).load("backbone")
    _, expected = Checkpoint(catalog.path("diffusion_models", "wide.safetensors")).load("backbone")
    assert isinstance(family, BackboneFamily)
    layer = FUSED.removesuffix(".weight")
    out, inside = KEYS[FUSED]
    up, down = noise("up", (out, 2)), noise("down", (2, inside)) / inside**0.5
    names = {f"diffusion_model.{layer}.lora_up.weight": up, f"diffusion_model.{layer}.lora_down.weight": down}
    save_file(names, tmp_path / "loras" / "a.safetensors")
    answers = []
    for network in (module, expected):
        move_to(network, CPU, torch.float32)
        found = read(
            Checkpoint(tmp_path / "loras" / "a.safetensors"), family.lora_names(parameters(network)), "backbone"
        )
        with with_loras([(2, LoraSet("lora", network, [(found.adapters, 0.5)]))]):
            answers += family.forward(network, rows(family))
    torch.testing.assert_close(answers[0], answers[1], rtol=1e-4, atol=2e-5)


def test_a_tensor_that_was_reshaped_to_fit_blocks_has_its_shape_again(tmp_path: Path) -> None:
    own = noise("convolution", (8, 4, 3, 3))
    kind = gguf.GGMLQuantizationType.Q8_0
    writer = gguf.GGUFWriter(tmp_path / "a.gguf", "sdxl")
    writer.add_array("comfy.gguf.orig_shape.conv.weight", [8, 4, 3, 3])
    writer.add_tensor("conv.weight", gguf.quants.quantize(own.reshape(9, 32).numpy(), kind), raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    file = GgufFile(tmp_path / "a.gguf")
    assert file.shapes == {"conv.weight": (8, 4, 3, 3)}
    assert file.quantized("conv.weight") is None
    assert torch.equal(file.tensor("conv.weight"), numbers(own.reshape(9, 32), "Q8_0").view(8, 4, 3, 3))


T5 = T5Text(layers=2, width=64, hidden_width=96, heads=2, head_width=32, buckets=32, vocabulary=32128)
LLAMA_CPP = {
    "shared": "token_embd",
    "encoder.final_layer_norm": "enc.output_norm",
    "SelfAttention.q": "attn_q",
    "SelfAttention.k": "attn_k",
    "SelfAttention.v": "attn_v",
    "SelfAttention.o": "attn_o",
    "SelfAttention.relative_attention_bias": "attn_rel_b",
    "DenseReluDense.wi_0": "ffn_gate",
    "DenseReluDense.wi_1": "ffn_up",
    "DenseReluDense.wo": "ffn_down",
    "layer.0.layer_norm": "attn_norm",
    "layer.1.layer_norm": "ffn_norm",
}


def test_t5_is_read_by_llama_cpps_names(catalog: Catalog, tmp_path: Path) -> None:
    names = reverse(T5.table())
    own = {translate(n, names) or "": noise(n, t.shape) / 8 for n, t in T5.empty().state_dict().items()}
    renamed: dict[str, str] = {}
    for name in own:
        layer = name.removesuffix(".weight")
        end = next(end for end in LLAMA_CPP if layer.endswith(end))
        number = layer.split(".")[2] if "block" in layer else ""
        renamed[name] = f"enc.blk.{number}.{LLAMA_CPP[end]}.weight" if number else f"{LLAMA_CPP[end]}.weight"
    kinds = {name: "Q8_0" for name, tensor in own.items() if tensor.ndim == 2 and "bias" not in name}
    written(
        tmp_path / "text_encoders" / "t5.gguf",
        "t5encoder",
        {renamed[name]: tensor for name, tensor in own.items()},
        {renamed[name]: kind for name, kind in kinds.items()},
    )
    wide = own | {name: numbers(own[name], kind) for name, kind in kinds.items()}
    save_file(wide, tmp_path / "text_encoders" / "t5.safetensors")
    ours = Recipe("clip", "clip_gguf", "t5.gguf", (LoadedAs("chroma"),))
    theirs = Recipe("clip", "text_encoders", "t5.safetensors", (LoadedAs("chroma"),))
    held = cpu_weights(catalog, dtype="fp32")
    one, other = (held.clip(recipe).encode(["a fox on ice"])[0][0][0] for recipe in (ours, theirs))
    torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("architecture", ["llama", "qwen3"])
def test_language_models_have_their_rows_and_names_again(tmp_path: Path, architecture: str) -> None:
    heads = {"q": 4, "k": 2, "v": 2}
    own = {
        f"model.layers.3.self_attn.{kind}_proj.weight": noise(kind, (8 * count, 32)) for kind, count in heads.items()
    }
    tensors = {}
    for kind, count in heads.items():
        weight = own[f"model.layers.3.self_attn.{kind}_proj.weight"]
        if architecture == "llama" and kind != "v":
            # As llama.cpp's converter orders the rows of each head: halves become pairs.
            weight = weight.reshape(count, 2, 4, 32).transpose(1, 2).reshape(weight.shape).contiguous()
        tensors[f"blk.3.attn_{kind}.weight"] = weight
    beside = {
        "blk.3.attn_q_norm.weight": "model.layers.3.self_attn.q_norm.weight",
        "blk.3.attn_norm.weight": "model.layers.3.input_layernorm.weight",
        "blk.3.ffn_norm.weight": "model.layers.3.post_attention_layernorm.weight",
        "blk.3.ffn_gate.weight": "model.layers.3.mlp.gate_proj.weight",
        "token_embd.weight": "model.embed_tokens.weight",
        "output_norm.weight": "model.norm.weight",
        "output.weight": "lm_head.weight",
    }
    tensors |= {theirs: noise(theirs, (32,)) for theirs in beside}
    kinds = {f"blk.3.attn_{kind}.weight": "Q8_0" for kind in heads}
    file = GgufFile(written(tmp_path / "a.gguf", architecture, tensors, kinds))
    assert file.shapes.keys() == {*own, *beside.values()}
    for name, weight in own.items():
        kept = file.quantized(name)
        assert kept is not None
        assert torch.equal(kept.wide(), numbers(weight, "Q8_0"))
        assert torch.equal(file.tensor(name), kept.wide())


def test_what_is_no_gguf_or_of_a_kind_that_is_not_read_is_refused_by_name(tmp_path: Path) -> None:
    (tmp_path / "a.gguf").write_bytes(b"GGUF" + bytes(3))
    with pytest.raises(ModelFileError, match=r"'a\.gguf' cannot be read as a GGUF file"):
        Checkpoint(tmp_path / "a.gguf")
    (tmp_path / "b.gguf").write_bytes(b"not one at all, but long enough")
    with pytest.raises(ModelFileError, match=r"'b\.gguf' cannot be read as a GGUF file"):
        Checkpoint(tmp_path / "b.gguf")
    kind = gguf.GGMLQuantizationType.IQ2_XXS
    writer = gguf.GGUFWriter(tmp_path / "c.gguf", "flux")
    writer.add_tensor("img_in.weight", np.zeros((2, 66), np.uint8), raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    with pytest.raises(ModelFileError, match=r"'c\.gguf': tensor 'img_in\.weight' is IQ2_XXS; supported are F32, F16"):
        Checkpoint(tmp_path / "c.gguf")


def test_the_kind_of_a_file_follows_from_its_header_alone(catalog: Catalog, tmp_path: Path) -> None:
    writer = gguf.GGUFWriter(tmp_path / "text_encoders" / "a.gguf", "qwen3")
    writer.add_token_list(["a", "b"])
    writer.add_token_scores([0.5, 1.0])
    writer.add_array("comfy.gguf.orig_shape.blk.0.ffn_gate.weight", [4, 2, 4])
    for name, shape in (("blk.0.attn_q_norm", (2048,)), ("blk.0.ffn_norm", (2048,)), ("blk.0.ffn_gate", (1, 32))):
        writer.add_tensor(f"{name}.weight", np.zeros(shape, np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    check = ModelCheck(catalog)
    for folder, name in (("unet_gguf", "flux.gguf"), ("clip_gguf", "a.gguf")):
        with catalog.open(folder, name) as file:
            assert shapes(file) == GgufFile(catalog.path(folder, name)).shapes
    assert check.refusal("backbone", "unet_gguf", "flux.gguf") is None
    assert check.refusal("clip", "clip_gguf", "a.gguf") is None
    assert "it looks like a text encoder of Qwen3" in str(check.refusal("backbone", "clip_gguf", "a.gguf"))


@pytest.mark.parametrize("length", [0, 3, 12, 30, 200])
def test_a_header_that_ends_too_early_or_claims_too_much_is_refused(catalog: Catalog, length: int) -> None:
    whole = catalog.path("unet_gguf", "flux.gguf").read_bytes()
    with pytest.raises(ModelFileError, match="is no GGUF file: its header cannot be read, or is cut off"):
        shapes(io.BytesIO(whole[:length]))
    # After the magic, the version and two counts comes the length of a name.
    claims = whole[:24] + (HEADER_BYTES + length).to_bytes(8, "little") + whole[32:]
    with pytest.raises(ModelFileError, match="or is cut off"):
        shapes(io.BytesIO(claims))
    with pytest.raises(ModelFileError, match="is no GGUF file of version 2 or 3"):
        shapes(io.BytesIO(b"GGUF" + (length + 4).to_bytes(4, "big") + whole[8:]))


def test_without_the_package_the_error_says_how_to_get_it(catalog: Catalog, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "gguf", None)
    with pytest.raises(ModelFileError, match=r"'flux\.gguf' .* pip install 'serve-app\[gguf\]'"):
        cpu_weights(catalog).backbone(Recipe("backbone", "unet_gguf", "flux.gguf"))


def test_gguf_files_are_listed_for_their_own_nodes_alone(catalog: Catalog) -> None:
    assert catalog.names("unet_gguf") == ["flux.gguf"]
    assert catalog.names("diffusion_models") == ["wide.safetensors"]
    [clip] = BUILTIN["DualCLIPLoaderGGUF"]().load_clip("a.gguf", "b.safetensors", "flux")  # type: ignore[attr-defined]
    assert clip == Recipe("clip", "clip_gguf", "a.gguf", (LoadedAs("flux"),), ("b.safetensors",))
