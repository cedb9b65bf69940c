"""The nodes that lead LTX-2 away from a perturbed positive. Their figures: tests/parity/test_ltx_workflows."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch

from serve_app.errors import NodeError
from serve_app.nodes.model.ltx_guidance import (
    ltxv_modality_guidance,
    ltxv_reference_audio,
    ltxv_spatio_temporal_guidance,
)
from serve_app.recipe.guidance import PerturbedStreams, SkipLayerGuidance
from serve_app.recipe.recipe import Recipe
from serve_app.values import Conditioning

MODEL, VAE = Recipe("backbone", "checkpoints", "a"), Recipe("audio_vae", "checkpoints", "a")
TEXT: Conditioning = [(torch.zeros(1, 1, 8), {})]


class Hears:
    """A RUNTIME that knows an audio VAE, which makes a latent a tenth of a second."""

    async def family(self, recipe: Recipe) -> Any:
        return SimpleNamespace(rate=16000, output_rate=24000)

    async def encode_audio(self, vae: Recipe, waveform: torch.Tensor) -> torch.Tensor:
        count = waveform.shape[-1] // 1600
        return torch.arange(8.0 * count * 16).view(1, 8, count, 16)


async def test_a_reference_becomes_a_token_for_each_latent_and_its_lack_is_led_away_from() -> None:
    audio = {"waveform": torch.zeros(1, 2, 4800), "sample_rate": 16000}
    runtime: Any = Hears()
    model, positive, negative = await ltxv_reference_audio(MODEL, TEXT, TEXT, audio, VAE, 3.0, 0.1, 0.9, runtime)
    assert model.last(SkipLayerGuidance) == SkipLayerGuidance(PerturbedStreams(unreferenced=True), 3.0, 0.1, 0.9)
    tokens = positive[0][1]["ref_audio"]["tokens"]
    assert tokens.shape == (1, 3, 128)
    # A channel's bins are side by side.
    assert tokens[0, 1, 14:18].tolist() == [30.0, 31.0, 64.0, 65.0]
    assert negative[0][1]["ref_audio"]["tokens"] is tokens
    unled, *_ = await ltxv_reference_audio(MODEL, TEXT, TEXT, audio, VAE, 0.0, 0.0, 1.0, runtime)
    assert unled == MODEL


async def test_a_mute_videos_sound_is_no_reference() -> None:
    runtime: Any = Hears()
    with pytest.raises(NodeError, match="there is no audio to encode"):
        await ltxv_reference_audio(MODEL, TEXT, TEXT, None, VAE, 3.0, 0.0, 1.0, runtime)


def test_a_model_stays_as_it_is_where_nothing_is_perturbed() -> None:
    assert ltxv_modality_guidance(MODEL, 1.0, 0.0, 1.0) == MODEL
    assert ltxv_spatio_temporal_guidance(MODEL, 0.0, "29", 0.0, 1.0) == MODEL
    assert ltxv_spatio_temporal_guidance(MODEL, 1.0, "none", 0.0, 1.0) == MODEL
    led = ltxv_spatio_temporal_guidance(MODEL, 1.0, "29, 7,7", 0.0, 1.0).last(SkipLayerGuidance)
    assert led == SkipLayerGuidance(PerturbedStreams((7, 29)), 1.0, 0.0, 1.0)
