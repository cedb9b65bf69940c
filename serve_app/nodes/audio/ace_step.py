"""The nodes of ACE-Step 1.5: songs are described to it, their lyrics written, and a language model plans their sound.

What the models read is as they were trained. Source: Gong et al. 2026, arXiv:2602.00744.
"""

from __future__ import annotations

import re
from math import ceil
from typing import Annotated

import torch

from serve_app.execution.size import allow
from serve_app.nodes.declare import node
from serve_app.nodes.inputs import Bool, Choice, Combo, Float, Int, Text
from serve_app.nodes.sockets import CLIP, CONDITIONING, LATENT, RUNTIME
from serve_app.sampling.guidance.conditioning import with_options
from serve_app.values import GenerationRequest, SongText, TextGuidance, TokenSampling

RATE, SAMPLES, SAMPLES_AT_44K = 48000, 1920, 1764
"""Samples of a second and of a latent; of a latent at 44.1 kHz, by which other models' empty ones are converted."""
CODES_A_SECOND = 5
_LANGUAGES = (
    *("ar", "az", "bg", "bn", "ca", "cs", "da", "de", "el", "en", "es", "fa", "fi", "fr", "he", "hi", "hr", "ht", "hu"),
    *("id", "is", "it", "ja", "ko", "la", "lt", "ms", "ne", "nl", "no", "pa", "pl", "pt", "ro", "ru", "sa", "sk", "sr"),
    *("sv", "sw", "ta", "te", "th", "tl", "tr", "uk", "ur", "vi", "yue", "zh", "unknown"),
)
_ROOTS = ("C", "C#", "Db", "D", "D#", "Eb", "E", "F", "F#", "Gb", "G", "G#", "Ab", "A", "A#", "Bb", "B")
_KEYS = tuple(f"{root} {quality}" for quality in ("major", "minor") for root in _ROOTS)
_TASK = "# Instruction\nGenerate audio semantic tokens based on the given conditions:\n\n"
_END = "<|endoftext|>"
_CODE = re.compile(r"<\|audio_code_(\d+)\|>")


def described(tags: str, bpm: int, timesignature: str, keyscale: str, seconds: int) -> str:
    """Return the description of a song as the text encoder reads it."""
    facts = f"- bpm: {bpm}\n- timesignature: {timesignature}\n- keyscale: {keyscale}\n- duration: {seconds} seconds"
    return f"{_TASK}# Caption\n{tags.strip()}\n\n# Metas\n{facts}\n{_END}\n{_END}"


def planned(tags: str, lyrics: str, thought: str) -> str:
    """Return what the language model continues by codes. thought: what it is to know of the song; "": nothing."""
    return (
        f"<|im_start|>system\n{_TASK}<|im_end|>\n<|im_start|>user\n# Caption\n{tags.strip()}\n\n# Lyric\n"
        f"{lyrics.strip()}\n<|im_end|>\n<|im_start|>assistant\n<think>\n{thought}\n</think>\n\n<|im_end|>\n"
    )


@node("TextEncodeAceStepAudio1.5", category="model/conditioning/ace")
async def text_encode_ace_step_audio_15(
    clip: CLIP,
    tags: Annotated[str, Text(multiline=True, dynamicPrompts=True)],
    lyrics: Annotated[str, Text(multiline=True, dynamicPrompts=True)],
    seed: Annotated[int, Int(0, min=0, max=0xFFFFFFFFFFFFFFFF, control_after_generate=True)],
    bpm: Annotated[int, Int(120, min=10, max=300)],
    duration: Annotated[float, Float(120.0, min=0.0, max=2000.0, step=0.1)],
    timesignature: Annotated[str, Choice(["2", "3", "4", "6"])],
    language: Annotated[str, Combo(list(_LANGUAGES), default="en")],
    keyscale: Annotated[str, Choice(_KEYS)],
    generate_audio_codes: Annotated[
        bool,
        Bool(
            True,
            tooltip="Let the language model plan the sound in codes, which takes time and makes songs better. "
            "Turn it off where a sound is given as the reference.",
            advanced=True,
        ),
    ],
    cfg_scale: Annotated[float, Float(2.0, min=0.0, max=100.0, step=0.1, advanced=True)],
    temperature: Annotated[float, Float(0.85, min=0.0, max=2.0, step=0.01, advanced=True)],
    top_p: Annotated[float, Float(0.9, min=0.0, max=2000.0, step=0.01, advanced=True)],
    top_k: Annotated[int, Int(0, min=0, max=100, advanced=True)],
    min_p: Annotated[float, Float(0.0, min=0.0, max=1.0, step=0.001, advanced=True)],
    runtime: RUNTIME,
) -> CONDITIONING:
    """A song's description and lyrics to conditioning, with codes of its sound by a language model, five a second."""
    seconds = ceil(duration)
    text = described(tags, bpm, timesignature, keyscale, seconds)
    song = SongText(text, f"# Languages\n{language}\n\n# Lyric\n{lyrics}{_END}{_END}")
    encoded = await runtime.encode_text(clip, song)
    if not generate_audio_codes or not seconds:
        return encoded
    thought = f"bpm: {bpm}\nduration: {seconds}\nkeyscale: {keyscale}\ntimesignature: {timesignature}"
    sampling = TokenSampling(temperature, top_k, top_p, min_p, seed=seed)
    guidance = TextGuidance(planned(tags, lyrics, ""), cfg_scale)
    request = GenerationRequest(planned(tags, lyrics, thought), seconds * CODES_A_SECOND, sampling, guidance=guidance)
    written = await runtime.generate_text(clip, request)
    return with_options(encoded, audio_codes=[[int(code) for code in _CODE.findall(written)]])


@node("EmptyAceStep1.5LatentAudio", "Empty Ace Step 1.5 Latent Audio", category="model/latent/ace")
def empty_ace_step_15_latent_audio(
    seconds: Annotated[float, Float(120.0, min=1.0, max=1000.0, step=0.01)],
    batch_size: Annotated[int, Int(1, min=1, max=4096)],
) -> LATENT:
    """Empty latents of a sound. Return as many as ACE-Step 1.5 has; another model converts them."""
    shape = batch_size, 64, round(seconds * RATE / SAMPLES)
    allow(*shape)
    return {"samples": torch.zeros(shape), "type": "audio", "downscale_ratio_temporal": SAMPLES_AT_44K}


@node("ReferenceTimbreAudio", "Set Reference Audio", category="model/conditioning", experimental=True)
def reference_timbre_audio(conditioning: CONDITIONING, latent: LATENT | None = None) -> CONDITIONING:
    """The sound that a song is to be like, in place of codes; of several the last counts."""
    if latent is None:
        return conditioning
    name = "reference_audio_timbre_latents"
    return [(cond, {**said, name: [*said.get(name, ()), latent["samples"]]}) for cond, said in conditioning]
