"""A KL autoencoder's blocks give what diffusers' give, to the bit."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from diffusers.models.resnet import ResnetBlock2D
from diffusers.models.upsampling import Upsample2D
from torch import nn

from serve_app.models.families import AutoencoderKL, Flux2Vae
from serve_app.models.families.autoencoders.kl_blocks import KlResidual
from tests.unit.models.control_nets import drawn

KL = AutoencoderKL((32, 32, 64), 1, 4, 3, True)
FAMILIES: dict[str, AutoencoderKL | Flux2Vae] = {"KL": KL, "Flux.2": Flux2Vae(KL, (64, 64, 128))}


def made(family: AutoencoderKL | Flux2Vae, dtype: torch.dtype) -> tuple[Any, Any]:
    """Return a network of drawn weights, and the same with diffusers' blocks."""
    slim = drawn(family.empty(), 1).to(dtype)
    theirs: Any = copy.deepcopy(slim)
    for module in theirs.modules():
        if isinstance(module, KlResidual):
            module.__class__ = ResnetBlock2D
        elif isinstance(module, Upsample2D):
            module.interpolate, module.conv.__class__ = True, nn.Conv2d
    return slim, theirs


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("name", FAMILIES)
def test_images_and_latents_are_those_of_diffusers_blocks_to_the_bit(name, dtype):
    family = FAMILIES[name]
    slim, theirs = made(family, dtype)
    generator = torch.Generator().manual_seed(2)
    latents = torch.randn(2, family.latent_channels, 4, 3, generator=generator).to(dtype)
    images = torch.rand(2, 3, 32, 16, generator=generator).to(dtype)
    given = latents.clone(), images.clone()
    with torch.inference_mode():
        assert torch.equal(family.decode(slim, latents), family.decode(theirs, latents))
        assert torch.equal(family.encode(slim, images), family.encode(theirs, images))
    assert torch.equal(latents, given[0])
    assert torch.equal(images, given[1])


@pytest.mark.parametrize("name", FAMILIES)
def test_all_residual_blocks_are_such_and_have_nothing_that_these_leave_out(name):
    slim, _ = made(FAMILIES[name], torch.float32)
    residuals = [module for module in slim.modules() if isinstance(module, ResnetBlock2D)]
    assert {type(module) for module in residuals} == {KlResidual}
    assert {(m.output_scale_factor, m.time_emb_proj, m.up, m.down) for m in residuals} == {(1, None, False, False)}
