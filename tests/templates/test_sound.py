"""Templates of sounds alone over HTTP, with tiny files under the published names: saved, listed and read back."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import httpx
import pytest

from serve_app.execution.size import allow, bounds
from serve_app.media.loading import load_sound
from tests.templates.test_templates import prompt_of, ran

SECONDS = 3.0
SET = {"Float (Duration)": SECONDS, "Boolean (Enable_Reprompt)": False}
"""Values by the titles of the nodes that give them: templates' own sounds are longer."""
SCORE_TOKENS = 24
"""The most tokens of a score, where a language model writes one."""
LENGTHS = ("seconds", "duration", "max_duration")
"""Inputs of nodes that say them, where no node does."""
TYPES = {".mp3": "audio/mpeg", ".flac": "audio/flac"}
TEMPLATES = {
    "audio_stable_audio_3_medium": 44100,
    "audio_ace_step_1_5_checkpoint": 48000,
    "audio_minimax_music_3": 44100,
    "audio_yue2_text2music": 48000,
}
"""Templates and the rates of their sounds."""
USUAL = ("audio_stable_audio_3_medium", "audio_yue2_text2music")
"""A network that removes noise, and one that writes codes as well; tests/parity compares the others."""
AGAIN = {
    "audio_stable_audio_3_medium_base": 44100,
    **dict.fromkeys(("audio_ace_step_1_5_split", "audio_ace_step_1_5_split_4b"), 48000),
    **dict.fromkeys(("audio_ace_step1_5_xl_turbo", "audio_ace_step1_5_xl_base"), 48000),
    "audio_ace_step1_5_xl_sft": 48000,
}
"""Those that are like one of the others."""


def short_prompt(name: str) -> dict[str, Any]:
    """Return a template's workflow of a short sound."""
    prompt = prompt_of(name)
    for node in prompt.values():
        node["inputs"] |= {name: SECONDS for name in LENGTHS if isinstance(node["inputs"].get(name), int | float)}
        if "max_abc_tokens" in node["inputs"]:
            node["inputs"]["max_abc_tokens"] = SCORE_TOKENS
        if (title := node["_meta"]["title"]) in SET:
            node["inputs"]["value"] = SET[title]
    return prompt


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=() if name in USUAL else pytest.mark.long) for name in (*TEMPLATES, *AGAIN)]
)
async def test_a_template_makes_its_sound(name: str, tmp_path: Path) -> None:
    async with ran(short_prompt(name), tmp_path) as (client, outputs):
        [saved] = [sound for output in outputs.values() for sound in output.get("audio", ())]
        await listed(client, saved["filename"])
        file = await client.get("/api/view", params=saved)
    assert file.headers["content-type"] == TYPES[Path(saved["filename"]).suffix]
    waveform, rate = load_sound(file.content, "the file", bounds(), allow)
    assert rate == {**TEMPLATES, **AGAIN}[name]
    assert waveform.shape[:2] == (1, 2)
    # Whole latents, and an encoder fills the last packet up.
    assert abs(waveform.shape[2] / rate - SECONDS) < 0.2
    assert waveform.std() > 0.01, "it is silent"


async def listed(client: httpx.AsyncClient, filename: str) -> None:
    """Assert that the list of jobs shows the sound as the job's preview, and the job's own answer has it as output."""
    [job] = (await client.get("/api/jobs")).json()["jobs"]
    assert (job["preview_output"]["filename"], job["preview_output"]["mediaType"]) == (filename, "audio")
    whole = (await client.get(f"/api/jobs/{job['id']}")).json()
    assert filename in str(whole["outputs"])
