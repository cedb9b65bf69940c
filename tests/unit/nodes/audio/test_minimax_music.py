"""MiniMax Music 3's nodes, and sounds decoded in tiles, without a model."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from serve_app.errors import NodeError
from serve_app.nodes.audio.latents import vae_decode_audio_tiled
from serve_app.nodes.audio.minimax_music import empty_minimax_music3_latent_audio, minimax_music3_text_encode
from serve_app.recipe.recipe import Recipe
from serve_app.values import Conditioning, GenerationRequest, SoundTiling

CLIP = Recipe("clip", "text_encoders", "a.safetensors")


class Writing:
    """A runtime whose language model writes a number of frames, and whose audio VAE makes a sound of ones."""

    def __init__(self, frames: int = 0) -> None:
        self.frames = frames
        self.asked: list[Any] = []

    async def write_song(self, clip: Recipe, request: GenerationRequest) -> Conditioning:
        self.asked.append(request)
        return [(torch.ones(1, self.frames, 16), {})]

    async def family(self, recipe: Recipe) -> Any:
        return SimpleNamespace(output_rate=44100)

    async def decode_audio(self, vae: Recipe, latents: Tensor, tiling: SoundTiling | None = None) -> Tensor:
        self.asked.append(tiling)
        return torch.ones(1, 2, latents.shape[-1] * 512).cumsum(-1)


async def written(runtime: Any, seconds: float) -> Any:
    return await minimax_music3_text_encode(CLIP, "a", "b", 3, seconds, 1.7, 40, runtime=runtime)


async def test_a_song_is_as_long_as_it_was_written() -> None:
    runtime = Writing(50)
    [(states, options)], seconds = await written(runtime, 4.0)
    assert (states.shape[1], seconds) == (50, 2.0)
    assert options["conditioning_scale"].shape == (1, 1, 1)
    [request] = runtime.asked
    # One more than four seconds have: the one before the song.
    assert (request.max_tokens, request.sampling.top_k, request.guidance.scale) == (101, 40, 1.7)


async def test_a_song_without_frames_is_refused() -> None:
    with pytest.raises(NodeError, match="ended the song before its first frame"):
        await written(Writing(0), 4.0)


def test_empty_latents_are_as_many_as_frames_have() -> None:
    assert empty_minimax_music3_latent_audio(8.0, 2)["samples"].shape == (2, 128, 689)
    assert empty_minimax_music3_latent_audio(0.04, 1)["samples"].shape == (1, 128, 3)


async def test_tiles_are_asked_for_in_latents_and_loud_sounds_are_bounded() -> None:
    runtime: Any = Writing()
    audio = await vae_decode_audio_tiled({"samples": torch.zeros(1, 128, 4)}, CLIP, 1536, 64, runtime=runtime)
    assert runtime.asked == [SoundTiling(1536, 64)]
    assert audio["sample_rate"] == 44100
    assert float(audio["waveform"].std()) == pytest.approx(0.2)
