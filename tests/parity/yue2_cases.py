"""Small networks of YuE 2, and what they are asked, here and beside ComfyUI's layers."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from tests.parity.dit_cases import drawn

SIZES: dict[str, Any] = {
    "vocab_size": 184704,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
}
HEAD, PLACES = 16, 120
KEPT = SIZES["num_hidden_layers"] * 2 * SIZES["num_key_value_heads"] * HEAD
"""Numbers of a token's keys and values."""
CHUNKS = ((0, 7, 0, 11), (7, 12, 11, 20))
"""Parts of a song, whose keys and values are drawn."""
LEVELS = (0.3, 0.9)
WIDTH, MULTIPLES, STRIDES = 2, (1, 2, 4, 8, 16, 32), (2, 2, 4, 4, 5, 6)
"""Of the autoencoder."""
STYLE, LYRICS, ABC = "b c d e", "[Verse] f g h", "a b c a"
MODES = {"full": ABC, "melody": ABC, "off": ""}
"""Scores that music is written to, by the mode."""
SCORE_TOKENS, SONG_FRAMES = 40, 12
SAMPLING: dict[str, Any] = {"temperature": 1.0, "top_p": 0.95, "top_k": 100, "repetition_penalty": 1.2}
SCORE_SAMPLING: dict[str, Any] = {"temperature": 0.7, "top_p": 0.9, "top_k": 30, "repetition_penalty": 1.3}
SEED, STEPS, CFG = 7, 3, 1.7
RUNS = ("dpm_2|sgm_uniform|1.0", "euler_ancestral|normal|0.7")
"""Sampler, schedule and denoise."""


def weights(shapes: Mapping[str, Any]) -> dict[str, Tensor]:
    """Return weights of these names and shapes; what is divided by is not near zero."""
    made = {name: drawn(name, shape) for name, shape in shapes.items()}
    for name, shape in shapes.items():
        if name.endswith(("weight_g", "original0")):
            made[name] = torch.full(tuple(shape), 0.8)
    return made


def tokenizer_json() -> str:
    """Return a small tokeniser, which the file of the language model has."""
    words = ["?", *"abcdefgh", "[", "]", "Verse", "Tags", "Lyrics", "Generate", "music", "melody", "conditions"]
    whole = {
        "version": "1.0",
        "added_tokens": [],
        "pre_tokenizer": {"type": "Whitespace"},
        "model": {"type": "WordLevel", "vocab": {word: i for i, word in enumerate(words)}, "unk_token": "?"},
    }
    return json.dumps(whole)


def file(keys: Mapping[str, Any]) -> dict[str, Tensor]:
    """Return a checkpoint as published, of all parts."""
    prefixes = {"net": "model.diffusion_model.", "text": "text_encoders.model.", "vae": "vae."}
    parts = {part: weights(keys[part]) for part in prefixes}
    made = {prefix + name: tensor for part, prefix in prefixes.items() for name, tensor in parts[part].items()}
    for i, letter in enumerate("gv"):
        made = {name.replace(f"parametrizations.weight.original{i}", f"weight_{letter}"): t for name, t in made.items()}
    vocabulary = torch.tensor(list(tokenizer_json().encode()), dtype=torch.uint8)
    return made | {"text_encoders.yue2_tokenizer_json": vocabulary}
