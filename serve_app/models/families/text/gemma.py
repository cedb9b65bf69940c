"""Gemma 2 2B, Lumina-Image 2.0's text encoder; its file has its tokeniser. Source: Gemma 2024, arXiv:2408.00118."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from torch import nn
from transformers.models.gemma2.configuration_gemma2 import Gemma2Config
from transformers.models.gemma2.modeling_gemma2 import Gemma2DecoderLayer, Gemma2RMSNorm

from serve_app.models.families.text.decoder import DecoderText
from serve_app.models.families.text.sequences import PromptFormat
from serve_app.models.families.text_family import TextResources
from serve_app.models.files.tensors import Tensors
from serve_app.models.tokenizers import Tokenizer
from serve_app.models.tokenizers.sentencepiece import brought_pieces, sentence_pieces

START, PAD, END, END_OF_TURN = 2, 0, 1, 107

LUMINA = PromptFormat(
    "gemma2_2b", embeds=False, start=START, pad=PAD, empty=(START,), masked=True, returns_mask=True, taps=(-2,)
)


@dataclass(frozen=True, slots=True)
class Gemma2Text(DecoderText):
    """Gemma 2, without the soft cap and the attention window of its training, as in ComfyUI."""

    name = "Gemma 2"
    prefixes = ("text_encoders.gemma2_2b.transformer.", "")
    head_width = 256
    theta = 1e4
    scaled = True
    stop = (END,)
    vocabulary_name = "spiece_model"

    @classmethod
    def recognises(cls, inner: Tensors) -> bool:
        attention, norm = "layers.0.self_attn.q_norm.weight", "layers.0.post_feedforward_layernorm.weight"
        return norm in inner.shapes and attention not in inner.shapes

    def prompt_format_for(self, loaded_as: str) -> PromptFormat:
        return LUMINA

    def parts(self) -> tuple[Callable[[int], nn.Module], nn.Module]:
        config = Gemma2Config(**self.sizes(), attn_logit_softcapping=None, query_pre_attn_scalar=self.head)
        return lambda i: Gemma2DecoderLayer(config, i), Gemma2RMSNorm(self.width, self.eps)

    def tokenizer(self, vocabulary: bytes | None, lexicon: TextResources) -> Tokenizer:
        model = brought_pieces(vocabulary, self.name, "gemma2.spiece.model", lexicon.vocabulary)
        return sentence_pieces(model, {"<end_of_turn>": END_OF_TURN})
