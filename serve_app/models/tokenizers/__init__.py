"""Tokenisers: from texts to token ids and back, one file for each.

Vocabularies come from installed packages or from the user's files. None is downloaded while the server runs: a missing
one is a `ModelFileError` that names the package to install.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeAlias

Tokenize: TypeAlias = Callable[[str], list[int]]
"""From a piece of text to its token ids, without start, end and padding."""


@dataclass(frozen=True, slots=True)
class Tokenizer:
    """A `Tokenize` that can also decode. decode: from token ids to text, without special tokens."""

    encode: Tokenize
    decode: Callable[[Sequence[int]], str]

    def __call__(self, text: str) -> list[int]:
        return self.encode(text)
