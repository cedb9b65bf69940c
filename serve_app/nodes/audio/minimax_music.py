"""The nodes of MiniMax Music 3: its language model writes a song of a caption and lyrics. Source: MiniMax 2026."""

from __future__ import annotations

import re
from typing import Annotated

import torch

from serve_app.errors import NodeError
from serve_app.execution.size import allow
from serve_app.nodes.declare import node
from serve_app.nodes.inputs import Float, Int, Text
from serve_app.nodes.sockets import CLIP, CONDITIONING, FLOAT, LATENT, RUNTIME
from serve_app.values import GenerationRequest, TextGuidance, TokenSampling

FRAMES_A_SECOND, MOST_FRAMES = 25, 9000
SAMPLES = 512
_SPECIAL = re.compile(r"<\|([^|]*)\|>")
_PART = re.compile(r"\s*(\[[^\]]+\])\s*")
_HEADING, _BULLET = re.compile(r"^\s{0,3}#{1,6}\s+"), re.compile(r"^\s*[*+-]\s+")
_BOLD, _ITALIC = re.compile(r"\*\*([^*]+)\*\*"), re.compile(r"(?<!\*)\*([^*\n]+)\*(?!\*)")
_RULE = re.compile(r"^\s*[-*_]{3,}\s*$", re.MULTILINE)


def plain(caption: str) -> str:
    """Return a caption without the marks of Markdown, and "<|a b|>" as "a is b"."""
    lines = []
    for line in _SPECIAL.sub(lambda found: " is ".join(found[1].split(None, 1)).strip(), caption).splitlines():
        bare = _BULLET.sub("", _HEADING.sub("", line))
        while (fewer := _BOLD.sub(r"\1", bare)) != bare:
            bare = fewer
        lines.append(_ITALIC.sub(r"\1", bare).rstrip())
    text = _RULE.sub("", "\n".join(lines)).replace("• ", "").replace("    ", "")
    return re.sub(r"\n{2,}", "\n", text)


def parts(lyrics: str) -> str:
    """Return lyrics with the names of their parts, as "[Verse]", in small letters and lines of their own."""
    lines = [part.lower() if part.startswith("[") else part for part in _PART.split(lyrics) if part]
    return "[start]\n" + "\n".join(lines).replace(" ^ ", "\n")


def prompted(caption: str, lyrics: str) -> str:
    """Return what the language model continues."""
    return (
        f"<|im_start|><|caption_start|>{plain(caption)}<|caption_end|><|lyrics_start|>{parts(lyrics)}"
        "<|lyrics_end|><|im_end|><|audio_start|>"
    )


def frames_of(seconds: float) -> int:
    """Return the frames of a length, at least one."""
    return min(MOST_FRAMES, max(1, round(seconds * FRAMES_A_SECOND)))


@node(
    "MiniMaxMusic3TextEncode",
    "MiniMax Music3 Text Encode",
    category="model/conditioning/minimax music",
    description="Has MiniMax Music 3's language model write the song that the diffusion model makes sound.",
    return_names=("CONDITIONING", "seconds"),
)
async def minimax_music3_text_encode(
    clip: CLIP,
    caption: Annotated[str, Text(multiline=True, dynamicPrompts=True)],
    lyrics: Annotated[str, Text(multiline=True, dynamicPrompts=True)],
    seed: Annotated[int, Int(0, min=0, max=0xFFFFFFFFFFFFFFFF, control_after_generate=True)],
    max_duration: Annotated[
        float,
        Float(
            120.0,
            min=0.04,
            max=MOST_FRAMES / FRAMES_A_SECOND,
            step=0.04,
            tooltip="The longest that the song may be, in seconds; the model may end it before.",
        ),
    ],
    cfg_scale: Annotated[float, Float(1.5, min=0.0, max=100.0, step=0.1, round=0.01, advanced=True)],
    top_k: Annotated[int, Int(50, min=1, max=16384, advanced=True)],
    runtime: RUNTIME,
) -> tuple[CONDITIONING, FLOAT]:
    """A song written by the language model. Return its states, and its length.

    Errors: NodeError for a song that ended before it began.
    """
    frames = frames_of(max_duration)
    sampling, guidance = TokenSampling(top_k=top_k, seed=seed), TextGuidance("", cfg_scale)
    # The frame before the song's beginning is written too.
    request = GenerationRequest(prompted(caption, lyrics), frames + 1, sampling, guidance=guidance)
    [(states, _)] = await runtime.write_song(clip, request)
    if not states.shape[1]:
        raise NodeError("MiniMax Music 3 ended the song before its first frame; another seed may give one")
    scale = torch.ones(1, 1, 1, dtype=states.dtype)
    return [(states, {"conditioning_scale": scale})], states.shape[1] / FRAMES_A_SECOND


@node(
    "EmptyMiniMaxMusic3LatentAudio",
    "Empty MiniMax Music3 Latent Audio",
    category="model/latent/minimax music",
    description="Empty latents of a song of MiniMax Music 3.",
)
def empty_minimax_music3_latent_audio(
    seconds: Annotated[float, Float(120.0, min=0.04, max=MOST_FRAMES / FRAMES_A_SECOND, step=0.04)],
    batch_size: Annotated[int, Int(1, min=1, max=4096)],
) -> LATENT:
    """Empty latents of a sound. Return as many as MiniMax Music 3 has; another model converts them."""
    # Frames are counted at 24 kHz, and the sound is at 44.1.
    count = max(1, int(frames_of(seconds) * 44100 / 24000 * 960 / SAMPLES))
    allow(batch_size, 128, count)
    return {"samples": torch.zeros(batch_size, 128, count), "type": "audio", "downscale_ratio_temporal": SAMPLES}
