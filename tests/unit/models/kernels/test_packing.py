"""Packed layers against the plain ones they stand for."""

import copy

import pytest
import torch
from torch import nn

from serve_app.models.kernels.packing import PackedConvolution, PackedLinear, PackedPointwise, move_to, plain

CPU = torch.device("cpu")

needs_onednn = pytest.mark.skipif(not torch.backends.mkldnn.is_available(), reason="this torch has no oneDNN")


def network():
    torch.manual_seed(0)
    layers = [
        nn.Conv2d(4, 32, 3, padding=1),
        nn.Sequential(nn.SiLU(), nn.Conv2d(32, 32, 3, stride=2)),
        nn.Conv2d(32, 48, 3, padding=2, dilation=2, groups=4),
        nn.Conv2d(48, 3, 1, bias=False),
    ]
    return nn.Sequential(*layers).eval().requires_grad_(False)


@needs_onednn
@pytest.mark.parametrize(("rows", "height", "width"), [(1, 8, 8), (2, 9, 14), (16, 8, 8)])
def test_a_packed_network_answers_as_the_plain_one(rows, height, width):
    unpacked, packed = network(), network()
    move_to(packed, CPU, torch.float32)
    x = torch.randn(rows, 4, height, width)
    torch.testing.assert_close(packed(x), unpacked(x), rtol=1e-5, atol=1e-5)


@needs_onednn
def test_every_convolution_is_packed_however_deep_it_lies_and_one_of_1x1_as_a_linear_layer():
    packed = network()
    move_to(packed, CPU, torch.float32)
    assert sum(isinstance(module, PackedConvolution) for module in packed.modules()) == 3
    assert sum(isinstance(module, PackedPointwise) for module in packed.modules()) == 1
    assert not any(isinstance(module, nn.Conv2d) for module in packed.modules())


@needs_onednn
@pytest.mark.parametrize("given", [{"stride": 2}, {"padding": 1}, {"groups": 2}])
def test_a_convolution_of_1x1_that_is_no_linear_layer_stays_as_it_is(given):
    layer = nn.Sequential(nn.Conv2d(4, 6, 1, **given))
    move_to(layer, CPU, torch.float32)
    assert type(layer[0]) is nn.Conv2d


@needs_onednn
@pytest.mark.parametrize("index", range(4))
def test_a_packed_layer_gives_its_plain_weight_back_bit_for_bit(index):
    torch.manual_seed(1)
    own = [layer for layer in network().modules() if isinstance(layer, nn.Conv2d)][index]
    holder = nn.Sequential(copy.deepcopy(own))
    move_to(holder, CPU, torch.float32)
    back = plain(holder[0])
    assert isinstance(back, nn.Conv2d)
    assert torch.equal(back.weight, own.weight)
    assert (back.bias is None) == (own.bias is None)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_a_network_for_another_number_format_is_not_packed(dtype):
    half = network()
    move_to(half, CPU, dtype)
    assert not any(isinstance(module, PackedConvolution) for module in half.modules())
    assert {parameter.dtype for parameter in half.parameters()} == {dtype}


@needs_onednn
@pytest.mark.parametrize("dtype", [torch.float16, torch.float8_e4m3fn])
def test_a_network_of_a_narrow_file_answers_as_one_widened_first(dtype):
    narrow = network()
    for parameter in narrow.parameters():
        parameter.data = parameter.data.to(dtype)
    wide = copy.deepcopy(narrow).float()
    move_to(narrow, CPU, torch.float32)
    assert sum(isinstance(module, PackedConvolution) for module in narrow.modules()) == 3
    x = torch.randn(2, 4, 9, 14)
    torch.testing.assert_close(narrow(x), wide(x), rtol=1e-5, atol=1e-5)


def test_padding_that_is_not_zeros_stays_as_it_is():
    reflecting = nn.Sequential(
        nn.Conv2d(4, 4, 3, padding=1, padding_mode="reflect"), nn.Conv2d(4, 4, 3, padding="same")
    )
    move_to(reflecting, CPU, torch.float32)
    assert not any(isinstance(module, PackedConvolution) for module in reflecting)


@needs_onednn
@pytest.mark.parametrize("shape", [(1, 40), (77, 40), (2, 77, 40), (2, 9, 7, 40)])
@pytest.mark.parametrize("bias", [True, False])
def test_a_packed_linear_layer_answers_as_the_plain_one(shape, bias):
    torch.manual_seed(0)
    plain = nn.Sequential(nn.Linear(40, 24, bias=bias)).eval().requires_grad_(False)
    x = torch.randn(shape)
    expected = plain(x)
    move_to(plain, CPU, torch.float32)
    assert isinstance(plain[0], PackedLinear)
    torch.testing.assert_close(plain(x), expected, rtol=1e-5, atol=1e-5)
