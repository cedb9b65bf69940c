"""The parts of the mini15 checkpoint against ComfyUI 0.3.64's figures (CPU, float32): relative error at most 1e-4.

What is measured is far closer: text, network and VAE 3e-6 or better.
"""

import pytest
import torch

from serve_app.models.weights import Weights
from serve_app.store.catalog import Catalog
from serve_app.values import ClipSkip, Recipe
from tests.parity.checkpoints import models_dir
from tests.parity.figures import PROMPTS, Figures

FIGURES = Figures("mini15")
BACKBONE, CLIP, VAE = (Recipe(part, "checkpoints", "mini15.safetensors") for part in ("backbone", "clip", "vae"))


@pytest.fixture(scope="module")
def weights():
    with torch.inference_mode():
        yield Weights(Catalog(models_dir("mini15")), torch.device("cpu"))


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
    FIGURES.assert_agrees(cond, "text|clipskip2|0")


@pytest.mark.parametrize("sigma", ["14.6146", "3.2", "0.3"])
def test_the_network_denoises_as_in_comfyui(weights, positive, sigma):
    level = torch.full((2,), float(sigma))
    context = positive[0][0].expand(2, -1, -1)
    x = FIGURES["denoise|x"] * float(sigma)
    FIGURES.assert_agrees(weights.backbone(BACKBONE).denoise(x, level, context), f"denoise|{sigma}")


def test_rows_at_different_levels_and_padded_texts_are_denoised_as_alone(weights, positive):
    backbone = weights.backbone(BACKBONE)
    x, cond = FIGURES["denoise|x"], positive[0][0]
    padded = torch.cat([cond, torch.full((1, 77, 768), 3.0)], dim=1)
    longer = torch.cat([cond, cond.flip(1)], dim=1)
    context = torch.cat([padded, longer])
    mask = torch.arange(154) < torch.tensor([[77], [154]])
    level = torch.tensor([14.6146, 0.3])
    together = backbone.denoise(x * level[:, None, None, None], level, context, mask)
    first = backbone.denoise(x[:1] * level[0], level[:1], cond)
    second = backbone.denoise(x[1:] * level[1], level[1:], longer)
    torch.testing.assert_close(together, torch.cat([first, second]), rtol=1e-4, atol=1e-4)


def test_latents_are_decoded_as_by_comfyui(weights):
    FIGURES.assert_agrees(weights.vae(VAE).decode(FIGURES["vae|z"]), "vae|decode")


def test_an_image_is_encoded_to_the_mean_as_by_comfyui(weights):
    FIGURES.assert_agrees(weights.vae(VAE).encode(FIGURES["vae|image"]), "vae|encode")
