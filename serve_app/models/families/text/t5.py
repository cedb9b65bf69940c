"""T5's encoder: T5-XXL v1.1 for Flux.1, SD 3, Chroma and PixArt, and UMT5-XXL for Wan.

Run as transformers' stacks. Source: Raffel et al. 2020, arXiv:1910.10683; Chung et al. 2023, arXiv:2304.09151.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from transformers.models.t5.configuration_t5 import T5Config
from transformers.models.t5.modeling_t5 import T5Stack
from transformers.models.umt5.configuration_umt5 import UMT5Config
from transformers.models.umt5.modeling_umt5 import UMT5Stack

from serve_app.models.families.family import Located, marked
from serve_app.models.families.text.sequences import PromptFormat, SequenceEncoder, from_the_end, whole_names
from serve_app.models.families.text_family import TextFamily, TextResources, Vectors
from serve_app.models.files.layout import Table, reverse, translate
from serve_app.models.files.tensors import Tensors
from serve_app.models.tokenizers import Tokenize, llama2, t5
from serve_app.models.tokenizers.sentencepiece import brought_pieces, sentence_pieces

_ATTENTION = "encoder.block.{}.layer.0.SelfAttention"
_BIAS = f"{_ATTENTION}.relative_attention_bias.weight"
_GATE = "encoder.block.0.layer.1.DenseReluDense.wi_1.weight"
_PIECES = "spiece_model"
BYT5_KEYS = 384
"""Width of the keys of ByT5, which is read otherwise."""

PADDED = PromptFormat("t5xxl", end=t5.END, pad=t5.PAD, least=256, empty=(t5.END,))
"""Flux.1's format: padding is not masked."""

PADDED_77 = replace(PADDED, least=77)
"""SD 3's format."""

UNPADDED = replace(PADDED, least=1, empty=())
"""Chroma's and PixArt's format; the empty text for weights is all padding."""

MASKED = replace(PADDED, masked=True, returns_mask=True)
"""Mochi's format, and the default for unknown types."""


@dataclass(frozen=True, slots=True)
class T5Text(TextFamily):
    """T5-XXL, or an encoder of the same architecture."""

    prefixes: ClassVar[tuple[str, ...]] = (
        "text_encoders.t5xxl.transformer.",
        "cond_stage_model.t5xxl.transformer.",
        "",
    )
    name = "T5-XXL"
    prompt_formats: ClassVar[Mapping[str, PromptFormat]] = {
        "pixart": UNPADDED,
        "chroma": UNPADDED,
        "sd3": PADDED_77,
        "ltxv": replace(MASKED, least=128),
    }
    usual: ClassVar[PromptFormat] = MASKED

    layers: int
    width: int
    hidden_width: int
    heads: int
    head_width: int
    buckets: int
    vocabulary: int
    pieces: int = 0
    prompt_format: PromptFormat = MASKED

    @property
    def key(self) -> str:
        return self.prompt_format.key

    @classmethod
    def find(cls, files: Sequence[Tensors]) -> Iterator[Located]:
        for number, whole in enumerate(files):
            found = marked(whole, cls.prefixes, (_GATE,))
            if found is not None and cls.recognises(found[1]):
                prefix, tensors = found
                yield Located(cls.probe(tensors), tensors, number, prefix)

    @classmethod
    def recognises(cls, tensors: Tensors) -> bool:
        """Whether the encoder is of this kind: T5 has one table of positions, UMT5 one for each layer.

        ByT5's keys are narrower.
        """
        keys = tensors.shape(f"{_ATTENTION.format(0)}.k.weight")[0]
        return _BIAS.format(1) not in tensors.shapes and keys != BYT5_KEYS

    @classmethod
    def probe(cls, tensors: Tensors) -> T5Text:
        """Read the network's size off its tensors. Errors: ModelFileError for another layout."""
        vocabulary, width = tensors.shape("shared.weight")
        buckets, heads = tensors.shape(_BIAS.format(0))
        pieces = tensors.shapes.get(_PIECES, (0,))[0]
        return cls(
            layers=tensors.count("encoder.block."),
            width=width,
            hidden_width=tensors.shape(_GATE)[0],
            heads=heads,
            head_width=tensors.shape(f"{_ATTENTION.format(0)}.q.weight")[0] // heads,
            buckets=buckets,
            vocabulary=vocabulary,
            pieces=pieces,
            prompt_format=cls.usual,
        )

    def as_type(self, loaded_as: str) -> T5Text:
        return replace(self, prompt_format=self.prompt_formats.get(loaded_as, self.usual))

    def table(self, tensors: Tensors | None = None) -> Table:
        return {
            "shared": "embed_tokens",
            "encoder.block": "block",
            "encoder.final_layer_norm": "final_layer_norm",
            _PIECES: _PIECES,
        }

    def lora_names(self, parameters: Sequence[str], *, alone: bool = True) -> dict[str, str]:
        files = reverse(self.table())
        names: dict[str, str] = {}
        for ours in parameters:
            layer, _, ending = (translate(ours, files) or "").rpartition(".")
            if ending == "weight":
                names |= dict.fromkeys(whole_names(self.prompt_format.key, layer), ours)
                # The third of SD 3's encoders, the second of Flux.1's.
                for prefix in ("lora_te1_",) if alone else ("lora_te2_", "lora_te3_"):
                    names[f"{prefix}{layer.replace('.', '_')}"] = ours
        return names

    def build(self) -> nn.Module:
        network = self.stack()
        if self.pieces:
            network.register_buffer(_PIECES, torch.empty(self.pieces, dtype=torch.uint8))
        return network

    def stack(self) -> nn.Module:
        """Return the network without its tokeniser's buffer."""
        stack: nn.Module = T5Stack(T5Config(**self.sizes()))
        return stack

    def sizes(self) -> dict[str, Any]:
        """Return the common arguments of transformers' T5 configurations."""
        return {
            "vocab_size": self.vocabulary,
            "d_model": self.width,
            "d_kv": self.head_width,
            "d_ff": self.hidden_width,
            "num_layers": self.layers,
            "num_heads": self.heads,
            "relative_attention_num_buckets": self.buckets,
            "feed_forward_proj": "gated-gelu",
            "layer_norm_epsilon": 1e-6,
            "is_encoder_decoder": False,
            "use_cache": False,
        }

    def tokenize(self, network: Any, lexicon: TextResources) -> Tokenize:
        """Return the tokeniser, the file's own if it has one. Errors: ModelFileError if there is none."""
        brought = self.brought(network)
        return t5.tokenizer(lexicon.vocabulary) if brought is None else sentence_pieces(brought)

    def brought(self, network: Any) -> bytes | None:
        """Return the file's SentencePiece model, None if it has none."""
        return network.get_buffer(_PIECES).cpu().numpy().tobytes() if self.pieces else None

    def encoder(self, network: Any, lexicon: TextResources) -> T5Encoder:
        return T5Encoder(self.prompt_format, self.tokenize(network, lexicon), network, lexicon.vectors)


