"""What widening a quantized weight moves, in bytes a weight: counted on the meta device, as a GPU in half precision."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from bench.counted import Counting
from serve_app.models.quantization.block_scales import Mxfp8Weight, Nvfp4Weight
from serve_app.models.quantization.eight_bit import EightBitWeight
from serve_app.models.quantization.four_bit_codes import CodedWeight
from serve_app.models.quantization.ggml_blocks import TYPES, BlockWeight
from serve_app.models.quantization.quantized_linear import QuantizedWeight

SIDE = 1024
PRODUCT = 2
"""Bytes a weight that the matrix product itself reads."""


def meta(*shape: int, dtype: torch.dtype = torch.uint8) -> Tensor:
    return torch.empty(shape, dtype=dtype, device="meta")


FP8 = meta(SIDE, SIDE, dtype=torch.float8_e4m3fn)
GROUPS = meta(SIDE, SIDE // 16, dtype=torch.float8_e4m3fn)
WEIGHTS: dict[str, tuple[QuantizedWeight, int]] = {
    "fp8": (EightBitWeight(FP8), 4),
    "fp8 with a scale": (EightBitWeight(FP8, meta(1, 1, dtype=torch.float32), largest=0.5), 4),
    "fp8 with scales": (EightBitWeight(FP8, meta(SIDE, 1, dtype=torch.float32), largest=0.5), 4),
    "int8": (EightBitWeight(meta(SIDE, SIDE, dtype=torch.int8), meta(SIDE, 1, dtype=torch.float32), largest=0.5), 4),
    "nvfp4": (Nvfp4Weight(meta(SIDE, SIDE // 2), meta(SIDE, SIDE // 16), meta(dtype=torch.float32)), 12),
    "w4a8": (CodedWeight(meta(SIDE, SIDE // 2), GROUPS, meta(SIDE, 1, dtype=torch.float32), 256), 48),
    "mxfp8": (Mxfp8Weight(FP8, meta(SIDE, SIDE // 32)), 12),
    **{kind: (BlockWeight(meta(SIDE, SIDE // known.size * known.nbytes), kind), 12) for kind, known in TYPES.items()},
}


@pytest.mark.parametrize("kind", WEIGHTS)
def test_a_weight_is_widened_in_few_bytes(kind: str) -> None:
    weight, most = WEIGHTS[kind]
    with torch.inference_mode(), Counting() as counting:
        weight.product(meta(1, SIDE, dtype=torch.bfloat16), meta(SIDE, dtype=torch.bfloat16))
    assert counting.counts.nbytes / SIDE**2 - PRODUCT < most, counting.counts.nbytes_of


def test_a_large_weight_of_eight_bits_takes_no_more_bytes_than_a_small_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("serve_app.models.quantization.quantized_linear.AT_ONCE", SIDE * 16)
    for kind in ("fp8 with a scale", "nvfp4", "Q4_K"):
        test_a_weight_is_widened_in_few_bytes(kind)
