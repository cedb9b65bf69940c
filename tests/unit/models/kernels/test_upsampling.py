"""Convolutions that upsample, plain and packed, against diffusers' upsampling and the convolution after it."""

from __future__ import annotations

import pytest
import torch
from diffusers.models.upsampling import Upsample2D
from torch import Tensor, nn

from serve_app.models.families import AutoencoderKL, Flux2Vae, Sd
from serve_app.models.kernels.packing import PackedConvolution, move_to
from serve_app.models.kernels.upsampling import PackedUpsampling, Upsampling, upsample_within
from tests.unit.models.convolutions import OTHERS

KL = AutoencoderKL((32, 32, 32, 64), 1, 4, 3, True)
SHAPES = [(1, 8, 8), (2, 5, 7), (3, 1, 1), (1, 1, 6), (1, 9, 2), (16, 4, 4)]
"""(B,H,W) of what is upsampled: even and odd, and nothing but borders."""

needs_onednn = pytest.mark.skipif(not torch.backends.mkldnn.is_available(), reason="this torch has no oneDNN")


def theirs(inside: int = 12, outside: int = 20, *, bias: bool = True) -> Upsample2D:
    torch.manual_seed(0)
    return Upsample2D(inside, use_conv=True, out_channels=outside, bias=bias).eval().requires_grad_(False)


def ours(layer: Upsample2D) -> Upsampling:
    conv = nn.Conv2d(layer.channels, layer.out_channels, 3, padding=1, bias=layer.conv.bias is not None)
    conv.load_state_dict(layer.conv.state_dict())
    upsample_within(conv)
    assert isinstance(conv, Upsampling)
    return conv.requires_grad_(False)


def cells(shape: tuple[int, int, int], channels: int = 12) -> Tensor:
    return torch.randn(shape[0], channels, *shape[1:], generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("shape", SHAPES)
def test_the_plain_one_is_diffusers_to_the_bit(shape, dtype):
    layer, x = theirs(), cells(shape).to(dtype)
    assert torch.equal(ours(layer).to(dtype)(x), layer.to(dtype)(x))


@needs_onednn
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("shape", SHAPES)
def test_the_packed_one_is_the_plain_one_up_to_rounding(shape, bias):
    layer, x = theirs(bias=bias), cells(shape)
    torch.testing.assert_close(PackedUpsampling(ours(layer))(x), layer(x), rtol=1e-5, atol=1e-5)


@needs_onednn
@pytest.mark.parametrize("shape", SHAPES)
def test_of_whole_numbers_which_are_never_rounded_it_is_the_plain_one(shape):
    layer, x = theirs(), cells(shape)
    for tensor in (layer.conv.weight.data, layer.conv.bias.data, x):
        tensor.mul_(8).round_()
    # Every sum is a whole number far below 2**24.
    assert torch.equal(PackedUpsampling(ours(layer))(x), layer(x))


@needs_onednn
def test_cells_may_lie_channels_last():
    layer, x = theirs(), cells((2, 5, 7))
    last = x.contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(PackedUpsampling(ours(layer))(last), layer(x), rtol=1e-5, atol=1e-5)


@needs_onednn
def test_a_cell_takes_16_products_of_channels_in_place_of_36():
    plain = ours(theirs())
    packed = PackedUpsampling(plain)
    assert plain.weight.numel() == 9 * 12 * 20
    # Each of a cell's four copies meets a quarter of the taps.
    assert packed.weight.numel() == 16 * 12 * 20


@pytest.mark.parametrize("layer", [*OTHERS, ours(theirs())])
def test_no_other_convolution_can(layer):
    with pytest.raises(ValueError, match=r"cannot upsample: only a plain convolution of 3×3, padded by one zero, can"):
        upsample_within(layer)


@needs_onednn
@pytest.mark.parametrize("family", [KL, Flux2Vae(KL, (32, 32, 32, 64))])
def test_every_upsampling_of_a_decoder_is_packed_in_its_convolution(family):
    network = family.build().eval().requires_grad_(False)
    move_to(network, torch.device("cpu"), torch.float32)
    upsamplers = [layer for layer in network.modules() if isinstance(layer, Upsample2D)]
    assert [(type(layer.conv), layer.interpolate) for layer in upsamplers] == [(PackedUpsampling, False)] * 3


@needs_onednn
def test_a_unet_whose_loras_need_the_plain_weight_does_not():
    network = Sd((32, 64), (1, 2), (1, 0), 1, 16).build().eval().requires_grad_(False)
    move_to(network, torch.device("cpu"), torch.float32)
    upsamplers = [layer for layer in network.modules() if isinstance(layer, Upsample2D)]
    assert [type(layer.conv) for layer in upsamplers] == [PackedConvolution]
