"""The nodes of YuE 2: a language model writes a song's score, and then its sound. Source: M·A·P 2026 (YuE 2)."""

from __future__ import annotations

from typing import Annotated

import torch

from serve_app.execution.size import allow
from serve_app.nodes.declare import node
from serve_app.nodes.inputs import Choice, Float, Int, Text
from serve_app.nodes.sockets import CLIP, CONDITIONING, FLOAT, LATENT, RUNTIME, STRING
from serve_app.values import GenerationRequest, TextGuidance, TokenSampling

FRAMES_A_SECOND, SAMPLES = 25, 1920
SCORED = {
    "full": "Generate a chord-annotated ABC transcription, then generate music with codec tokens from the given "
    "conditions.",
    "melody": "Generate a melody-only ABC transcription without chord symbols, then generate music with codec tokens "
    "from the given conditions.",
}
"""The instruction at the beginning of the prompt, by the kind of score."""
UNSCORED = "Generate music with codec tokens from the given conditions."
UNSCORED_GUIDANCE = 1.01
MUSIC_WINDOW = 50
"""The last codes of music that penalties count."""

Described = Annotated[str, Text(multiline=True, dynamicPrompts=True)]
Seed = Annotated[int, Int(0, min=0, max=0xFFFFFFFFFFFFFFFF, control_after_generate=True)]
Mode = Annotated[
    str,
    Choice(list(SCORED), tooltip="full: the melody and chords; melody: the melody alone, which is better for covers."),
]


def prompted(instruction: str, style: str, lyrics: str) -> str:
    """Return what the language model continues."""
    return f"{instruction}\n[Tags]\n{style}\n[Lyrics]\n{lyrics}\n"


@node(
    "YuE2GenerateABC",
    "YuE2 Generate ABC",
    category="model/conditioning/yue2",
    description="Has YuE 2's language model write the score of a song, in ABC notation, for YuE2 Generate Music.",
    return_names=("abc",),
)
async def yue2_generate_abc(
    clip: CLIP,
    style: Described,
    lyrics: Described,
    seed: Seed,
    mode: Mode,
    max_abc_tokens: Annotated[int, Int(8192, min=1, max=20000, advanced=True)],
    temperature: Annotated[float, Float(0.7, min=0.0, max=5.0, step=0.05, advanced=True)] = 0.7,
    top_p: Annotated[float, Float(0.9, min=0.01, max=1.0, step=0.01, advanced=True)] = 0.9,
    top_k: Annotated[int, Int(30, min=1, max=32768, advanced=True)] = 30,
    repetition_penalty: Annotated[float, Float(1.005, min=0.01, max=10.0, step=0.005, advanced=True)] = 1.005,
    penalty_window: Annotated[
        int, Int(100, min=1, max=20000, advanced=True, tooltip="The last tokens that the penalty counts.")
    ] = 100,
    *,
    runtime: RUNTIME,
) -> STRING:
    """The score of a song, at most 4,096 tokens with what it is written for."""
    sampling = TokenSampling(
        temperature, top_k, top_p, repetition_penalty=repetition_penalty, seed=seed, penalty_window=penalty_window
    )
    text, guidance = prompted(SCORED[mode], style, lyrics), TextGuidance(SCORED[mode], 1.0)
    return await runtime.generate_text(clip, GenerationRequest(text, max_abc_tokens, sampling, guidance=guidance))


@node(
    "YuE2GenerateMusic",
    "YuE2 Generate Music",
    category="model/conditioning/yue2",
    description="Has YuE 2's language model write the sound of a song in codes. Connect its seconds to Empty YuE2 "
    "Latent Audio. Without a score the mode does nothing.",
    return_names=("CONDITIONING", "seconds"),
)
async def yue2_generate_music(
    clip: CLIP,
    style: Described,
    lyrics: Described,
    abc: Annotated[str, Text("", multiline=True, tooltip="The score in ABC notation; empty for music without one.")],
    seed: Seed,
    mode: Mode,
    max_duration: Annotated[
        float,
        Float(
            360.0,
            min=0.04,
            max=900.0,
            step=0.04,
            tooltip="The longest that the song may be, in seconds, less after a long score; the model may end it "
            "before.",
        ),
    ],
    temperature: Annotated[float, Float(1.0, min=0.0, max=5.0, step=0.05, advanced=True)],
    top_p: Annotated[float, Float(0.95, min=0.01, max=1.0, step=0.01, advanced=True)],
    top_k: Annotated[int, Int(100, min=1, max=32768, advanced=True)],
    repetition_penalty: Annotated[float, Float(1.2, min=0.01, max=10.0, step=0.01, advanced=True)],
    runtime: RUNTIME,
) -> tuple[CONDITIONING, FLOAT]:
    """A song written by the language model. Return what it keeps of it, and its length."""
    score = abc if abc.strip() else ""
    instruction = SCORED[mode] if score else UNSCORED
    sampling = TokenSampling(
        temperature, top_k, top_p, repetition_penalty=repetition_penalty, seed=seed, penalty_window=MUSIC_WINDOW
    )
    guidance = TextGuidance(instruction, 1.0 if score else UNSCORED_GUIDANCE)
    frames = max(1, round(max_duration * FRAMES_A_SECOND))
    text = prompted(instruction, style, lyrics)
    song = await runtime.write_song(clip, GenerationRequest(text, frames, sampling, guidance=guidance, score=score))
    return song, song[0][1]["yue2_frames"] / FRAMES_A_SECOND


@node(
    "EmptyYuE2LatentAudio",
    "Empty YuE2 Latent Audio",
    category="model/latent/yue2",
    description="Empty latents of a song of YuE 2.",
)
def empty_yue2_latent_audio(
    seconds: Annotated[float, Float(120.0, min=0.04, max=1000.0, step=0.04)],
    batch_size: Annotated[int, Int(1, min=1, max=4096)],
) -> LATENT:
    """Empty latents of a sound. Return as many as YuE 2 has; another model converts them."""
    shape = batch_size, 64, max(1, round(seconds * FRAMES_A_SECOND))
    allow(*shape)
    return {"samples": torch.zeros(shape), "type": "audio", "downscale_ratio_temporal": SAMPLES}
