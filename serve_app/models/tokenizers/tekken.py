"""Mistral's tokeniser "tekken": 131,072 tokens, of which 1,000 are special; it is in text encoders' files."""

from __future__ import annotations

import base64
import json
from functools import lru_cache
from typing import Any

from serve_app.errors import ModelFileError
from serve_app.models.tokenizers import Tokenizer
from serve_app.models.tokenizers.byte_pairs import byte_pairs
from serve_app.models.tokenizers.vocabularies import UserFile

TOKENS, START = 131072, 1

_FILE = "tekken.json"
# ComfyUI splits words by this pattern, whatever the file has.
_WORD = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+"
    r"|\s+(?!\S)|\s+"
)


def tokenizer(brought: bytes | None, user_file: UserFile) -> Tokenizer:
    """Return the tokeniser. brought: the text encoder's file content. Errors: ModelFileError if it is missing."""
    if brought is None:
        path = user_file(_FILE)
        if path is None:
            raise ModelFileError(
                "the text encoder is Mistral 3, but its file holds no 'tekken_model', its vocabulary: use a file that "
                f"ComfyUI publishes, or put '{_FILE}' into models/text_encoders"
            )
        brought = path.read_bytes()
    return _read(brought)


@lru_cache(1)
def _read(data: bytes) -> Tokenizer:
    try:
        file: dict[str, Any] = json.loads(data)
        first: int = file["config"]["default_num_special_tokens"]
        count: int = file["config"]["default_vocab_size"] - first
        ranks = {base64.b64decode(w["token_bytes"]): w["rank"] for w in file["vocab"] if w["rank"] < count}
        special = {_text(word): word["rank"] for word in file["special_tokens"]}
    except (ValueError, KeyError, TypeError) as error:
        raise ModelFileError(f"the text encoder's 'tekken_model' cannot be read: {error!r}") from error
    return byte_pairs(ranks, _WORD, special, first=first)


def _text(word: dict[str, Any]) -> str:
    if "token_bytes" in word:
        return base64.b64decode(word["token_bytes"]).decode("utf-8", errors="replace")
    text: str = word["token_str"]
    return text
