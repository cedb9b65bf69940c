"""Rounding to eight bits by chance, and LoRAs merged with weights that stay quantized."""

from __future__ import annotations

from unittest import mock

import pytest
import torch
from torch import Tensor, nn

from serve_app.models.lora import layers as lora_layers
from serve_app.models.lora.adapters import LowRank
from serve_app.models.lora.layers import LoraLayer, LoraSet
from serve_app.models.quantization.block_scales import Mxfp8Weight
from serve_app.models.quantization.eight_bit import EightBitWeight
from serve_app.models.quantization.quantized_linear import QuantizedLinear, QuantizedWeight
from serve_app.models.quantization.rounding import EIGHT, rounded_by_chance

SIDE = 64


def drawn(seed: int, *shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def chance() -> torch.Generator:
    return torch.Generator().manual_seed(1)


def test_every_number_of_float8_stays_as_it_is() -> None:
    own = torch.arange(256, dtype=torch.uint8).view(EIGHT)
    own = own[own.float().isfinite()]
    rounded = rounded_by_chance(own.to(torch.float16), chance())
    assert torch.equal(rounded.float(), own.float())


@pytest.mark.parametrize("number", [1.03, -1.03, 15.9, 0.0021, -0.0003, 300.0])
def test_a_number_becomes_either_of_its_neighbours_and_itself_on_average(number: float) -> None:
    x = torch.full((20_000,), number, dtype=torch.float16)
    rounded = rounded_by_chance(x.clone(), chance()).double()
    low, high = rounded.unique().tolist()
    assert low < float(x[0]) < high
    # Four standard errors, and what the places of chances are apart.
    allowed = 4 * float(rounded.std()) / len(x) ** 0.5 + (high - low) / 128
    assert abs(float(rounded.mean()) - float(x[0])) < allowed


def test_numbers_beyond_the_largest_become_that() -> None:
    assert rounded_by_chance(torch.tensor([1000.0, -1000.0], dtype=torch.float16), chance()).tolist() == [448, -448]


@pytest.mark.parametrize("shape", [(1,), (1, 1), (SIDE, 1), None])
def test_a_small_change_of_a_weight_in_eight_bits_is_kept_on_average(shape: tuple[int, ...] | None) -> None:
    scale = None if shape is None else drawn(3, *shape).abs() + 0.5
    weight = EightBitWeight(drawn(0, SIDE, SIDE).to(EIGHT), scale)
    down, up = drawn(1, 4, SIDE) / SIDE, drawn(2, SIDE, 4)
    change, before = up @ down, weight.wide()
    made = weight.with_low_rank(down, up, chance())
    assert made.stored.dtype == EIGHT
    kept = ((made.wide() - before) * change).sum() / change.square().sum()
    assert float(kept) == pytest.approx(1, abs=0.05)
    assert torch.equal(weight.with_low_rank(down, up, chance()).stored.float(), made.stored.float())


def layer(weight: QuantizedWeight, *, in_eight_bits: bool = False) -> QuantizedLinear:
    made = QuantizedLinear(weight, None)
    made.in_eight_bits = in_eight_bits
    return made


def test_a_lora_is_merged_in_eight_bits_where_these_are_multiplied_and_else_in_the_networks_dtype() -> None:
    stored = drawn(0, SIDE, SIDE).to(EIGHT)
    exponents = torch.full((SIDE, SIDE // 32), 127, dtype=torch.uint8)
    multiplied = EightBitWeight(stored, torch.ones(1, 1), may=True)
    network = nn.Sequential(
        layer(multiplied, in_eight_bits=True), layer(multiplied), layer(Mxfp8Weight(stored, exponents))
    )
    before = [
        weight.wide().clone() for weight in (one.quantized for one in network if isinstance(one, QuantizedLinear))
    ]
    change = LowRank(drawn(2, SIDE, 4), drawn(1, 4, SIDE) / SIDE, 1.0)
    # Layers are packed on a CPU alone.
    with (
        torch.inference_mode(),
        mock.patch.object(LoraLayer, "on_gpu", True),
        mock.patch.object(lora_layers, "packed", lambda own: own),
    ):
        loras = LoraSet("one", network, [({f"{i}.weight": change for i in range(3)}, 1.0)])
        numbers, least = SIDE * SIDE, loras.nbytes
        loras.merge(alone=True, steps_left=lora_layers.STEPS_FOR_ROUNDING - 1)
        assert loras.merged_layers() is None
        loras.merge(alone=True, steps_left=lora_layers.STEPS_FOR_ROUNDING)
        merged = loras.merged_layers()
        assert merged is not None
        rounded, *wide = merged.values()
        assert isinstance(rounded, QuantizedLinear)
        assert rounded.quantized.stored is loras.merged_weight(merged)
        assert loras.nbytes - least == numbers + 2 * 4 * numbers
        for own, weight in zip(wide, before[1:], strict=True):
            assert isinstance(own, nn.Linear)
            torch.testing.assert_close(own.weight, weight + change.up @ change.down, rtol=1e-5, atol=1e-5)
        assert torch.equal(multiplied.wide(), before[0])
        loras.close()
        assert rounded.quantized.stored.numel() == 0
        assert torch.equal(multiplied.wide(), before[0])
