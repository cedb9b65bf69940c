"""Small networks of ACE-Step 1.5, and what they are asked, here and in ComfyUI."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from tests.parity.dit_cases import drawn

TEXT = 48
"""Width of a text."""
NET: dict[str, Any] = {
    "audio_model": "ace1.5",
    "hidden_size": 96,
    "intermediate_size": 80,
    "num_heads": 16,
    "encoder_hidden_size": 64,
    "encoder_intermediate_size": 72,
    "encoder_num_heads": 8,
    "text_hidden_dim": TEXT,
    "num_dit_layers": 2,
    "num_lyric_layers": 2,
    "num_timbre_layers": 1,
    "num_tokenizer_layers": 1,
    "fsq_dim": 64,
}
"""ComfyUI's arguments of the network."""
LENGTH, REFERENCE = 303, 101
"""Latents of the sound that the network is asked about, which has more tokens than a window, and of another."""
CODES = tuple(range(7, 64000, 1300))
LEVELS = {"codes": 0.3, "alone": 0.9, "like": 0.5, "blank": 0.7}
"""The level at which the network is asked, by what it is told of the sound."""
WIDTH = 4
STRIDES = {"ace": (2, 4, 4, 6, 10), "open": (2, 4, 4, 8, 8)}
"""Of the autoencoders' networks."""
READER: dict[str, Any] = {"vocab_size": 151669, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2}
READER |= {"num_attention_heads": 2, "num_key_value_heads": 1}
WRITER: dict[str, Any] = {**READER, "vocab_size": 217204}
TAGS = " Neo-Soul: warm, (loose) drums \\(live\\)\n "
LYRICS = "\n[Verse]\nWe sing 歌 of it\n\n[Chorus]\nla la\n"
SONG: dict[str, Any] = {"bpm": 95, "duration": 2.2, "language": "en", "keyscale": "C# minor"}
SAMPLINGS: dict[str, dict[str, Any]] = {
    "drawn": {"cfg_scale": 2.0, "temperature": 0.85, "top_p": 0.9, "top_k": 0, "min_p": 0.0},
    "few": {"cfg_scale": 3.0, "temperature": 1.2, "top_p": 1.0, "top_k": 40, "min_p": 0.02},
    "alone": {"cfg_scale": 1.0, "temperature": 0.0, "top_p": 0.5, "top_k": 0, "min_p": 0.0},
}
SECONDS = 4.04
SEED, STEPS, CFG = 7, 3, 2.0
RUNS = ("euler|simple|1.0", "euler_ancestral|normal|0.7")
"""Sampler, schedule and denoise."""


def weights(shapes: Mapping[str, Any]) -> dict[str, Tensor]:
    """Return weights of these names and shapes; what is divided by is not near zero."""
    made = {name: drawn(name, shape) for name, shape in shapes.items()}
    for name, shape in shapes.items():
        if name.endswith(("weight_g", "original0")):
            made[name] = torch.full(tuple(shape), 0.8)
    return made
