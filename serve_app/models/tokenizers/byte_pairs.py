"""Byte-pair encoding of UTF-8 bytes, as in most language models, from a vocabulary of ranked byte strings.

Source: Sennrich et al. 2016, arXiv:1508.07909; Radford et al. 2019 for bytes. The lower a byte string's rank, the
earlier its two parts are merged, so the ranks determine the merges.
"""

from __future__ import annotations

import base64
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path

import tokenizers
from tokenizers import AddedToken, Regex, decoders, normalizers, pre_tokenizers
from tokenizers.models import BPE

from serve_app.models.tokenizers import Tokenizer


def byte_pairs(
    ranks: Mapping[bytes, int],
    pattern: str,
    special: Mapping[str, int],
    *,
    first: int = 0,
    composed: bool = False,
    decoded: Collection[str] = (),
) -> Tokenizer:
    """Return the tokeniser. pattern: of a word; special: special tokens with their ids.

    first: the id of rank 0. composed: texts are normalised to NFC. decoded: special tokens that are kept in decoded
    text.
    """
    letters = byte_letters()
    spelled = {word: "".join(letters[byte] for byte in word) for word in ranks}
    tokenizer = tokenizers.Tokenizer(
        BPE(
            vocab={spelled[word]: first + rank for word, rank in ranks.items()} | dict(special),
            merges=[(spelled[left], spelled[right]) for left, right in _merges(ranks)],
        )
    )
    if composed:
        tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(pattern), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.add_tokens([AddedToken(word, normalized=False, special=word not in decoded) for word in special])
    tokenizer.decoder = decoders.ByteLevel()
    return of_library(tokenizer)


def of_library(tokenizer: tokenizers.Tokenizer) -> Tokenizer:
    """Wrap a tokeniser of the library, without the special tokens that it adds around a text."""

    def ids(text: str) -> list[int]:
        found: list[int] = tokenizer.encode(text, add_special_tokens=False).ids
        return found

    def text(numbers: Sequence[int]) -> str:
        decoded: str = tokenizer.decode(list(numbers), skip_special_tokens=True)
        return decoded

    return Tokenizer(ids, text)


def read_ranks(path: Path) -> dict[bytes, int]:
    """Return the ranks in a file whose lines are a byte string in base64 and its rank."""
    lines = (line.split() for line in path.read_bytes().splitlines() if line)
    return {base64.b64decode(word): int(rank) for word, rank in lines}


def byte_letters() -> dict[int, str]:
    """Return a printable letter for every byte, in the order of vocabularies: printable bytes first, as themselves."""
    printable = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    others = [byte for byte in range(256) if byte not in printable]
    return {byte: chr(byte) for byte in printable} | {byte: chr(256 + i) for i, byte in enumerate(others)}


def _merges(ranks: Mapping[bytes, int]) -> list[tuple[bytes, bytes]]:
    """Return every pair that joins to a known byte string, the lowest rank first."""
    merges: list[tuple[bytes, bytes]] = []
    for word in sorted(ranks, key=ranks.__getitem__):
        splits = ((word[:i], word[i:]) for i in range(1, len(word)))
        known = [(left, right) for left, right in splits if left in ranks and right in ranks]
        merges += sorted(known, key=lambda pair: (ranks[pair[0]], ranks[pair[1]]))
    return merges
