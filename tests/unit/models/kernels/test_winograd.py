"""Convolutions in Winograd's sums against the plain ones."""

from __future__ import annotations

import threading

import pytest
import torch
from diffusers.models.resnet import ResnetBlock2D
from torch import Tensor, nn

from serve_app.models.families import AutoencoderKL, Flux2Vae, Sd
from serve_app.models.kernels import winograd
from serve_app.models.kernels.packing import PackedConvolution, move_to
from serve_app.models.kernels.winograd import WIDEST, PackedWinograd, Winograd, use_winograd
from tests.unit.models.convolutions import OTHERS

KL = AutoencoderKL((32, 32, 32, 64), 1, 4, 3, True)
SHAPES = [(1, 8, 8), (2, 5, 7), (3, 1, 1), (1, 1, 6), (1, 9, 2), (2, 12, 4), (1, 13, 16)]
"""(B,H,W) of pictures: whole tiles and parts of them, and nothing but borders."""

needs_onednn = pytest.mark.skipif(not torch.backends.mkldnn.is_available(), reason="this torch has no oneDNN")


def plain(inside: int = 12, outside: int = 20, *, bias: bool = True) -> Winograd:
    torch.manual_seed(0)
    layer = nn.Conv2d(inside, outside, 3, padding=1, bias=bias).requires_grad_(False)
    use_winograd(layer)
    assert isinstance(layer, Winograd)
    return layer


def cells(shape: tuple[int, int, int], channels: int = 12) -> Tensor:
    return torch.randn(shape[0], channels, *shape[1:], generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("shape", SHAPES)
def test_the_packed_one_is_the_plain_one_up_to_rounding(shape, bias):
    layer, x = plain(bias=bias), cells(shape)
    torch.testing.assert_close(PackedWinograd(layer)(x), layer(x), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("numbers", [1, 15_000])
def test_bands_of_any_height_make_the_same_picture(numbers, monkeypatch):
    layer, x = plain(), cells((2, 26, 9))
    monkeypatch.setattr(winograd, "_BAND_NUMBERS", numbers)
    torch.testing.assert_close(PackedWinograd(layer)(x), layer(x), rtol=1e-5, atol=1e-5)


def test_winograd_is_as_exact_as_onednn_over_the_most_channels_there_are():
    layer, x = plain(512, WIDEST), cells((1, 16, 16), 512)
    exact = nn.functional.conv2d(x.double(), layer.weight.double(), layer.bias.double(), padding=1)
    # Of numbers up to 3. With the points ±1 and ±2 it would be 2e-5.
    assert (PackedWinograd(layer)(x) - exact).abs().max() < 7e-6


def test_a_picture_does_not_depend_on_others_in_its_batch():
    packed, x = PackedWinograd(plain()), cells((3, 9, 8))
    assert torch.equal(packed(x)[1:2], packed(x[1:2]))


def test_memory_that_stays_can_be_written_outside_of_inference_mode_too(monkeypatch):
    packed, x = PackedWinograd(plain()), cells((1, 8, 8))
    monkeypatch.setattr(winograd, "of_thread", threading.local())
    with torch.inference_mode():
        inside = packed(x)
    assert torch.equal(packed(x), inside)


def test_what_a_wide_picture_takes_does_not_stay(monkeypatch):
    packed, narrow, wide = PackedWinograd(plain()), cells((1, 4, 8)), cells((1, 4, 80))
    monkeypatch.setattr(winograd, "of_thread", threading.local())
    monkeypatch.setattr(winograd, "_KEPT_NUMBERS", 5_000)
    first = packed(narrow)
    kept = winograd.of_thread.scratch
    torch.testing.assert_close(packed(wide), plain()(wide), rtol=1e-5, atol=1e-5)
    assert torch.equal(packed(narrow), first)
    assert winograd.of_thread.scratch is kept
    assert kept.shape[1] <= 5_000


@pytest.mark.parametrize("shape", SHAPES)
def test_cells_may_lie_channels_last_and_do_so_in_one_piece_afterwards(shape):
    packed, x = PackedWinograd(plain()), cells(shape)
    last = x.contiguous(memory_format=torch.channels_last)
    assert torch.equal(packed(last), packed(x))
    assert packed(x).is_contiguous(memory_format=torch.channels_last)


def test_a_tile_of_16_cells_takes_36_products_of_channels_in_place_of_144():
    layer = plain()
    assert layer.weight.numel() == 9 * 12 * 20
    assert PackedWinograd(layer).weight.numel() == 36 * 12 * 20


@pytest.mark.parametrize("layer", [*OTHERS, plain()])
def test_no_other_convolution_has_sums(layer):
    with pytest.raises(ValueError, match=r"has no sums: only a plain convolution of 3×3, padded by one zero, has"):
        use_winograd(layer)


@needs_onednn
@pytest.mark.parametrize("family", [KL, Flux2Vae(KL, (32, 32, 32, 64))])
def test_residual_blocks_of_autoencoders_have_them(family):
    network = family.build().eval().requires_grad_(False)
    move_to(network, torch.device("cpu"), torch.float32)
    blocks = [layer for layer in network.modules() if isinstance(layer, ResnetBlock2D)]
    assert {(type(block.conv1), type(block.conv2)) for block in blocks} == {(PackedWinograd, PackedWinograd)}


@needs_onednn
def test_wider_ones_whose_sums_would_take_more_memory_than_the_rest_do_not():
    with torch.device("meta"):
        network = AutoencoderKL((128, 256, 512, 512), 2, 4, 3, True).build()
    layers = [layer for layer in network.modules() if isinstance(layer, Winograd)]
    plain_bytes = sum(parameter.numel() for parameter in network.parameters()) * 4
    sums_bytes = sum(layer.weight.numel() for layer in layers) * 4 * 4
    assert {layer.out_channels for layer in layers} == {128, 256}
    assert sums_bytes < 0.4 * plain_bytes


@needs_onednn
def test_a_unet_whose_loras_need_the_plain_weight_does_not():
    network = Sd((32, 64), (1, 2), (1, 0), 1, 16).build().eval().requires_grad_(False)
    move_to(network, torch.device("cpu"), torch.float32)
    blocks = [layer for layer in network.modules() if isinstance(layer, ResnetBlock2D)]
    assert {(type(block.conv1), type(block.conv2)) for block in blocks} == {(PackedConvolution, PackedConvolution)}
