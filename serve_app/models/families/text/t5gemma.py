"""The encoder of T5Gemma (base), the text encoder of Stable Audio 3; its file has its tokeniser.

Run by the layers of transformers' T5Gemma. Source: Zhang et al. 2025, arXiv:2504.06225.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers.models.t5gemma.configuration_t5gemma import T5GemmaModuleConfig
from transformers.models.t5gemma.modeling_t5gemma import T5GemmaEncoderLayer, T5GemmaRMSNorm

from serve_app.models.families.family import Located, marked
from serve_app.models.families.text.sequences import PromptFormat, SequenceEncoder, from_the_end, whole_names
from serve_app.models.families.text_family import TextFamily, TextResources, Vectors
from serve_app.models.files.layout import Table
from serve_app.models.files.tensors import Tensors
from serve_app.models.tokenizers import Tokenize
from serve_app.models.tokenizers.sentencepiece import brought_pieces, sentence_pieces

HEAD, SOFT_CAP, THETA, EPS = 64, 50.0, 10000.0, 1e-6
WINDOW = 4096
"""Tokens that every other layer sees to each side, from the first."""
_FIRST = "encoder.layers.0.pre_self_attn_layernorm.weight"
_PIECES = "spiece_model"
PROMPT = PromptFormat("t5gemma", masked=True, zeroed=True)


@dataclass(frozen=True, slots=True)
class T5GemmaText(TextFamily):
    """An encoder. pieces: bytes of the tokeniser in its file, or 0."""

    name = "T5Gemma"

    layers: int
    width: int
    hidden_width: int
    heads: int
    kv_heads: int
    vocabulary: int
    pieces: int = 0

    @property
    def key(self) -> str:
        return PROMPT.key

    @classmethod
    def find(cls, files: Sequence[Tensors]) -> Iterator[Located]:
        for number, whole in enumerate(files):
            found = marked(whole, ("text_encoders.t5gemma.transformer.model.", "model."), (_FIRST,))
            if found is not None:
                prefix, tensors = found
                outside = prefix.removesuffix("model.")
                pieces = whole.shapes.get(f"{outside}{_PIECES}", (0,))[0]
                yield Located(cls._probed(tensors, pieces), whole.within(outside), number, outside)

    @classmethod
    def _probed(cls, tensors: Tensors, pieces: int) -> T5GemmaText:
        attention = "encoder.layers.0.self_attn"
        vocabulary, width = tensors.shape("encoder.embed_tokens.weight")
        return cls(
            tensors.count("encoder.layers."),
            width,
            tensors.shape("encoder.layers.0.mlp.gate_proj.weight")[0],
            tensors.shape(f"{attention}.q_proj.weight")[0] // HEAD,
            tensors.shape(f"{attention}.k_proj.weight")[0] // HEAD,
            vocabulary,
            pieces,
        )

    def table(self, tensors: Tensors | None = None) -> Table:
        return {"model.encoder": "encoder", _PIECES: _PIECES}

    def lora_names(self, parameters: Sequence[str], *, alone: bool = True) -> dict[str, str]:
        names: dict[str, str] = {}
        for ours in parameters:
            layer, _, ending = ours.rpartition(".")
            if ending == "weight":
                names |= dict.fromkeys(whole_names(self.key, f"model.{layer}"), ours)
        return names

    def build(self) -> nn.Module:
        config = T5GemmaModuleConfig(
            vocab_size=self.vocabulary,
            hidden_size=self.width,
            intermediate_size=self.hidden_width,
            num_hidden_layers=self.layers,
            num_attention_heads=self.heads,
            num_key_value_heads=self.kv_heads,
            head_dim=HEAD,
            query_pre_attn_scalar=HEAD,
            attn_logit_softcapping=SOFT_CAP,
            rms_norm_eps=EPS,
            sliding_window=WINDOW,
            attn_implementation="eager",
        )
        config.dropout_rate = 0.0
        network, encoder = nn.Module(), nn.Module()
        encoder.embed_tokens = nn.Embedding(self.vocabulary, self.width)
        encoder.layers = nn.ModuleList(T5GemmaEncoderLayer(config, number) for number in range(self.layers))
        encoder.norm = T5GemmaRMSNorm(self.width, eps=EPS)
        network.encoder = encoder
        if self.pieces:
            network.register_buffer(_PIECES, torch.empty(self.pieces, dtype=torch.uint8))
        return network

    def encoder(self, network: Any, lexicon: TextResources) -> T5GemmaEncoder:
        brought = network.get_buffer(_PIECES).cpu().numpy().tobytes() if self.pieces else None
        model = brought_pieces(brought, self.name, "t5gemma.spiece.model", lexicon.vocabulary)
        return T5GemmaEncoder(sentence_pieces(model), network.encoder, lexicon.vectors)


class T5GemmaEncoder(SequenceEncoder):
    """T5Gemma's encoder on its device."""

    def __init__(self, tokenize: Tokenize, network: Any, vectors: Vectors) -> None:
        super().__init__(PROMPT, tokenize, network.embed_tokens.weight, vectors)
        self._network = network

    def forward(self, x: Tensor, seen: Tensor | None, stop_at: int | None) -> Tensor:
        layers = self._network.layers
        back = None if stop_at is None else from_the_end(stop_at, len(layers))
        count = x.shape[1]
        least = torch.finfo(x.dtype).min
        mask = x.new_zeros(1, 1, 1, count)
        if seen is not None:
            mask = torch.zeros_like(seen, dtype=x.dtype).masked_fill_(~seen, least)[:, None, None]
        at = torch.arange(count, device=x.device)
        near = mask
        if count > WINDOW:
            far = (at[:, None] - at).abs() > WINDOW
            near = (mask + torch.zeros_like(far, dtype=x.dtype).masked_fill_(far, least)).clamp(min=least)
        angles = torch.outer(at.float(), THETA ** -(torch.arange(0, HEAD, 2, device=x.device).float() / HEAD))
        turns = tuple(part.repeat(1, 2)[None].to(x.dtype) for part in (angles.cos(), angles.sin()))
        x = x * self._network.embed_tokens.embedding_dim**0.5
        for number, layer in enumerate(layers[: len(layers) if back is None else len(layers) + 1 + back]):
            x = layer(x, position_embeddings=turns, attention_mask=mask if number % 2 else near)
        states: Tensor = self._network.norm(x)
        return states
