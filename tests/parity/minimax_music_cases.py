"""Small networks of MiniMax Music 3, and what they are asked, here and in ComfyUI."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from tests.parity.dit_cases import drawn

STATE = 4096
"""Numbers of a state that the network reads, which ComfyUI knows as one."""
TOLD, WIDTH, INSIDE, LAYERS = 64, 128, 96, 2
FRAMES, LENGTH = 230, 740
"""Frames of a song, and latents, which are more than a window's."""
LEVELS = (0.3, 0.9)
FED, FIRST = 32, 48
"""Channels of the decoder of sounds."""
SIZES: dict[str, Any] = {
    "vocab_size": 64,
    "hidden_size": 64,
    "intermediate_size": 80,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "decoder_num_layers": 2,
    "decoder_intermediate_size": 72,
}
"""Of the language model."""
TOKENS = (151644, 151671, 9707, 1879, 151672, 151673, 14, 15, 16, 151674, 151645, 151669)
SONG_FRAMES = 6
SEED, STEPS, CFG = 7, 3, 1.7
RUNS = ("euler|simple|1.0", "euler_ancestral|normal|0.7")
"""Sampler, schedule and denoise."""
SECONDS = 1.2
TEXTS = (
    ("Lo-fi hip-hop, 78 BPM.", "[Verse]\nOne line\n[Chorus] two ^ three"),
    ("# Title\n\n* **Warm** and *soft*\n\n---\n<|tempo fast|> • a    b <|x|>\n", "no parts\n\n [Outro] \n la\n"),
)
"""Captions and lyrics."""
TILE, OVERLAP = 8, 2


def weights(shapes: Mapping[str, Any]) -> dict[str, Tensor]:
    """Return weights of these names and shapes; what is divided by is not near zero."""
    made = {name: drawn(name, shape) for name, shape in shapes.items()}
    for name, shape in shapes.items():
        if name.endswith(("weight_g", "original0")):
            made[name] = torch.full(tuple(shape), 0.8)
        if name.endswith("alpha"):
            made[name] = made[name].abs() + 0.5
        if name.endswith("inv_freq"):
            made[name] = 1.0 / 10000 ** (torch.arange(shape[0]).float() / shape[0])
    return made


def vae_file(shapes: Mapping[str, Any]) -> dict[str, Tensor]:
    """Return a decoder of sounds, its normed weights named by the older of torch's ways."""
    made = weights(shapes)
    for i, letter in enumerate("gv"):
        made = {name.replace(f"parametrizations.weight.original{i}", f"weight_{letter}"): t for name, t in made.items()}
    return made


def tokenizer_tensor() -> Tensor:
    """Return a small tokeniser, with the special tokens where the network has them."""
    special = {"<|im_start|>": 151644, "<|im_end|>": 151645, "<|audio_start|>": 151669, "<|caption_start|>": 151671}
    special |= {"<|caption_end|>": 151672, "<|lyrics_start|>": 151673, "<|lyrics_end|>": 151674}
    added = [
        {"id": number, "content": word, "single_word": False, "lstrip": False, "rstrip": False}
        | {"normalized": False, "special": True}
        for word, number in special.items()
    ]
    vocabulary = {letter: i for i, letter in enumerate("?abcdefgh")}
    whole = {
        "version": "1.0",
        "added_tokens": added,
        "pre_tokenizer": {"type": "Whitespace"},
        "model": {"type": "WordLevel", "vocab": vocabulary | special, "unk_token": "?"},
    }
    return torch.tensor(list(json.dumps(whole).encode()), dtype=torch.uint8)
