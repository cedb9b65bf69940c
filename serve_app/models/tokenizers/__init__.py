"""From texts to token ids and back, a file a tokeniser.

Vocabularies come from installed packages or from the user's files. None is fetched while the server runs: one that is
absent is a `ModelFileError` that names what to install.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeAlias

Tokenize: TypeAlias = Callable[[str], list[int]]
"""From a piece of text to its token ids, without any that start, end or pad a text."""


@dataclass(frozen=True, slots=True)
class Tokenizer:
    """A `Tokenize` that also knows the way back. decode: from token ids to text, without special tokens."""

    encode: Tokenize
    decode: Callable[[Sequence[int]], str]

    def __call__(self, text: str) -> list[int]:
        return self.encode(text)
