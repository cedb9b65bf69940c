"""YuE 2's nodes, without a model."""

from __future__ import annotations

from typing import Any

import torch

from serve_app.nodes.audio.yue2 import (
    SCORED,
    UNSCORED,
    empty_yue2_latent_audio,
    yue2_generate_abc,
    yue2_generate_music,
)
from serve_app.recipe.recipe import Recipe
from serve_app.values import Conditioning, GenerationRequest

CLIP = Recipe("clip", "checkpoints", "a.safetensors")


class Writing:
    """A runtime whose language model writes a score, and a song of fifty frames."""

    def __init__(self) -> None:
        self.asked: list[GenerationRequest] = []

    async def generate_text(self, clip: Recipe, request: GenerationRequest) -> str:
        self.asked.append(request)
        return "X:1"

    async def write_song(self, clip: Recipe, request: GenerationRequest) -> Conditioning:
        self.asked.append(request)
        return [(torch.ones(1, 60, 16), {"yue2_frames": 50})]


async def music(runtime: Any, abc: str) -> Any:
    return await yue2_generate_music(CLIP, "pop", "la", abc, 3, "melody", 4.0, 1.0, 0.9, 40, 1.2, runtime=runtime)


async def test_a_score_is_asked_for_by_its_mode() -> None:
    runtime: Any = Writing()
    assert await yue2_generate_abc(CLIP, "pop", "la", 3, "full", 100, runtime=runtime) == "X:1"
    [request] = runtime.asked
    assert request.text == f"{SCORED['full']}\n[Tags]\npop\n[Lyrics]\nla\n"
    assert (request.score, request.max_tokens, request.sampling.penalty_window) == (None, 100, 100)


async def test_a_song_is_as_long_as_it_was_written_and_without_a_score_it_is_guided() -> None:
    runtime: Any = Writing()
    _, seconds = await music(runtime, "X:1")
    assert seconds == 2.0
    await music(runtime, " \n")
    scored, alone = runtime.asked
    assert (scored.score, scored.guidance.away_from, scored.guidance.scale) == ("X:1", SCORED["melody"], 1.0)
    assert (alone.score, alone.guidance.away_from, alone.guidance.scale) == ("", UNSCORED, 1.01)
    assert (scored.max_tokens, scored.sampling.penalty_window, scored.sampling.seed) == (100, 50, 3)


def test_empty_latents_are_as_many_as_frames() -> None:
    latent = empty_yue2_latent_audio(2.0, 2)
    assert latent["samples"].shape == (2, 64, 50)
    assert empty_yue2_latent_audio(0.01, 1)["samples"].shape == (1, 64, 1)
