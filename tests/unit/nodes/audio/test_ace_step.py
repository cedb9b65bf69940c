"""ACE-Step's nodes without a model."""

from __future__ import annotations

from typing import Any

import torch
import yaml

from serve_app.nodes.audio.ace_step import (
    described,
    empty_ace_step_15_latent_audio,
    planned,
    reference_timbre_audio,
    text_encode_ace_step_audio_15,
)
from serve_app.nodes.conditioning.encode import conditioning_zero_out
from serve_app.recipe.recipe import Recipe


def test_empty_latents_are_twenty_five_a_second() -> None:
    latent = empty_ace_step_15_latent_audio(2.5, 3)
    assert latent["samples"].shape == (3, 64, 62)
    assert latent["downscale_ratio_temporal"] == 1764


def test_references_are_kept_one_after_the_other_and_without_one_nothing_is_said() -> None:
    said = [(torch.ones(1, 2, 4), {"conditioning_lyrics": torch.ones(1, 3, 4)})]
    assert reference_timbre_audio(said) is said
    twice = said
    for value in (1.0, 2.0):
        twice = reference_timbre_audio(twice, {"samples": torch.full((1, 64, 5), value)})
    assert [float(one.mean()) for one in twice[0][1]["reference_audio_timbre_latents"]] == [1.0, 2.0]
    assert "reference_audio_timbre_latents" not in said[0][1]


def test_a_blank_conditioning_has_no_lyrics_either() -> None:
    [(cond, options)] = conditioning_zero_out([(torch.ones(1, 2, 4), {"conditioning_lyrics": torch.ones(1, 3, 4)})])
    assert not cond.any()
    assert not options["conditioning_lyrics"].any()


def test_what_the_models_read_names_all_that_is_known_of_a_song() -> None:
    facts = {"bpm": 95, "duration": 3, "keyscale": "C# minor", "timesignature": 4}
    thought = yaml.dump(facts, allow_unicode=True, sort_keys=True).strip()
    assert f"<think>\n{thought}\n</think>" in planned(
        " soul ", "la", "bpm: 95\nduration: 3\nkeyscale: C# minor\ntimesignature: 4"
    )
    assert "# Caption\nsoul\n\n# Lyric\nla\n<|im_end|>" in planned(" soul ", " la\n", "")
    assert "# Metas\n- bpm: 95\n- timesignature: 4\n- keyscale: C# minor\n- duration: 3 seconds\n" in described(
        " soul ", 95, "4", "C# minor", 3
    )


class Written:
    """A runtime whose language model is asked for nothing, or answers two codes."""

    def __init__(self) -> None:
        self.asked: list[object] = []

    async def encode_text(self, clip: object, text: object) -> list[tuple[torch.Tensor, dict[str, object]]]:
        self.asked.append(text)
        return [(torch.ones(1, 2, 4), {})]

    async def generate_text(self, clip: object, request: object) -> str:
        self.asked.append(request)
        return "<|audio_code_7|><|audio_code_63999|>"


async def test_codes_are_asked_for_five_a_second_where_they_are_wanted() -> None:
    given = {
        "seed": 3,
        "bpm": 95,
        "duration": 2.2,
        "timesignature": "4",
        "language": "en",
        "keyscale": "C major",
        "cfg_scale": 2.0,
        "temperature": 0.8,
        "top_p": 0.9,
        "top_k": 5,
        "min_p": 0.1,
    }
    clip = Recipe("clip", "text_encoders", "a.safetensors")
    for wanted in (True, False):
        runtime: Any = Written()
        told: Any = {**given, "generate_audio_codes": wanted}
        [(_, options)] = await text_encode_ace_step_audio_15(clip, "soul", "la", runtime=runtime, **told)
        assert len(runtime.asked) == 1 + wanted
        assert options == ({"audio_codes": [[7, 63999]]} if wanted else {})
        if wanted:
            request = runtime.asked[1]
            assert (request.max_tokens, request.guidance.scale) == (15, 2.0)
