"""Mistral Small 3 24B, Flux.2 dev's text encoder, whole or cut off after 30 layers; Ministral 3 3B, ERNIE-Image's.

Their files have their tokenisers.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from torch import nn
from transformers.models.llama.configuration_llama import LlamaConfig
from transformers.models.llama.modeling_llama import LlamaDecoderLayer, LlamaRMSNorm

from serve_app.models.families.text.decoder import DecoderText
from serve_app.models.families.text.sequences import PromptFormat
from serve_app.models.families.text_family import TextResources
from serve_app.models.files.tensors import Tensors
from serve_app.models.tokenizers import Tokenizer, tekken

FLUX2 = PromptFormat(
    "mistral3_24b",
    template="[SYSTEM_PROMPT]You are an AI that reasons about image descriptions. You give structured responses "
    "focusing on object relationships, object\nattribution and actions without speculation.[/SYSTEM_PROMPT]"
    "[INST]{}[/INST]",
    weighs=False,
    start=tekken.START,
    masked=True,
    returns_mask=True,
    taps=(10, 20, 30),
)

ERNIE_IMAGE = PromptFormat(
    "ministral3_3b", weighs=False, start=tekken.START, masked=True, returns_mask=True, taps=(-2,)
)
MINISTRAL_WIDTH = 3072


@dataclass(frozen=True, slots=True)
class MistralText(DecoderText):
    """Mistral Small 3, recognised by its vocabulary."""

    name = "Mistral 3"
    prefixes = ("text_encoders.mistral3_24b.transformer.", "")
    theta = 1e9
    eps = 1e-5
    vocabulary_name = "tekken_model"

    @classmethod
    def recognises(cls, inner: Tensors) -> bool:
        tokens, width = inner.shape("embed_tokens.weight")
        return tokens == tekken.TOKENS and cls.reads(width) and plain_llama(inner)

    @classmethod
    def reads(cls, width: int) -> bool:
        """Whether a model of this width is used in this way."""
        return width != MINISTRAL_WIDTH

    def prompt_format_for(self, loaded_as: str) -> PromptFormat:
        return FLUX2

    def parts(self) -> tuple[Callable[[int], nn.Module], nn.Module]:
        return llama_parts(self)

    def tokenizer(self, vocabulary: bytes | None, lexicon: TextResources) -> Tokenizer:
        return tekken.tokenizer(vocabulary, lexicon.vocabulary)


@dataclass(frozen=True, slots=True)
class MinistralText(MistralText):
    """Ministral 3 3B, recognised by its width."""

    name = "Ministral 3"
    prefixes = ("text_encoders.ministral3_3b.transformer.", "")
    theta = 1e6

    @classmethod
    def reads(cls, width: int) -> bool:
        return width == MINISTRAL_WIDTH

    def prompt_format_for(self, loaded_as: str) -> PromptFormat:
        return ERNIE_IMAGE


def plain_llama(inner: Tensors) -> bool:
    """Whether the layers are Llama's, without additions of later models."""
    added = ("self_attn.q_norm.weight", "self_attn.k_proj.bias", "post_feedforward_layernorm.weight")
    return not any(f"layers.0.{name}" in inner.shapes for name in added)


def llama_parts(family: DecoderText) -> tuple[Callable[[int], nn.Module], nn.Module]:
    """Return a factory of Llama's layers, and its norm."""
    config = LlamaConfig(**family.sizes(), attention_bias=False)
    return lambda i: LlamaDecoderLayer(config, i), LlamaRMSNorm(family.width, family.eps)
