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
    return list(_weighted(text))


def chunks(text: str, length: int, embedding: EmbeddingLookup, padding: int = END) -> list[Chunk]:
    """Return the text as one or more chunks of `length` tokens each. padding: the token after the end token."""
    runs = [[(token, weight) for token in run] for piece, weight in weighted(text) for run in _runs(piece, embedding)]
    room = length - 2
    filled: list[Chunk] = [[]]
    for run in runs:
        at = 0
        while len(run) - at > (left := room - len(filled[-1])):
            if len(run) - at >= _WHOLE_BELOW:
                filled[-1] += run[at : at + left]
                at += left
            filled.append([])
        filled[-1] += run[at:]
    return [_chunk(tokens, length, padding) for tokens in filled]


def empty_chunk(length: int, padding: int = END) -> Chunk:
    """Return the chunk of the empty text."""
    return _chunk([], length, padding)


def _chunk(tokens: Chunk, length: int, padding: int) -> Chunk:
    return [(START, 1.0), *tokens, (END, 1.0), *[(padding, 1.0)] * (length - 2 - len(tokens))]


def _weighted(text: str) -> Iterator[tuple[str, float]]:
    """Yield the pieces in time linear in the text, however deep its brackets nest."""
    text, closing, before = _brackets(text)
    left = [(0, len(text), 1.0)]
    while left:
        start, end, weight = left.pop()
        if start >= end:
            continue
        if text[start] != "(":
            opened = text.find("(", start, end)
            piece_end = end if opened < 0 else opened
            yield _letters(text[start:piece_end]), weight
            left.append((piece_end, end, weight))
            continue
        close = closing.get(start, end)
        if close < end:
            left.append((close + 1, end, weight))
        elif text[end - 1] == ")":  # this bracket has no end, so that of an inner one is taken for it
            close = end - 1
        else:
            yield _letters(text[start:end]), weight
            continue
        left.append(_inside(text, start + 1, close, max(start, before[close]) + 1, weight))


def _letters(piece: str) -> str:
    return piece.replace("\x01", "(").replace("\x02", ")")


def _brackets(text: str) -> tuple[str, dict[int, int], dict[int, int]]:
    """Return the text with stray closing brackets, and the opening ones that they bind, as letters; and by position
    which bracket closes each, and which stands before each that closes one."""
    closing: dict[int, int] = {}
    before: dict[int, int] = {}
    opened: list[int] = []
    letters: dict[int, str] = {}
    strays, last = 0, -1
    for found in re.finditer(r"[()]", text):
        at = found.start()
        if found[0] == "(" and not strays:
            opened.append(at)
        elif found[0] == "(":
            strays -= 1
            letters[at] = "\x01"
        elif opened:
            closing[opened.pop()] = at
            before[at] = last
        else:
            strays += 1
            letters[at] = "\x02"
        last = at
    if letters:
        text = "".join(letters.get(at, char) for at, char in enumerate(text))
    return text, closing, before


def _inside(text: str, start: int, end: int, tail: int, weight: float) -> tuple[int, int, float]:
    """Return what a bracket holds, without its number, and with the weight it gives. tail: behind its last bracket."""
    _, colon, number = text[tail:end].rpartition(":")
    colon_at = end - len(number) - 1
    if colon and colon_at > start and (given := _number(number)) is not None:
        return start, colon_at, given
    return start, end, weight * _BRACKET_FACTOR


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
