"""The syntax of prompts: weights, escapes, embeddings; and how tokens fill chunks of a text encoder's length.

`(a:1.3)` sets a weight, `(a)` multiplies the current weight by 1.1, brackets nest, a backslash escapes a bracket,
`embedding:name` inserts an embedding's vectors. Text of one weight is tokenised by itself. Source: ComfyUI's documented
syntax. Knows no model.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, TypeAlias, TypeVar

from serve_app.models.tokenizers import Tokenize
from serve_app.models.tokenizers.clip import END, START, token_ids

if TYPE_CHECKING:
    from torch import Tensor

T = TypeVar("T")

Token: TypeAlias = "int | Tensor"
"""A number of the vocabulary, or a vector (D,) instead of one."""

Weighted: TypeAlias = list[tuple[Token, float]]
"""Tokens with their weights."""

Chunk: TypeAlias = Weighted
"""Exactly one input length of the encoder, start and end tokens included."""

EmbeddingLookup: TypeAlias = "Callable[[str], Sequence[Tensor] | None]"
"""From an embedding's name to its vectors (D,), or None if there is no such embedding."""

_BRACKET_FACTOR = 1.1
_WHOLE_BELOW = 8
"""A run of tokens shorter than this is moved to the next chunk rather than split over two."""

_ESCAPES = {"\\(": "\x01", "\\)": "\x02"}
_EMBEDDING = "embedding:"
_NEXT_EMBEDDING = re.compile(rf"(?<=\s){_EMBEDDING}")


def weighted(text: str) -> list[tuple[str, float]]:
    """Return the text's pieces with their weights, escapes undone. An unclosed bracket is a letter."""
    return list(_weighted(_marked(text)))


def runs(
    text: str, tokenize: Tokenize, embedding: EmbeddingLookup | None, *, weighs: bool = True
) -> Iterator[Weighted]:
    """Yield the tokens of a text in runs that stay together: an embedding's, or those up to the next embedding.

    embedding: None: no lookup. weighs: whether brackets are weights; else they are letters.
    """
    pieces = weighted(text) if weighs else [(_letters(_marked(text)), 1.0)]
    for piece, weight in pieces:
        for run in _runs(piece, tokenize, embedding):
            yield [(token, weight) for token in run]


def chunks(
    text: str, length: int, embedding: EmbeddingLookup, padding: int = END, *, weighs: bool = True
) -> list[Chunk]:
    """Return the text as one or more of CLIP's chunks of `length` tokens.

    padding: the token after the end token. weighs: as `runs`.
    """
    of_text = runs(text, token_ids, embedding, weighs=weighs)
    return [_chunk(tokens, length, padding) for tokens in filled(of_text, length - 2)]


def numbered_chunks(
    text: str, length: int, embedding: EmbeddingLookup, padding: int = END
) -> list[list[tuple[Token, float, int]]]:
    """Return the text's chunks with the number of each token's run, counted from 1; 0 for special tokens."""
    numbered = [
        [(token, weight, number) for token, weight in run]
        for number, run in enumerate(runs(text, token_ids, embedding), 1)
    ]
    return [
        [(START, 1.0, 0), *tokens, (END, 1.0, 0), *[(padding, 1.0, 0)] * (length - 2 - len(tokens))]
        for tokens in filled(numbered, length - 2)
    ]


def filled(of_text: Iterable[list[T]], room: int) -> list[list[T]]:
    """Return the runs of a text packed into lists of at most `room` tokens, at least one list."""
    lists: list[list[T]] = [[]]
    for run in of_text:
        at = 0
        while len(run) - at > (left := room - len(lists[-1])):
            if len(run) - at >= _WHOLE_BELOW:
                lists[-1] += run[at : at + left]
                at += left
            lists.append([])
        lists[-1] += run[at:]
    return lists


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
        elif text[end - 1] == ")":  # This bracket never closes, so it takes the end of an inner one.
            close = end - 1
        else:
            yield _letters(text[start:end]), weight
            continue
        left.append(_inside(text, start + 1, close, max(start, before[close]) + 1, weight))


def _marked(text: str) -> str:
    """Return the text with marks for escaped brackets."""
    for written, letter in _ESCAPES.items():
        text = text.replace(written, letter)
    return text


def _letters(piece: str) -> str:
    return piece.replace("\x01", "(").replace("\x02", ")")


def _brackets(text: str) -> tuple[str, dict[int, int], dict[int, int]]:
    """Return the text with unmatched brackets as letters; and by position the closing of each, and its predecessor."""
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
    """Return a bracket's content, without its number, and its weight. tail: the text after its last bracket."""
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


def _runs(piece: str, tokenize: Tokenize, embedding: EmbeddingLookup | None) -> Iterator[Sequence[Token]]:
    first, *others = _NEXT_EMBEDDING.split(piece)
    for part in (first, *(_EMBEDDING + other for other in others)):
        words = part.removeprefix(_EMBEDDING).split()
        if embedding is None or not words or not part.startswith(_EMBEDDING):
            yield tokenize(part)
            continue
        # A name ends at a space, or where markup begins.
        name, markup = re.fullmatch(r"([^<\[]*)(.*)", words[0], re.DOTALL).groups()  # type: ignore[union-attr]
        rest = " ".join(filter(None, (markup, *words[1:])))
        vectors = embedding(name)
        if vectors is None and (bare := name.strip(",")) != name:
            vectors, rest = embedding(bare), f"{name[len(bare) :]} {rest}"
        if vectors is not None:
            yield vectors
        yield tokenize(rest)
