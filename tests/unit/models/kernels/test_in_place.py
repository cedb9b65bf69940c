"""Activations in the memory of their input: diffusers' numbers and gradients, with less memory."""

from __future__ import annotations

from copy import deepcopy

import pytest
import torch
from diffusers.models.activations import GEGLU, GELU, FP32SiLU, SwiGLU
from diffusers.models.transformers.transformer_z_image import FeedForward
from torch import nn

from serve_app.models.forward_cost import Counting
from serve_app.models.kernels.in_place import in_place
from tests.parity.dit_cases import noise

LAYERS: dict[str, tuple[nn.Module, int, int]] = {
    "gelu": (GELU(8, 64), 128, 64),
    "gelu, approximated": (GELU(8, 64, approximate="tanh"), 128, 64),
    "geglu": (GEGLU(8, 64), 256, 192),
    "swiglu": (SwiGLU(8, 64), 256, 192),
    "silu in single precision": (FP32SiLU(), 32, 24),
    "z-image": (FeedForward(8, 64), 256, 128),
}
"""Layers, and how many numbers of a token live at once at most: with diffusers' activation, and in place."""


@pytest.mark.parametrize("name", LAYERS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_numbers_are_those_of_diffusers_to_the_bit_and_fewer_live_at_once(name: str, dtype: torch.dtype) -> None:
    layer, theirs, ours = LAYERS[name]
    x, plain = noise("x", (2, 50, 8)).to(dtype), deepcopy(layer).to(dtype)
    before = x.clone()
    made, peaks = [], []
    with torch.inference_mode():
        for one in (plain, in_place(nn.Sequential(deepcopy(plain)))):
            with Counting(torch.device("cpu")) as counting:
                made.append(one(x))
            peaks.append(counting.peak_bytes / 100)
    assert torch.equal(*made)
    assert torch.equal(x, before)
    if name == "silu in single precision" and dtype == torch.float32:
        # It changes no input that it has no copy of.
        theirs = ours = 8
    assert peaks == [theirs * dtype.itemsize, ours * dtype.itemsize]


@pytest.mark.parametrize("name", LAYERS)
def test_gradients_are_those_of_diffusers(name: str) -> None:
    layer = LAYERS[name][0]
    gradients = []
    for one in (layer, in_place(nn.Sequential(deepcopy(layer)))):
        x = noise("x", (2, 5, 8)).requires_grad_()
        one(x).square().sum().backward()
        gradients.append([x.grad, *(parameter.grad for parameter in one.parameters())])
        one.zero_grad()
    for ours, theirs in zip(*gradients, strict=True):
        assert ours is not None
        assert theirs is not None
        assert torch.equal(ours, theirs)
