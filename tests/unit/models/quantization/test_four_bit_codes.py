"""W4A8: the numbers of ComfyUI's kernels, files that hold them, and what they take."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from serve_app.errors import ModelFileError
from serve_app.models.files.checkpoint import Checkpoint
from serve_app.models.files.layout import Place
from serve_app.models.quantization.eight_bit import EightBitWeight
from serve_app.models.quantization.four_bit_codes import CodedWeight
from tests.parity.dit_cases import noise
from tests.parity.figures import Figures

FIGURES = Figures("quantized")
CASES = {"w4a8": 64, "w4a8_even": 16}


def written(folder: Path, name: str, **changed: Any) -> Checkpoint:
    """Write a weight as ComfyUI saves it, and open the file."""
    settings = {"format": "asym_w4a8_int8", "convrot_groupsize": CASES[name]}
    tensors = {
        "a.weight": FIGURES[f"{name}|stored"].view(torch.int8),
        "a.weight_s_rel": FIGURES[f"{name}|scales"].view(torch.float8_e4m3fn),
        "a.weight_s_channel": FIGURES[f"{name}|channels"],
        "a.comfy_quant": torch.frombuffer(bytearray(json.dumps(settings).encode()), dtype=torch.uint8),
        **({"a.weight_codebook": FIGURES["w4a8|table"]} if name == "w4a8" else {}),
        **changed,
    }
    save_file({key: tensor for key, tensor in tensors.items() if tensor is not None}, folder / "a.safetensors")
    return Checkpoint(folder / "a.safetensors")


@pytest.mark.parametrize("name", CASES)
def test_a_weight_is_widened_as_comfyui_does_and_multiplies_rotated_inputs(tmp_path: Path, name: str) -> None:
    weight, wide = written(tmp_path, name).quantized("a.weight"), FIGURES[f"{name}|wide"]
    assert isinstance(weight, CodedWeight)
    assert weight.shape == wide.shape
    assert weight.nbytes == wide.numel() / 2 + FIGURES[f"{name}|scales"].numel()
    torch.testing.assert_close(weight.wide(), wide, rtol=1e-5, atol=1e-6)
    x, bias = noise("inputs", (3, wide.shape[1])), noise("bias", (wide.shape[0],))
    torch.testing.assert_close(weight.product(x, bias), x @ wide.T + bias, rtol=1e-5, atol=1e-5)
    some = weight.part(Place("", rows=(5, 11))).sent(torch.clone)
    torch.testing.assert_close(some.wide(), wide[5:11], rtol=1e-5, atol=1e-6)
    assert isinstance(weight.holding(wide), EightBitWeight)


def test_what_does_not_fit_or_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(ModelFileError, match=r"in asym_w4a8_int8 without a scale \('a\.weight'\)"):
        written(tmp_path, "w4a8", **{"a.weight_s_rel": None})
    with pytest.raises(ModelFileError, match=r"without scales of its outputs \('a\.weight'\)"):
        written(tmp_path, "w4a8", **{"a.weight_s_channel": None})
    with pytest.raises(ModelFileError, match=r"of shape \(24, 128\) .* and 3 of outputs, rotated by 64 inputs"):
        written(tmp_path, "w4a8", **{"a.weight_s_channel": torch.ones(3)}).quantized("a.weight")
