"""CLIP's text encoders, CLIP-L and OpenCLIP's ViT-H and ViT-bigG: from texts in the prompt syntax to CONDITIONING.

Run as transformers' CLIPTextModel. Source: Radford et al. 2021, arXiv:2103.00020; prompt weights and long texts are
handled as in ComfyUI.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

import torch
from torch import Tensor, nn
from transformers.models.clip.configuration_clip import CLIPTextConfig
from transformers.models.clip.modeling_clip import CLIPTextModel

from serve_app.errors import NodeError
from serve_app.models.families.family import Located
from serve_app.models.families.text.sequences import embedded, from_the_end
from serve_app.models.families.text_family import TextFamily, TextResources, Vectors, own_text
from serve_app.models.files.layout import Place, Table, inside
from serve_app.models.files.tensors import Tensors
from serve_app.models.tokenizers.clip import END
from serve_app.models.tokenizers.prompt import Chunk, chunks, empty_chunk, numbered_chunks
from serve_app.recipe.text import T5Padding
from serve_app.sampling.transfer import to_device
from serve_app.values import Conditioning, Text, Texts, TokenizedText

TextKind: TypeAlias = Literal["l", "h", "g"]
"""The published architecture: CLIP-L, or OpenCLIP's ViT-H or ViT-bigG."""

VOCABULARY = 49408
"""Number of CLIP's tokens."""

HEAD_WIDTH = 64
"""Width of its heads."""

# ComfyUI distinguishes OpenCLIP's encoders by a layer that only the larger one has.
_H_LAYERS, _L_LAYERS_LIMIT = 30, 22
_PADDING = {"l": END, "h": 0, "g": 0}
_MODULES = ("embeddings", "encoder", "final_layer_norm")
_OPEN_CLIP_LAYER = {
    "ln_1": "layer_norm1",
    "ln_2": "layer_norm2",
    "mlp.c_fc": "mlp.fc1",
    "mlp.c_proj": "mlp.fc2",
    "attn": "self_attn",
}
_TRANSFORMERS, _OPEN_CLIP = "embeddings.token_embedding.weight", "token_embedding.weight"
_WHERE: tuple[tuple[str, str, TextKind | None], ...] = (
    ("cond_stage_model.transformer.text_model.", _TRANSFORMERS, "l"),
    ("cond_stage_model.transformer.", _TRANSFORMERS, "l"),
    ("cond_stage_model.model.", _OPEN_CLIP, "h"),
    ("conditioner.embedders.0.transformer.text_model.", _TRANSFORMERS, "l"),
    ("conditioner.embedders.1.model.", _OPEN_CLIP, "g"),
    ("text_encoders.clip_l.transformer.", f"text_model.{_TRANSFORMERS}", "l"),
    ("text_encoders.clip_g.transformer.", f"text_model.{_TRANSFORMERS}", "g"),
    ("", f"text_model.{_TRANSFORMERS}", None),
    ("", _OPEN_CLIP, None),
)
"""Prefixes of encoders in files, the mark below each, and the kind that the prefix implies."""
_FIRST_OPEN_CLIP = "conditioner.embedders.0.model."


