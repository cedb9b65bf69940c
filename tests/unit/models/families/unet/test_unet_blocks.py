"""A UNet's blocks give what diffusers' give, to the bit, in fewer operations."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from diffusers.models.attention_processor import Attention
from diffusers.models.resnet import ResnetBlock2D
from torch import Tensor

from serve_app.models.families import Sd, Sdxl
from serve_app.models.families.unet.sdxl import SdxlRefiner
from serve_app.models.families.unet.unet import Unet
from serve_app.models.families.unet.unet_blocks import UnetAttention, UnetResidual
from serve_app.models.unet_patches.unet_layers import with_layers
from serve_app.recipe.layers import DeepShrink, FreeU, HyperTile
from serve_app.sampling.guidance.layers import Drawn, WithoutAttention
from tests.unit.engine.card import Card, OnCard
from tests.unit.models.control_nets import drawn

FAMILIES: dict[str, Unet] = {
    "SD 1": Sd((32, 64), (1, 2), (1, 0), 1, 16),
    "SD 2": Sd((64, 128), (1, 1), (1, 1), 1, 16, linear=True, concat_channels=5),
    "SDXL": Sdxl((64, 128), (2, 1), (0, 2), 2, 16, linear=True, vector_dim=16 + 6 * 256),
    "SDXL's refiner": SdxlRefiner((64, 128), (1, 1), (0, 2), 2, 16, linear=True, vector_dim=16 + 5 * 256),
}

KERNELS = {"SD 1": (278, 229), "SD 2": (342, 287), "SDXL": (386, 317), "SDXL's refiner": (360, 297)}
"""By family: how many kernels a forward of diffusers' blocks takes on a card, and one of these."""


def made(family: Unet, dtype: torch.dtype = torch.float32) -> tuple[Any, Any]:
    """Return a network of drawn weights, and the same with diffusers' blocks."""
    slim = drawn(family.empty(), 1).to(dtype)
    theirs: Any = copy.deepcopy(slim)
    for module in theirs.modules():
        back = {UnetAttention: Attention, UnetResidual: ResnetBlock2D}.get(type(module))
        if back is not None:
            module.__class__ = back
    theirs.time_embed_act = None
    return slim, theirs


def asked(family: Unet, dtype: torch.dtype, *, masked: bool = False) -> dict[str, Any]:
    """Return the arguments of a forward of three rows."""
    generator = torch.Generator().manual_seed(2)

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator).to(dtype)

    mask = torch.arange(7)[None] < torch.tensor([7, 3, 5])[:, None]
    return {
        "sample": normal(3, family.latent_channels + family.concat_channels, 8, 10),
        "timestep": torch.tensor([3.0, 500.0, 998.5]),
        "encoder_hidden_states": normal(3, 7, family.context_dim),
        "class_labels": normal(3, family.vector_dim) if family.vector_dim else None,
        "encoder_attention_mask": mask if masked else None,
        "return_dict": False,
    }


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("name", FAMILIES)
def test_a_forward_is_that_of_diffusers_blocks_to_the_bit(name, dtype, masked):
    slim, theirs = made(FAMILIES[name], dtype)
    given = asked(FAMILIES[name], dtype, masked=masked)
    with torch.inference_mode():
        assert torch.equal(slim(**given)[0], theirs(**given)[0])


@contextmanager
def _plainly(*_: Any) -> Iterator[None]:
    yield


@pytest.mark.parametrize(
    "patch",
    [
        FreeU(1.3, 1.4, 0.9, 0.2),
        DeepShrink(1, 2.0, 1.0, 0.0, True, "bicubic", "bicubic"),
        WithoutAttention(),
        HyperTile(4, 4, 1, False),
    ],
)
def test_a_forward_of_patched_layers_is_that_of_diffusers_blocks(patch):
    family = FAMILIES["SD 1"]
    slim, theirs = made(family)
    given, found = asked(family, torch.float32), []
    for network in (slim, theirs):
        own = Drawn(patch, torch.Generator().manual_seed(5)) if isinstance(patch, HyperTile) else patch
        with torch.inference_mode(), with_layers(network, [(3, (own,))], (8, 10)):
            found.append(network(**given)[0])
    assert torch.equal(*found)


@pytest.mark.parametrize("name", FAMILIES)
def test_all_blocks_are_such_and_have_nothing_that_these_leave_out(name):
    slim, _ = made(FAMILIES[name])
    attentions = [module for module in slim.modules() if isinstance(module, Attention)]
    residuals = [module for module in slim.modules() if isinstance(module, ResnetBlock2D)]
    assert {type(module) for module in attentions} == {UnetAttention}
    assert {type(module) for module in residuals} == {UnetResidual}
    left_out = ("spatial_norm", "group_norm", "norm_cross", "norm_q", "norm_k", "residual_connection")
    assert not any(getattr(module, name) for module in attentions for name in left_out)
    assert {module.rescale_output_factor for module in attentions} == {1.0}
    assert {(m.output_scale_factor, m.time_embedding_norm, m.up, m.down) for m in residuals} == {
        (1.0, "default", False, False)
    }


@pytest.mark.parametrize("name", FAMILIES)
def test_a_forward_takes_fewer_kernels(name):
    card, counts = Card(), []
    for network in made(FAMILIES[name]):
        given = asked(FAMILIES[name], torch.float32, masked=True)
        with torch.inference_mode(), card.used():
            card.settle(network)
            placed = {k: card.place(v) if isinstance(v, Tensor) else v for k, v in given.items()}
            before = card.counts.copy()
            assert isinstance(network(**placed)[0], OnCard)
            counts.append(card.counts.since(before).kernels)
    slim, theirs = counts
    assert (theirs, slim) == KERNELS[name]
