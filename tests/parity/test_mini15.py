"""The parts of the mini15 checkpoint against ComfyUI's figures (CPU, float32): relative error at most 1e-4.

What is measured is far closer: text, network and VAE 3e-6 or better.
"""

import pytest
import torch

from serve_app.models.families.unet.unet import UnetInputs
from serve_app.recipe.recipe import Recipe
from serve_app.recipe.text import ClipSkip
from serve_app.sampling.forward import Piece, denoise
from serve_app.store.models.catalog import Catalog
from tests.parity.cases import IMAGE
from tests.parity.checkpoints import models_dir
from tests.parity.figures import PROMPTS, Figures
from tests.parity.mini15_cases import SIGMAS, X, Z, value
from tests.unit.models.sample import cpu_weights

FIGURES = Figures("mini15")
BACKBONE, CLIP, VAE = (Recipe(part, "checkpoints", "mini15.safetensors") for part in ("backbone", "clip", "vae"))


@pytest.fixture(scope="module")
def weights():
    with torch.inference_mode():
        yield cpu_weights(Catalog(models_dir("mini15")))


@pytest.fixture(scope="module")
def positive(weights):
    return weights.clip(CLIP).encode([PROMPTS[1]])[0]


@pytest.mark.parametrize("index", range(len(PROMPTS)))
def test_a_text_is_encoded_as_by_comfyui(weights, index):
    ((cond, options),) = weights.clip(CLIP).encode([PROMPTS[index]])[0]
    FIGURES.assert_agrees(cond, f"text|{index}|cond")
    FIGURES.assert_agrees(options["pooled_output"], f"text|{index}|pooled")


def test_texts_encoded_together_are_encoded_as_by_comfyui(weights):
    for index, ((cond, options),) in enumerate(weights.clip(CLIP).encode(PROMPTS)):
        FIGURES.assert_agrees(cond, f"text|{index}|cond")
        FIGURES.assert_agrees(options["pooled_output"], f"text|{index}|pooled")


def test_clip_skip_takes_the_layer_comfyui_takes(weights):
    ((cond, _),) = weights.clip(CLIP.with_patch(ClipSkip(-2))).encode([PROMPTS[0]])[0]
    FIGURES.assert_agrees(cond, "text|skip|cond")


@pytest.mark.parametrize("sigma", SIGMAS)
def test_the_network_denoises_as_in_comfyui(weights, positive, sigma):
    backbone = weights.backbone(BACKBONE)
    inputs = UnetInputs(positive[0][0].expand(2, -1, -1))
    [denoised] = denoise([Piece(backbone, value(X) * sigma, sigma, inputs)])
    FIGURES.assert_agrees(denoised, f"denoise|{sigma}")


def test_rows_at_different_levels_and_padded_texts_are_denoised_as_alone(weights, positive):
    backbone = weights.backbone(BACKBONE)
    x, cond = value(X), positive[0][0]
    longer = torch.cat([cond, cond.flip(1)], dim=1)
    pieces = [
        Piece(backbone, x[:1] * 14.6146, 14.6146, UnetInputs(cond)),
        Piece(backbone, x[1:] * 0.3, 0.3, UnetInputs(longer)),
    ]
    together = torch.cat(denoise(pieces))
    alone = torch.cat([denoise([piece])[0] for piece in pieces])
    torch.testing.assert_close(together, alone, rtol=1e-4, atol=1e-4)


def test_latents_are_decoded_as_by_comfyui(weights):
    FIGURES.assert_agrees(weights.vae(VAE).decode(value(Z)), "vae|decode")


def test_an_image_is_encoded_to_the_mean_as_by_comfyui(weights):
    FIGURES.assert_agrees(weights.vae(VAE).encode(value(IMAGE)), "vae|encode")
