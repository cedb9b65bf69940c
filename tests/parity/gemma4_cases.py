"""Small Gemma 4 and what they are asked: sizes by the names of ComfyUI's configurations, texts, generations.

Only the standard library and torch are imported here: the figures are made in ComfyUI's environment.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

TOKENS = 512
"""Tokens of the small models that write: images are vectors and not tokens to them."""
_TOWER = {
    "hidden_size": 32,
    "image_size": 896,
    "intermediate_size": 48,
    "num_attention_heads": 2,
    "num_hidden_layers": 2,
    "patch_size": 16,
    "head_dim": 16,
    "rms_norm_eps": 1e-6,
    "position_embedding_size": 512,
    "pooling_kernel_size": 3,
}
_BOTH: dict[str, Any] = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_attention_heads": 4,
    "head_dim": 16,
    "global_head_dim": 32,
}
SIZES: dict[str, dict[str, Any]] = {
    "E2B": {
        **_BOTH,
        "vocab_size": TOKENS,
        "num_hidden_layers": 10,
        "num_key_value_heads": 1,
        "num_kv_shared_layers": 5,
        "hidden_size_per_layer_input": 8,
        "vision_config": _TOWER,
        "audio_config": None,
    },
    "12B": {
        **_BOTH,
        "hidden_size": 16,
        "vocab_size": 262144,
        "num_hidden_layers": 6,
        "num_key_value_heads": 2,
        "vision_config": {
            "model_patch_size": 48,
            "patch_size": 16,
            "pooling_kernel_size": 3,
            "mm_embed_dim": 16,
            "mm_posemb_size": 32,
            "output_proj_dims": 16,
            "rms_norm_eps": 1e-6,
        },
        "audio_config": {"audio_samples_per_token": 64, "output_proj_dims": 64, "rms_norm_eps": 1e-6},
    },
}
"""Attributes of the configurations that differ from the published."""
PROJECTED = {"video": 24, "audio": 16}
"""How wide a text of each stream is."""
TEXTS = ("a fox", "", "a (red:1.2) fox \\(old\\), ünïcode 写一只狐狸 <|turn>user", "a long tale " * 120)
"""The last is longer than the window of most layers."""
USUAL = {"temperature": 0.7, "top_k": 64, "top_p": 0.95, "min_p": 0.05, "repetition_penalty": 1.05, "seed": 5}
VARIED = {**USUAL, "repetition_penalty": 3.0, "seed": 9}
_TURNS = "<|turn>system\nBe brief.<turn|>\n<|turn>user\n{}a fox<turn|>\n<|turn>model\n<|channel>final\n"


def _asked(text: str, sampling: Mapping[str, Any] | None = VARIED, **more: Any) -> dict[str, Any]:
    given = {"padded": False, "thinking": False, "template": True, "image": None, "tokens": 12}
    return {"text": text, "sampling": sampling, **given, **more}


GENERATIONS: dict[str, list[dict[str, Any]]] = {
    "E2B": [
        _asked("a fox", None),
        _asked("a fox", USUAL, tokens=24),
        _asked("a fox", thinking=True),
        _asked("a fox", template=False),
        _asked(_TURNS.format(""), padded=True),
        _asked("a fox " * 120, tokens=24),
        _asked("a fox", image=[40, 64]),
        _asked(_TURNS.format("<|image><|image|><image|>\n\n"), padded=True, image=[100, 30]),
    ],
    "12B": [_asked("a fox", padded=True), _asked("a hen", thinking=True, padded=True)],
}
"""What is generated: padded, as the loader's type ltxv has it; image: its height and width."""
_SPECIAL = {
    "<pad>": 0,
    "<eos>": 1,
    "<bos>": 2,
    "<|channel>": 100,
    "<channel|>": 101,
    "<|think|>": 98,
    "<|turn>": 105,
    "<turn|>": 106,
    "<|image>": 107,
    "<image|>": 108,
    "<|image|>": 258880,
}
_FIRST_BYTE = 200


def tokenizer() -> bytes:
    """Return a tokeniser's file that knows bytes, marks and no words."""
    letters = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [byte for byte in range(256) if byte not in letters]
    of_bytes = {byte: chr(byte) for byte in letters} | {byte: chr(256 + at) for at, byte in enumerate(others)}
    level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False}
    flags = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
    vocabulary = {letter: _FIRST_BYTE + byte for byte, letter in sorted(of_bytes.items())} | _SPECIAL
    made = {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [{"id": at, "content": mark, "special": True, **flags} for mark, at in _SPECIAL.items()],
        "normalizer": None,
        "pre_tokenizer": level,
        "post_processor": None,
        "decoder": level,
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": None,
            "continuing_subword_prefix": None,
            "end_of_word_suffix": None,
            "fuse_unk": False,
            "byte_fallback": False,
            "ignore_merges": False,
            "vocab": dict(sorted(vocabulary.items(), key=lambda item: item[1])),
            "merges": [],
        },
    }
    return json.dumps(made, ensure_ascii=False).encode()


def tokenizer_tensor() -> Tensor:
    """Return the tokeniser as a file's tensor."""
    return torch.frombuffer(bytearray(tokenizer()), dtype=torch.uint8)


def image(height: int, width: int) -> Tensor:
    """Return an image (1,H,W,3)."""
    return torch.rand(1, height, width, 3, generator=torch.Generator().manual_seed(height * width))