@dataclass(frozen=True, slots=True)
class UMT5Text(T5Text):
    """UMT5-XXL. Its file has its tokeniser."""

    prefixes = ("text_encoders.umt5xxl.transformer.", "")
    name = "UMT5-XXL"
    prompt_formats: ClassVar[Mapping[str, PromptFormat]] = {}
    usual = replace(PADDED, key="umt5xxl", embeds=False, least=512, masked=True, zeroed=True)

    @classmethod
    def recognises(cls, tensors: Tensors) -> bool:
        return _BIAS.format(1) in tensors.shapes and cls.reads(tensors.shape("shared.weight")[0])

    @classmethod
    def reads(cls, tokens: int) -> bool:
        """Whether the vocabulary size is UMT5's: Pile-T5 has the same layers."""
        return tokens != llama2.TOKENS

    def stack(self) -> nn.Module:
        stack: nn.Module = UMT5Stack(UMT5Config(**self.sizes()))
        return stack

    def tokenize(self, network: Any, lexicon: TextResources) -> Tokenize:
        brought = self.brought(network)
        return sentence_pieces(brought_pieces(brought, self.name, "umt5xxl.spiece.model", lexicon.vocabulary))


class T5Encoder(SequenceEncoder):
    """T5 on its device. network: transformers' stack."""

    def __init__(self, prompt_format: PromptFormat, tokenize: Tokenize, network: Any, vectors: Vectors) -> None:
        super().__init__(prompt_format, tokenize, network.embed_tokens.weight, vectors)
        self._network = network

    def forward(self, x: Tensor, seen: Tensor | None, stop_at: int | None) -> Tensor:
        back = None if stop_at is None else from_the_end(stop_at, len(self._network.block))
        earlier = back is not None and back < -1
        mask = None
        if seen is not None:
            # An additive mask: for a boolean one transformers synchronises to ask whether all are unmasked.
            mask = torch.zeros_like(seen, dtype=x.dtype).masked_fill_(~seen, torch.finfo(x.dtype).min)[:, None, None]
        out = self._network(inputs_embeds=x, attention_mask=mask, output_hidden_states=earlier)
        states: Tensor = self._network.final_layer_norm(out.hidden_states[back]) if earlier else out.last_hidden_state
        return states
