"""The mini15 checkpoint under a LoRA against ComfyUI 0.3.64's figures (CPU, float32): relative error at most 1e-4.

The figures were made by LoraLoader at 0.8 on the model and 0.6 on the text encoder.
"""

import pytest
import torch

from serve_app.sampling.forward import Canvas, Piece, denoise
from serve_app.store.catalog import Catalog
from serve_app.values import Lora, Recipe
from tests.parity.checkpoints import models_dir
from tests.parity.figures import PROMPTS, Figures
from tests.parity.stack import Stack
from tests.parity.workflow import EMPTY, ksampler, models
from tests.unit.models.sample import cpu_weights

FIGURES = Figures("mini15")
CLIP = Recipe("clip", "checkpoints", "mini15.safetensors")
BACKBONE = Recipe("backbone", "checkpoints", "mini15.safetensors")
STRENGTHS = {"strength_model": 0.8, "strength_clip": 0.6}
LOADED = models("mini15") | {
    "lora": (
        "LoraLoader",
        {"model": ["checkpoint", 0], "clip": ["checkpoint", 1], "lora_name": "lora.safetensors", **STRENGTHS},
    ),
    "positive": ("CLIPTextEncode", {"text": PROMPTS[1], "clip": ["lora", 1]}),
    "negative": ("CLIPTextEncode", {"text": PROMPTS[2], "clip": ["lora", 1]}),
}


@pytest.fixture(scope="module")
def catalog():
    return Catalog(models_dir("mini15", "lora"))


@pytest.fixture(scope="module")
def weights(catalog):
    with torch.inference_mode():
        yield cpu_weights(catalog)


@pytest.fixture(scope="module")
def stack(tmp_path_factory):
    stack = Stack(models_dir("mini15", "lora"), tmp_path_factory.mktemp("files"))
    yield stack
    stack.engine.close()


def test_a_text_is_encoded_under_a_lora_as_by_comfyui(weights):
    ((cond, _),) = weights.clip(CLIP.with_patch(Lora("lora.safetensors", 0.6))).encode([PROMPTS[0]])[0]
    FIGURES.assert_agrees(cond, "lora|text")


async def test_latents_are_sampled_under_a_lora_as_by_comfyui(stack):
    figure = "lora|euler|karras|4|5.0|41"
    sampled = ksampler(figure, model=["lora", 0])
    latent = await stack.run("sampled", **LOADED, **EMPTY, sampled=sampled)
    FIGURES.assert_agrees(latent["samples"], figure)


def test_rows_under_different_loras_are_denoised_together_as_alone(weights):
    cond = weights.clip(CLIP).encode([PROMPTS[1]])[0][0][0]
    strengths = [0.8, None, -0.5, 0.3]
    backbones = [
        weights.backbone(BACKBONE if s is None else BACKBONE.with_patch(Lora("lora.safetensors", s))) for s in strengths
    ]
    assert len({backbone.key for backbone in backbones}) == 1
    pieces = []
    for i, backbone in enumerate(backbones):
        x = torch.randn(1 + i % 2, 4, 8, 8, generator=torch.Generator().manual_seed(i))
        canvas = Canvas(torch.zeros_like(x), x)
        inputs = backbone.inputs(cond, {}, "positive", canvas)
        pieces.append(Piece(backbone, x * 3.2, 3.2, inputs))
    together = denoise(pieces)
    for piece, answer in zip(pieces, together, strict=True):
        (alone,) = denoise([piece])
        assert float((answer - alone).norm() / alone.norm()) < 1e-5
    merged = torch.cat([answer[:1] for answer in together])
    assert len(merged.unique(dim=0)) == 4
