"""Tokenisers published as SentencePiece models, which text encoders' files often contain.

Source: Kudo and Richardson 2018, arXiv:1808.06226. The library is an optional dependency.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from functools import lru_cache
from typing import Any

from serve_app.errors import ModelFileError
from serve_app.models.tokenizers import Tokenizer
from serve_app.models.tokenizers.vocabularies import UserFile

_KEPT = 4
"""Number of cached models. The largest takes some 100 MB."""


def sentence_pieces(model: bytes, special: Mapping[str, int] | None = None) -> Tokenizer:
    """Return the tokeniser of a model. special: further tokens with their ids.

    A text with special tokens loses its first token, as in ComfyUI, which takes that for the mark of a text's start.
    Errors: ModelFileError if the library is not installed or cannot read the model.
    """
    processor = _processor(model)
    known = special or {}
    divider = re.compile("(" + "|".join(map(re.escape, known)) + ")") if known else None

    def ids(text: str) -> list[int]:
        parts = list(_parts(text, divider))
        found = [number for part in parts for number in _ids(processor, part, known)]
        return found[1:] if known.keys() & set(parts) else found

    def text(numbers: Sequence[int]) -> str:
        decoded: str = processor.decode([number for number in numbers if number not in known.values()])
        return decoded

    return Tokenizer(ids, text)


def _parts(text: str, divider: re.Pattern[str] | None) -> Iterator[str]:
    yield from (part for part in divider.split(text) if part) if divider is not None else (text,)


def _ids(processor: Any, part: str, special: Mapping[str, int]) -> list[int]:
    if part in special:
        return [special[part]]
    found: list[int] = processor.encode(part, add_bos=False, add_eos=False)
    return found


@lru_cache(_KEPT)
def _processor(model: bytes) -> Any:
    try:
        from sentencepiece import SentencePieceProcessor
    except ImportError as error:
        raise ModelFileError(
            "the tokeniser of this text encoder needs the package 'sentencepiece': pip install 'serve-app[dit]'"
        ) from error
    try:
        return SentencePieceProcessor(model_proto=model)
    except RuntimeError as error:
        raise ModelFileError(f"the text encoder's SentencePiece model cannot be read: {error}") from error


def brought_pieces(brought: bytes | None, encoder: str, file: str, user_file: UserFile) -> bytes:
    """Return the model in a text encoder's file, else in the user's file. Errors: ModelFileError without both."""
    if brought is not None:
        return brought
    if (path := user_file(file)) is not None:
        return path.read_bytes()
    raise ModelFileError(
        f"the text encoder is {encoder}, but its file holds no 'spiece_model', its vocabulary: use a file that ComfyUI "
        f"publishes, or put '{file}' into models/text_encoders"
    )
