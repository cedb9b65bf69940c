"""CLIP's tokenizer: byte-pair encoding with the vocabulary of 49,408 that CLIP was trained with.

The vocabulary file comes with the `clip-anytorch` package. Source: Radford et al. 2021, arXiv:2103.00020, and the
reference tokenizer published with it (lower case, NFC, one space for any run of them, words end in `</w>`).
"""

from __future__ import annotations

import gzip
from functools import cache
from importlib.util import find_spec
from pathlib import Path

from tokenizers import AddedToken, Regex, Tokenizer, normalizers, pre_tokenizers
from tokenizers.models import BPE

from serve_app.errors import ModelFileError

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
    letters = _byte_letters()
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
    # The package is located, not imported: importing it would load torchvision and its own models.
    spec = find_spec("clip")
    if spec is None or not spec.submodule_search_locations:
        raise ModelFileError("CLIP's vocabulary is missing: the package 'clip-anytorch' is not installed")
    path = Path(spec.submodule_search_locations[0]) / "bpe_simple_vocab_16e6.txt.gz"
    lines = gzip.decompress(path.read_bytes()).decode("utf-8").split("\n")
    return lines[1 : 1 + _MERGES]


def _byte_letters() -> list[str]:
    """Return a printable letter for every byte, in the vocabulary's order: printable bytes first, as themselves."""
    printable = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    others = 256 - len(printable)
    return [*map(chr, printable), *(chr(256 + i) for i in range(others))]
