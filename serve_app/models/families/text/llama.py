"""Llama 3.1 8B as a text encoder; HiDream reads every layer's states. Source: arXiv:2407.21783."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

from torch import nn

from serve_app.models.families.text.decoder import DecoderText
from serve_app.models.families.text.mistral import llama_parts, plain_llama
from serve_app.models.families.text.sequences import PromptFormat
from serve_app.models.families.text_family import TextResources
from serve_app.models.files.tensors import Tensors
from serve_app.models.tokenizers import Tokenizer, llama

HIDREAM = PromptFormat(
    "llama", start=llama.START, pad=llama.PAD, least=128, empty=(llama.START,), masked=True, returns_mask=False
)
VOCABULARIES = (128256, 128320)
"""Its numbers of tokens: as published, and with those of a vision model."""


@dataclass(frozen=True, slots=True)
class LlamaText(DecoderText):
    """Llama 3.1, recognised by its vocabulary."""

    name = "Llama 3.1"
    prefixes = ("text_encoders.llama.transformer.", "")
    theta = 5e5
    eps = 1e-5

    @classmethod
    def recognises(cls, inner: Tensors) -> bool:
        return inner.shape("embed_tokens.weight")[0] in VOCABULARIES and plain_llama(inner)

    def prompt_format_for(self, loaded_as: str) -> PromptFormat:
        return replace(HIDREAM, taps=tuple(range(1, self.layers + 1)))

    def parts(self) -> tuple[Callable[[int], nn.Module], nn.Module]:
        return llama_parts(self)

    def tokenizer(self, vocabulary: bytes | None, lexicon: TextResources) -> Tokenizer:
        return llama.tokenizer(lexicon.vocabulary)
