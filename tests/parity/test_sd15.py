"""Stable Diffusion 1.5 at full size (860 M parameters) against ComfyUI's figures: relative error at most 1e-4.

Its file is 2.1 GB, written on the first run; a run takes about 6 GB of memory.
"""

from __future__ import annotations

import pytest

from serve_app.models.families.unet.unet import UnetInputs
from serve_app.recipe.recipe import Recipe
from serve_app.sampling.forward import Piece, denoise
from tests.parity.checkpoints import models_dir
from tests.parity.figures import PROMPTS, Figures
from tests.parity.mini15_cases import RUNS, X, Z, value
from tests.parity.stack import Stack
from tests.parity.workflow import EMPTY, ksampler, models

pytestmark = pytest.mark.full_size

FIGURES = Figures("sd15")
SHARED = Figures("mini15")
"""Text encoder and VAE have the weights of mini15's, and so its figures."""


@pytest.fixture(scope="module")
def stack(tmp_path_factory):
    stack = Stack(models_dir("sd15"), tmp_path_factory.mktemp("files"))
    yield stack
    stack.engine.close()


@pytest.fixture(scope="module")
def cond(stack):
    return stack.weights.clip(Recipe("clip", "checkpoints", "sd15.safetensors")).encode([PROMPTS[1]])[0]


def test_a_text_is_encoded_as_by_comfyui(cond):
    [(context, options)] = cond
    SHARED.assert_agrees(context, "text|1|cond")
    SHARED.assert_agrees(options["pooled_output"], "text|1|pooled")


def test_the_network_denoises_as_in_comfyui(stack, cond):
    backbone = stack.weights.backbone(Recipe("backbone", "checkpoints", "sd15.safetensors"))
    piece = Piece(backbone, value(X) * 3.2, 3.2, UnetInputs(cond[0][0].expand(2, -1, -1)))
    [denoised] = stack.engine.call(lambda: denoise([piece])).result()
    FIGURES.assert_agrees(denoised, "denoise|3.2")


def test_latents_are_decoded_as_by_comfyui(stack):
    vae = stack.weights.vae(Recipe("vae", "checkpoints", "sd15.safetensors"))
    SHARED.assert_agrees(vae.decode(value(Z)), "vae|decode")


@pytest.mark.parametrize("figure", RUNS)
async def test_ksampler_gives_comfyuis_latents(stack, figure):
    latent = await stack.run("sampled", **models("sd15"), **EMPTY, sampled=ksampler(figure))
    FIGURES.assert_agrees(latent["samples"], figure)