@dataclass(frozen=True, slots=True)
class ClipText(TextFamily):
    """A CLIP text encoder. projection: the pooled text's width, 0 without."""

    name = "CLIP"

    layers: int
    width: int
    hidden_width: int
    positions: int
    kind: TextKind = "l"
    projection: int = 0

    @property
    def title(self) -> str:
        return f"CLIP-{self.kind.upper()}"

    @property
    def key(self) -> str:
        return f"clip_{self.kind}"

    def published(self, prefix: str) -> Table:
        if prefix.endswith(".model."):
            return dict(_open_clip(self))
        return {f"text_model.{name}": name for name in _MODULES} | {"text_projection": "text_projection"}

    @property
    def heads(self) -> int:
        """Number of attention heads."""
        return self.width // HEAD_WIDTH

    @classmethod
    def find(cls, files: Sequence[Tensors]) -> Iterator[Located]:
        for number, whole in enumerate(files):
            # SDXL's refiner has the larger encoder under the names that SD 2 has for the other.
            first: TextKind = "g" if whole.has("model.diffusion_model.label_emb.") else "h"
            for prefix, mark, kind in (*_WHERE, (_FIRST_OPEN_CLIP, _OPEN_CLIP, first)):
                if prefix + mark in whole.shapes:
                    tensors = whole.within(prefix)
                    yield Located(cls.probe(tensors, kind), tensors, number, prefix)

    @classmethod
    def probe(cls, tensors: Tensors, kind: TextKind | None = None) -> ClipText:
        """Read the network's size off a text encoder's tensors, named as by transformers or by OpenCLIP.

        kind: None: derived from the number of layers. Errors: ModelFileError for another layout.
        """
        if tensors.has("transformer.resblocks."):
            table, positions, layers = "token_embedding.weight", "positional_embedding", "transformer.resblocks."
            hidden, projection = f"{layers}0.mlp.c_fc.weight", "text_projection"
        else:
            inside = "text_model." if tensors.has("text_model.") else ""
            table, positions = (
                f"{inside}embeddings.token_embedding.weight",
                f"{inside}embeddings.position_embedding.weight",
            )
            layers, projection = f"{inside}encoder.layers.", "text_projection.weight"
            hidden = f"{layers}0.mlp.fc1.weight"
        vocabulary, width = tensors.shape(table)
        if vocabulary != VOCABULARY:
            raise tensors.unsupported(f"has a text encoder of {vocabulary} tokens, not CLIP's {VOCABULARY}")
        if width % HEAD_WIDTH:
            raise tensors.unsupported(f"has a text encoder {width} wide, not a multiple of {HEAD_WIDTH}")
        depth = tensors.count(layers)
        kind = kind or ("g" if depth > _H_LAYERS else "h" if depth > _L_LAYERS_LIMIT else "l")
        # OpenCLIP's matrix is (width, projection), transformers' the other way round; those published are square.
        projected = tensors.shapes[projection][0] if projection in tensors.shapes else 0
        return cls(depth, width, tensors.shape(hidden)[0], tensors.shape(positions)[0], kind, projected)

    def table(self, tensors: Tensors | None = None) -> Table:
        if tensors is not None and tensors.has("transformer.resblocks."):
            return dict(_open_clip(self))
        inner = "text_model." if tensors is not None and tensors.has("text_model.") else ""
        return {inner + name: name for name in _MODULES} | {"text_projection": "text_projection"}

    def build(self) -> nn.Module:
        model: nn.Module = CLIPTextModel(
            CLIPTextConfig(
                vocab_size=VOCABULARY,
                hidden_size=self.width,
                intermediate_size=self.hidden_width,
                num_hidden_layers=self.layers,
                num_attention_heads=self.heads,
                max_position_embeddings=self.positions,
                hidden_act="quick_gelu" if self.kind == "l" else "gelu",
                layer_norm_eps=1e-5,
            )
        )
        # Releases of transformers differ in whether the encoder is inside `text_model`.
        encoder: nn.Module = getattr(model, "text_model", model)
        if self.projection:
            encoder.text_projection = nn.Linear(self.width, self.projection, bias=False)
        return encoder

    def lora_names(self, parameters: Sequence[str], *, alone: bool = True) -> dict[str, str]:
        """Return the names of its layers in LoRA files. alone: it is the first encoder.

        parameters: of transformers' CLIPTextModel, with or without "text_model." in front; a projection of the pooled
        output is "text_projection.weight".
        """
        kind = self.kind
        second = kind == "g" and not alone
        flat_prefixes = ("lora_te2_",) if second else ("lora_te_", "lora_prior_te_" if kind == "g" else "lora_te1_")
        names: dict[str, str] = {}
        for ours in parameters:
            layer, _, ending = ours.removeprefix("text_model.").rpartition(".")
            if ending != "weight":
                continue
            inside = layer if layer == "text_projection" else f"text_model.{layer}"
            names[f"text_encoders.clip_{kind}.transformer.{inside}"] = ours
            if layer == "text_projection":
                for prefix in ("lora_te2_", "lora_prior_te_") if kind == "g" else ("lora_te1_",):
                    names[f"{prefix}text_projection"] = ours
            elif ".self_attn." in layer or ".mlp." in layer:
                for prefix in flat_prefixes:
                    names[f"{prefix}{inside.replace('.', '_')}"] = ours
                names[f"{'text_encoder_2' if second else 'text_encoder'}.{inside}"] = ours
        return names

    def encoder(self, network: Any, lexicon: TextResources) -> TextEncoder:
        return TextEncoder(self, network, lexicon.vectors)


