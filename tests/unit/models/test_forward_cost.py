"""What a forward costs, counted without running it, beside what it allocates and computes as it runs."""

from __future__ import annotations

import json
from typing import Any

import pytest
import torch
from torch import Tensor

from serve_app.models.backbone import RecipeBackbone
from serve_app.models.families import Flux, Sd, Wan
from serve_app.models.families.dit.hidream import STATES
from serve_app.models.families.family import BackboneFamily
from serve_app.models.files.parts import find_part
from serve_app.models.files.tensors import Tensors
from serve_app.models.forward_cost import Counting, Kernel, forward_cost
from serve_app.models.kernels.in_place import in_place
from serve_app.models.network import LoadedNetwork
from serve_app.models.quantization.eight_bit import EightBitWeight
from serve_app.recipe.training import Discrete
from serve_app.sampling.forward import Canvas, Piece, denoise
from tests.parity.dit_cases import LLAMA_STATES, TEXT_WIDTH, noise
from tests.parity.figures import GOLDEN
from tests.unit.engine.test_transformers import KEYS, NETS, SHAPES, WITHOUT_IMAGES, text

MIB = 2**20
LARGE = {"auraflow"}
"""Whose smallest network takes long here."""
OTHERS = ("ernie_image", "ideogram4", "ltx_video")
"""Networks without a whole run in the tests of transformers."""
LTX = {"ltx_video": json.loads((GOLDEN / "networks_keys.json").read_text())["ltx_video"]}


def family_of(net: str) -> BackboneFamily:
    shapes = {name: tuple(shape) for name, shape in (KEYS | LTX)[net].items()}
    family = find_part("backbone", [Tensors(shapes, net)], "").family
    assert isinstance(family, BackboneFamily)
    return family


def allocated(family: BackboneFamily, x: Tensor, cond: Tensor, options: Any) -> int:
    """Return the most that torch's allocator of the CPU has given a forward at once, by its own profiler."""
    with torch.device("cpu"):
        network = in_place(family.build()).eval().requires_grad_(False)
    backbone = RecipeBackbone(LoadedNetwork("a", family, network, Discrete()))
    with torch.inference_mode():
        inputs = backbone.inputs(cond, options, "positive", Canvas(x, x))
        with torch.profiler.profile(profile_memory=True) as profile:
            denoise([Piece(backbone, x, 0.5, inputs)])
    live = most = 0
    for event in profile.profiler.kineto_results.events():
        if event.name() == "[memory]":
            live += event.nbytes()
            most = max(most, live)
    return most


@pytest.mark.parametrize("net", sorted({*NETS, *WITHOUT_IMAGES, *OTHERS} - LARGE))
def test_activations_are_those_that_a_forward_allocates(net: str) -> None:
    options: dict[str, Any] = {"guidance": 3.5}
    if net == "hidream":
        options[STATES] = noise("states", (1, LLAMA_STATES, 4, TEXT_WIDTH))
    if net == "ltx_video":
        options["attention_mask"] = torch.tensor([[1, 1, 1, 1, 0]])
    [(cond, options)] = text(1, 5, **options)
    family = family_of(net)
    x = torch.zeros(1, *(SHAPES | {"ltx_video": (128, 2)}).get(net, (family.latent_format.channels,)), 16, 16)
    counted = forward_cost(family, family.empty(), x, cond, options).peak_bytes
    assert forward_cost(family, family.empty(), x, *family.blank_text(5)).peak_bytes == pytest.approx(counted, rel=0.1)
    # It counts x and the text too, which were there before.
    assert 1 <= counted / allocated(family, x, cond, options) < 1.2


FULL: dict[str, tuple[BackboneFamily, torch.dtype, tuple[int, ...], tuple[int, int], int, float]] = {
    "SD 1.5, 512×512": (
        Sd((320, 640, 1280, 1280), (2, 2, 2, 2), (1, 1, 1, 0), 1, 768),
        *(torch.float16, (1, 4, 64, 64), (77, 768), 57 * MIB, 0.803),
    ),
    "Flux.1, 1024×1024": (
        Flux(3072, 24, 19, 38, 4096, 768),
        *(torch.bfloat16, (1, 16, 128, 128), (512, 4096), 400 * MIB, 59.5 + 14.9),
    ),
    "Wan 14B, 81 frames of 1280×720": (
        Wan(5120, 40, 13824, 4096),
        *(torch.float16, (1, 16, 21, 90, 160), (512, 4096), 5270 * MIB, 6523),
    ),
}
"""Networks with their dtype, latents and text; bytes and TFLOP, of which those of SD 1.5 and Flux are counted apart."""


@pytest.mark.parametrize("name", FULL)
def test_full_size_networks_are_counted_without_memory(name: str) -> None:
    family, dtype, shape, text, nbytes, tflop = FULL[name]
    cost = forward_cost(family, family.empty().to(dtype), torch.zeros(shape), torch.zeros(1, *text), {})
    # Kernels that are fused allocate less.
    assert 0.7 * nbytes < cost.peak_bytes < 1.03 * nbytes
    assert cost.flops / 1e12 == pytest.approx(tflop, rel=0.02)


def test_a_kernel_is_counted_with_what_it_computes_reads_and_writes() -> None:
    made = Counting(torch.device("cpu"))
    x, weight = torch.ones(6, 4), torch.ones(8, 4)
    with torch.inference_mode(), made:
        y = torch.nn.functional.linear(x, weight)
        y = y.view(3, 16) + 1
    assert made.kernels == {
        Kernel(2 * 6 * 4 * 8, 4 * (24 + 32 + 48)): 1,
        Kernel(48, 4 * (48 + 48)): 1,
    }
    # The first result goes once the second is there.
    assert made.peak_bytes == 4 * (48 + 48)


def test_an_operation_that_torch_takes_apart_is_counted_by_its_parts() -> None:
    x, weight = torch.ones(6, 4), torch.ones(4, 8)
    with torch.inference_mode(), Counting(torch.device("cpu")) as made:
        torch.matmul(x, weight)
    assert made.kernels == {Kernel(2 * 6 * 4 * 8, 4 * (24 + 32 + 48)): 1}


def test_a_product_of_eight_bits_counts_as_half_of_one_of_sixteen() -> None:
    weight = EightBitWeight(torch.empty(16, 64, device="meta", dtype=torch.float8_e4m3fn), None)
    x = torch.empty(32, 64, device="meta", dtype=torch.bfloat16)
    with torch.inference_mode(), Counting(torch.device("meta")) as made:
        weight.multiplied(x, None)
    assert max(kernel.flops for kernel in made.kernels) == 32 * 64 * 16


def test_views_of_weights_and_changes_in_place_are_no_allocations() -> None:
    weight, x = torch.ones(64, 64), torch.ones(1, 64)
    with torch.inference_mode(), Counting(torch.device("cpu")) as made:
        for first in range(0, 64, 16):
            y = torch.nn.functional.linear(x, weight[first : first + 16])
            y.add_(1)
    # The last result, and the one before it until it is replaced.
    assert made.peak_bytes == 2 * 4 * 16
