"""The syntax of prompts: weights, escapes, embeddings; and how tokens fill chunks of a text encoder's length.

`(a:1.3)` weighs a, `(a)` multiplies the weight around it by 1.1, brackets nest, a backslash before a bracket makes it
a letter, `embedding:name` stands for vectors of its own. Source: ComfyUI's documented syntax. Knows no model.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, TypeAlias

from serve_app.models.tokenizer import END, START, token_ids

if TYPE_CHECKING:
    from torch import Tensor

Token: TypeAlias = "int | Tensor"
"""A number of the vocabulary, or a vector (D,) that takes a token's place."""

Chunk: TypeAlias = list[tuple[Token, float]]
"""Tokens with weights, exactly as many as the encoder takes, start and end tokens included."""

EmbeddingLookup: TypeAlias = "Callable[[str], Sequence[Tensor] | None]"
"""From an embedding's name to its vectors (D,), or None if there is none of that name."""

_BRACKET_FACTOR = 1.1
_WHOLE_BELOW = 8
"""A run of tokens shorter than this is moved to the next chunk rather than split over two."""

_ESCAPES = {"\\(": "\x01", "\\)": "\x02"}
_EMBEDDING = "embedding:"


def weighted(text: str) -> list[tuple[str, float]]:
    """Return the text's pieces with their weights, escapes undone. A bracket that does not close is a letter."""
    for written, letter in _ESCAPES.items():
        text = text.replace(written, letter)
    return list(_weighted(text, 1.0))


def chunks(text: str, length: int, embedding: EmbeddingLookup, padding: int = END) -> list[Chunk]:
    """Return the text as one or more chunks of `length` tokens each. padding: the token after the end token."""
    runs = [[(token, weight) for token in run] for piece, weight in weighted(text) for run in _runs(piece, embedding)]
    room = length - 2
    filled: list[Chunk] = [[]]
    for run in runs:
        rest = run
        while len(rest) > (left := room - len(filled[-1])):
            if len(rest) >= _WHOLE_BELOW:
                filled[-1] += rest[:left]
                rest = rest[left:]
            filled.append([])
        filled[-1] += rest
    return [_chunk(tokens, length, padding) for tokens in filled]


def empty_chunk(length: int, padding: int = END) -> Chunk:
    """Return the chunk of the empty text."""
    return _chunk([], length, padding)


def _chunk(tokens: Chunk, length: int, padding: int) -> Chunk:
    return [(START, 1.0), *tokens, (END, 1.0), *[(padding, 1.0)] * (length - 2 - len(tokens))]


def _weighted(text: str, weight: float) -> Iterator[tuple[str, float]]:
    for piece in _pieces(text):
        if not (len(piece) >= 2 and piece[0] == "(" and piece[-1] == ")"):
            yield piece.replace("\x01", "(").replace("\x02", ")"), weight
            continue
        inside, colon, number = piece[1:-1].rpartition(":")
        if colon and inside and (given := _number(number)) is not None:
            yield from _weighted(inside, given)
        else:
            yield from _weighted(piece[1:-1], weight * _BRACKET_FACTOR)


def _pieces(text: str) -> Iterator[str]:
    """Cut at outermost brackets, which stay on their pieces. A stray closing bracket binds the next opening one."""
    depth = start = 0
    for at, char in enumerate(text):
        if char == "(":
            if depth == 0 and at > start:
                yield text[start:at]
                start = at
            depth += 1
        elif char == ")":
            depth -= 1
            if depth == 0:
                yield text[start : at + 1]
                start = at + 1
    if start < len(text):
        yield text[start:]


def _number(text: str) -> float | None:
    try:
        return float(text)
    except ValueError:
        return None


def _runs(piece: str, embedding: EmbeddingLookup) -> Iterator[Sequence[Token]]:
    """Yield runs of tokens that belong together: an embedding's vectors, or the text up to the next embedding."""
    first, *others = re.split(rf"[ \n]{_EMBEDDING}", piece)
    for part in (first, *(_EMBEDDING + other for other in others)):
        if not part.startswith(_EMBEDDING) or not (words := part.removeprefix(_EMBEDDING).split()):
            yield token_ids(part)
            continue
        name, rest = words[0], " ".join(words[1:])
        vectors = embedding(name)
        if vectors is None and (bare := name.strip(",")) != name:
            vectors, rest = embedding(bare), f"{name[len(bare) :]} {rest}"
        if vectors is not None:
            yield vectors
        yield token_ids(rest)
