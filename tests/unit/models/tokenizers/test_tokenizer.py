"""The oracle is transformers' CLIPTokenizer, given the same vocabulary in its own form."""

import gzip
from importlib.metadata import distribution
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from transformers import CLIPTokenizer

from serve_app.models.tokenizers.clip import END, START, token_ids


@pytest.fixture(scope="module")
def oracle():
    packed = distribution("clip-anytorch").locate_file("clip/bpe_simple_vocab_16e6.txt.gz")
    lines = gzip.decompress(Path(str(packed)).read_bytes()).decode().split("\n")[1:48895]
    merges = [tuple(line.split()) for line in lines]
    printable = [b for b in range(256) if 33 <= b <= 126 or 161 <= b <= 172 or 174 <= b <= 255]
    letters = [chr(b) for b in printable] + [chr(256 + n) for n in range(256 - len(printable))]
    words = letters + [letter + "</w>" for letter in letters] + ["".join(merge) for merge in merges]
    words += ["<|startoftext|>", "<|endoftext|>"]
    return CLIPTokenizer(vocab={word: n for n, word in enumerate(words)}, merges=merges)


KNOWN = ["hello", "World's", "I'LL", "漢字", "🎨", "<|endoftext|>", "<|EndOfText|>", "e\u0301", "\n", "_-!!", "²½", "İ"]
TEXTS = st.lists(st.one_of(st.sampled_from(KNOWN), st.text(max_size=6)), max_size=6).map(" ".join)


@given(TEXTS)
def test_every_text_has_the_tokens_of_transformers_tokenizer(oracle, text):
    assert [START, *token_ids(text), END] == oracle(text)["input_ids"]


def test_the_published_example_has_its_known_tokens():
    assert token_ids("a photo of a cat") == [320, 1125, 539, 320, 2368]
