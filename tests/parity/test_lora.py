"""The mini15 checkpoint under LoRAs, of several strengths in one forward; `test_beside` compares with ComfyUI."""

import pytest
import torch

from serve_app.recipe.recipe import Recipe
from serve_app.recipe.weights import Lora
from serve_app.sampling.forward import Canvas, Piece, denoise
from serve_app.store.models.catalog import Catalog
from tests.parity.checkpoints import models_dir
from tests.parity.figures import PROMPTS
from tests.unit.models.sample import cpu_weights

CLIP = Recipe("clip", "checkpoints", "mini15.safetensors")
BACKBONE = Recipe("backbone", "checkpoints", "mini15.safetensors")


@pytest.fixture(scope="module")
def catalog():
    return Catalog(models_dir("mini15", "lora"))


@pytest.fixture(scope="module")
def weights(catalog):
    with torch.inference_mode():
        yield cpu_weights(catalog)


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
