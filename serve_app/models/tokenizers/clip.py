"""CLIP's tokenizer: byte-pair encoding with the vocabulary of 49,408 that CLIP was trained with.

The vocabulary file comes with the `clip-anytorch` package. Source: Radford et al. 2021, arXiv:2103.00020, and the
reference tokenizer published with it (lower case, NFC, one space for any run of them, words end in `</w>`).
"""

from __future__ import annotations

import gzip
from functools import cache

from tokenizers import AddedToken, Regex, Tokenizer, normalizers, pre_tokenizers
from tokenizers.models import BPE

from serve_app.errors import ModelFileError
from serve_app.models.tokenizers.byte_pairs import byte_letters
from serve_app.models.tokenizers.vocabularies import packaged

START, END = 49406, 49407
"""The tokens around every chunk; END also fills what is left of it."""

_SPECIAL = ("<|startoftext|>", "<|endoftext|>")
_WORD = r"<\|startoftext\|>|<\|endoftext\|>|'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+"
_MERGES = START - 2 * 256


def token_ids(text: str) -> list[int]:
    """Return the text's tokens, without the start and end tokens around them."""
    ids: list[int] = _tokenizer().encode(text, add_special_tokens=False).ids
    return ids


@cache
def _tokenizer() -> Tokenizer:
    merges = [(a, b) for a, b in (line.split() for line in _merge_lines())]
    letters = [*byte_letters().values()]
    words = [*letters, *(letter + "</w>" for letter in letters), *(a + b for a, b in merges), *_SPECIAL]
    tokenizer = Tokenizer(
        BPE(
            vocab={word: number for number, word in enumerate(words)},
            merges=merges,
            unk_token=_SPECIAL[1],
            continuing_subword_prefix="",
            end_of_word_suffix="</w>",
        )
    )
    tokenizer.normalizer = normalizers.Sequence(
        [normalizers.NFC(), normalizers.Replace(Regex(r"\s+"), " "), normalizers.Lowercase()]
    )
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(_WORD), behavior="removed", invert=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False),
        ]
    )
    tokenizer.add_special_tokens([AddedToken(word, normalized=False, special=True) for word in _SPECIAL])
    return tokenizer


def _merge_lines() -> list[str]:
    path = packaged("clip", "bpe_simple_vocab_16e6.txt.gz")
    if path is None:
        raise ModelFileError("CLIP's vocabulary is missing: the package 'clip-anytorch' is not installed")
    lines = gzip.decompress(path.read_bytes()).decode("utf-8").split("\n")
    return lines[1 : 1 + _MERGES]