def _open_clip(known: ClipText) -> Iterator[tuple[str, str | tuple[Place, ...]]]:
    yield "positional_embedding", (Place("embeddings.position_embedding.weight"),)
    # OpenCLIP's matrix is (width, projection), transformers' the other way round.
    yield "text_projection", (Place("text_projection.weight", transposed=True),)
    yield "token_embedding", "embeddings.token_embedding"
    yield "ln_final", "final_layer_norm"
    for layer in range(known.layers):
        yield from open_clip_layer(f"transformer.resblocks.{layer}", f"encoder.layers.{layer}", known.width)


def open_clip_layer(file: str, network: str, width: int) -> Iterator[tuple[str, str | tuple[Place, ...]]]:
    """Yield OpenCLIP's names of a layer's tensors, with the places in transformers' layer. file, network: prefixes."""
    yield from inside(file, network, _OPEN_CLIP_LAYER)
    for kind in ("weight", "bias"):
        yield (
            f"{file}.attn.in_proj_{kind}",
            tuple(
                Place(f"{network}.self_attn.{part}_proj.{kind}", rows=(i * width, (i + 1) * width))
                for i, part in enumerate("qkv")
            ),
        )


Encoded: TypeAlias = tuple[Tensor, Tensor]
"""(cond (1,T,D), pooled (1,P)) of one text, float32 on the encoder's device."""


class TextEncoder:
    """A text encoder on its device. network: transformers' CLIPTextModel. paired: it is one of SDXL's two.

    projected: the pooled output of CLIP-L goes through its projection, if it has one; OpenCLIP's always does.

    The default layer is CLIP-L's last and OpenCLIP's last but one, as SD 1.x and 2.x were trained, and the last but one
    of both of SDXL's. SDXL's states skip the final norm, the others go through it.
    """

    def __init__(
        self, family: ClipText, network: nn.Module, vectors: Vectors, *, paired: bool = False, projected: bool = False
    ) -> None:
        self._family = family
        self._projected = bool(family.projection) and (projected or family.kind != "l")
        self.network: Any = network
        self._vectors = vectors
        self._normed = family.kind != "g" and not paired
        self._default = -1 if family.kind == "l" and not paired else -2
        device = next(network.parameters()).device
        hidden = torch.full((family.positions, family.positions), torch.finfo(torch.float32).min, device=device)
        self._mask = hidden.triu_(1)[None, None]

    def encode(
        self, texts: Sequence[Text], stop_at: int | None = None, padding: T5Padding | None = None
    ) -> list[Conditioning]:
        """Encode each text, all in one forward. The conds and pooled outputs are float32 on its device.

        stop_at: the layer whose output is taken, as of `from_the_end`; one that the encoder lacks means the last, None
        the default. A text of n chunks gives a cond of n times the encoder's length. Weights move each token's row
        along the line from the empty text's. Errors: ModelFileError for an unusable embedding; NodeError for several
        texts, which only SDXL's encoders read, and for images.
        """
        by_text: list[list[Chunk]] = []
        for text in texts:
            if isinstance(text, TokenizedText):
                by_text.append(self.chunks_of(text))
            elif not isinstance(text, Texts):
                by_text.append(self.chunks(own_text(text, self._family.kind)))
            elif self._family.kind == "g":
                by_text.append(self.padded(self.chunks(own_text(text, "g")), len(self.chunks(own_text(text, "l")))))
            else:
                raise NodeError(f"the text encoder is {self._family.title}, which reads one text, not several")
        encoded = self.encode_chunks(by_text, stop_at)
        return [[(cond, {"pooled_output": pooled})] for cond, pooled in encoded]

    def chunks(self, text: str) -> list[Chunk]:
        """Return a text's tokens with their weights."""
        return chunks(text, self._family.positions, self._embedding, _PADDING[self._family.kind])

    def tokens(self, text: str) -> dict[str, list[list[tuple[Any, float, int]]]]:
        """Return a text's chunks under its own key; as `TokenEncoder`."""
        kind = self._family.kind
        return {kind: numbered_chunks(text, self._family.positions, self._embedding, _PADDING[kind])}

    def chunks_of(self, text: TokenizedText) -> list[Chunk]:
        """Return a text's chunks for this encoder. Errors: NodeError if there are none, or they are no chunks."""
        kind, length = self._family.kind, self._family.positions
        chunks = [list(chunk) for chunk in text.chunks.get(kind, ())]
        if not chunks:
            raise NodeError(
                f"of the encoders {', '.join(text.chunks) or 'none'} that there are tokens for, none is {kind}"
            )
        for chunk in chunks:
            if len(chunk) != length:
                raise NodeError(f"{len(chunk)} tokens at once for {self._family.title}, which reads {length}")
            for token, _ in chunk:
                if isinstance(token, int) and not 0 <= token < VOCABULARY:
                    raise NodeError(f"token {token} is none of {self._family.title}'s {VOCABULARY:,}")
        return chunks

    def padded(self, of_text: list[Chunk], count: int) -> list[Chunk]:
        """Return a text's chunks, padded with empty ones to `count`."""
        return of_text + [self._empty()] * (count - len(of_text))

    def encode_chunks(self, by_text: Sequence[list[Chunk]], stop_at: int | None) -> list[Encoded]:
        """Encode the chunks of several texts in one forward; as `encode`."""
        batch = [chunk for of_text in by_text for chunk in of_text]
        weighted = any(weight != 1.0 for chunk in batch for _, weight in chunk)
        hidden, pooled = self._forward([*batch, self._empty()] if weighted else batch, stop_at)
        if weighted:
            weights = to_device(torch.tensor([[weight for _, weight in chunk] for chunk in batch]), hidden.device)[
                ..., None
            ]
            hidden, empty = hidden[:-1], hidden[-1]
            hidden = torch.where(weights == 1.0, hidden, (hidden - empty) * weights + empty)
        encoded: list[Encoded] = []
        start = 0
        for of_text in by_text:
            rows = slice(start, start + len(of_text))
            encoded.append((hidden[rows].flatten(0, 1)[None], pooled[start : start + 1]))
            start = rows.stop
        return encoded

    def _empty(self) -> Chunk:
        return empty_chunk(self._family.positions, _PADDING[self._family.kind])

    def _embedding(self, name: str) -> Sequence[Tensor] | None:
        vectors = self._vectors(name, self._family.width, f"clip_{self._family.kind}")
        return None if vectors is None else list(vectors)

    def _attention(self, batch: Sequence[Chunk]) -> Tensor:
        """Return what chunks' tokens attend to, as a bias (1 or N,1,T,T): those before them."""
        return self._mask

    def _forward(self, batch: list[Chunk], stop_at: int | None) -> tuple[Tensor, Tensor]:
        """Return the layer's rows (N,T,D) and each chunk's pooled row (N,P), float32."""
        network = self.network
        table: Tensor = network.embeddings.token_embedding.weight
        rows = embedded(table, [[token for token, _ in chunk] for chunk in batch], END)
        x = rows + network.embeddings.position_embedding.weight
        layers = len(network.encoder.layers)
        back = from_the_end(self._default if stop_at is None else stop_at, layers)
        stop = None if back is None else layers + back
        taken: Tensor | None = None
        mask = self._attention(batch)
        for index, layer in enumerate(network.encoder.layers):
            x = layer(x, mask)
            if index == stop:
                taken = x
        last = network.final_layer_norm(x)
        if taken is None or (taken is x and self._normed):
            hidden = last
        else:
            hidden = network.final_layer_norm(taken) if self._normed else taken
        # The pooled row is at the text's own end token; an embedding vector never counts as an end.
        ends = torch.tensor([next(j for j, (t, _) in enumerate(c) if isinstance(t, int) and t == END) for c in batch])
        pooled = last[torch.arange(len(batch), device=last.device), to_device(ends, last.device)]
        if self._projected:
            pooled = network.text_projection(pooled)
        return hidden.float(), pooled.float()
