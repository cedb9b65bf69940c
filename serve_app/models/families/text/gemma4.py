"""Gemma 4, as a generator of texts that may see an image, and as the model of LTX-2.5's text encoder.

Its files have their tokeniser. Five of six layers (of E2B four of five) see a window; the others have wider heads, of
which a quarter is rotated. E2B and E4B add a vector of each token's own to every layer, and their last layers read the
keys and values of earlier ones. Source: Gemma 2026; the numbers are ComfyUI's.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from math import sqrt
from typing import Any

import torch
from tokenizers import Tokenizer as WordPieces
from torch import Tensor, nn
from transformers.models.gemma4.configuration_gemma4 import Gemma4TextConfig
from transformers.models.gemma4.modeling_gemma4 import Gemma4RMSNorm, Gemma4TextDecoderLayer

from serve_app.errors import ModelFileError, NodeError
from serve_app.models.families.shared.buffers import buffers_as_weights
from serve_app.models.families.text.decoder import CausalLM, DecoderEncoder, DecoderText, Rotation
from serve_app.models.families.text.gemma4_vision import Gemma4Tower, see, seen_pixels
from serve_app.models.families.text.generation import Cache, as_cache
from serve_app.models.families.text.sequences import PromptFormat
from serve_app.models.families.text_family import TextResources
from serve_app.models.files.layout import Table
from serve_app.models.files.tensors import Tensors
from serve_app.models.tokenizers import Tokenizer
from serve_app.models.tokenizers.prompt import Token, Weighted
from serve_app.recipe.text import T5Padding
from serve_app.sampling.transfer import to_device
from serve_app.values import Conditioning, GenerationRequest, Text

START, PAD, END, END_OF_RESPONSE, END_OF_TURN = 2, 0, 1, 50, 106
IMAGE = 258880
UNSAID = (258883, 258882)
"""Tokens around sounds and images, which the 12B never writes."""
TURN = "<|turn>"
THINKING = f"{TURN}system\n<|think|>\n<turn|>\n"
IMAGE_MARK = "<|image><|image|><image|>"
UNTHOUGHT = "<|channel>thought\n<channel|>"
"""By which the larger models are told not to think first; the smaller ones would begin to."""
CAP = 30.0
"""Logits stay within this on either side."""
ROTATED = 0.25
"""Share of a wide head that is rotated."""
WINDOW_SMALL, WINDOW = 512, 1024
SHARED_E4B = {42: 18}
"""Last layers that read others' keys and values, by the number of layers, where no tensor tells them apart."""
PADDED_BY = "ltxv"
"""Loaded as this, a text to be answered is filled up on the left, as in ComfyUI."""
PROMPT_LEAST = 1024
_BESIDES = ("embed_tokens_per_layer", "per_layer_model_projection", "per_layer_projection_norm")
_THOUGHT = re.compile(r"<\|channel>thought\n(.*?)<channel\|>", re.DOTALL)
_MARKS = re.compile(r"<\|channel>\w*\n?|<channel\|>|<\|turn>\w*\n?|<turn\|>")


@dataclass(frozen=True, slots=True)
class Gemma4Text(DecoderText):
    """Gemma 4 of any size without experts.

    every: layers whose number this divides see all tokens; wide_head, wide_kv_heads: of those. keys_only: their values
    are their keys. layer_width: of each token's vectors for layers, 0 for none. shared: last layers that read others'
    keys and values; doubled: they are twice as wide inside. tower: what sees images; None: the file has none.
    """

    name = "Gemma 4"
    prefixes = ("text_encoders.gemma4.transformer.", "")
    theta = 1e6
    scaled = True
    stop = (END, END_OF_RESPONSE, END_OF_TURN)
    turn = TURN

    every: int = 6
    wide_head: int = 512
    wide_kv_heads: int = 1
    keys_only: bool = False
    layer_width: int = 0
    shared: int = 0
    doubled: bool = False
    tower: Gemma4Tower | None = None

    @classmethod
    def recognises(cls, inner: Tensors) -> bool:
        return "layers.0.layer_scalar" in inner.shapes

    @classmethod
    def probe(cls, tensors: Tensors) -> Gemma4Text:
        """Read the network's size off its tensors. Errors: ModelFileError for an unsupported variant."""
        found = super(Gemma4Text, cls).probe(tensors)
        inner = cls.inner(tensors)
        if inner.has("layers.0.experts."):
            raise tensors.unsupported("holds a Gemma 4 with experts, which is not supported")

        def rows(layer: int, name: str) -> int:
            return inner.shapes.get(f"layers.{layer}.{name}.weight", (0,))[0]

        heads = [rows(layer, "self_attn.q_norm") for layer in range(found.layers)]
        wide = next((layer for layer, head in enumerate(heads) if head != heads[0]), None)
        if wide is None:
            raise tensors.unsupported(f"holds a Gemma 4 none of whose {found.layers} layers sees all tokens")
        last = [
            layer
            for layer in range(found.layers)
            if rows(layer, "mlp.gate_proj") > found.hidden_width or not rows(layer, "self_attn.k_proj")
        ]
        layer_width = inner.shapes.get("embed_tokens_per_layer.weight", (0, 0))[1] // found.layers
        return replace(
            found,
            every=wide + 1,
            wide_head=heads[wide],
            wide_kv_heads=rows(wide, "self_attn.k_proj") // heads[wide],
            keys_only=not rows(wide, "self_attn.v_proj"),
            layer_width=layer_width,
            shared=len(last) or (SHARED_E4B.get(found.layers, 0) if layer_width else 0),
            doubled=rows(found.layers - 1, "mlp.gate_proj") > found.hidden_width,
            tower=Gemma4Tower.probe(tensors) if layer_width else None,
        )

    @property
    def window(self) -> int:
        return WINDOW_SMALL if self.layer_width else WINDOW

    @property
    def primes(self) -> bool:
        """Whether its answers begin with an empty thought, unless it is to think."""
        return not self.layer_width

    @property
    def sees(self) -> bool:
        """Whether it sees images that texts are about."""
        return self.tower is not None

    def sees_window(self, layer: int) -> bool:
        return (layer + 1) % self.every != 0

    def table(self, tensors: Tensors | None = None) -> Table:
        table = {**super(Gemma4Text, self).table(tensors)}
        if self.layer_width:
            table |= {f"{root}{name}": name for root in ("model.language_model.", "model.") for name in _BESIDES}
        if self.tower is not None:
            table |= {"vision_model": "tower", "multi_modal_projector.embedding_projection": "tower.projection"}
        return table

    def build(self) -> nn.Module:
        network = super(Gemma4Text, self).build()
        if self.tower is not None:
            network.add_module("tower", self.tower.build(self.width))
        for part in network.children():
            buffers_as_weights(part)
        return network

    def language_model(self) -> Gemma4LM:
        return Gemma4LM(self, *self.parts())

    def prompt_format_for(self, loaded_as: str) -> PromptFormat:
        least = PROMPT_LEAST if loaded_as == PADDED_BY else 1
        taps = tuple(range(self.layers + 1))
        return PromptFormat(
            "gemma4", weighs=False, embeds=False, start=START, pad=PAD, least=least, masked=True, taps=taps
        )

    def parts(self) -> tuple[Callable[[int], nn.Module], nn.Module]:
        kinds = ["sliding_attention" if self.sees_window(layer) else "full_attention" for layer in range(self.layers)]
        config = Gemma4TextConfig(
            **self.sizes(),
            layer_types=kinds,
            sliding_window=self.window,
            global_head_dim=self.wide_head,
            num_global_key_value_heads=self.wide_kv_heads,
            attention_k_eq_v=self.keys_only,
            hidden_size_per_layer_input=self.layer_width,
            vocab_size_per_layer_input=self.tokens,
            num_kv_shared_layers=self.shared,
            use_double_wide_mlp=self.doubled,
        )
        return lambda i: Gemma4TextDecoderLayer(config, i), Gemma4RMSNorm(self.width, self.eps)

    def tokenizer(self, vocabulary: bytes | None, lexicon: TextResources) -> Tokenizer:
        if vocabulary is None:
            raise ModelFileError(f"the file of {self.name} has no tokeniser, 'tokenizer_json'; a published file has it")
        pieces = WordPieces.from_str(vocabulary.decode())
        return Tokenizer(
            lambda text: list(pieces.encode(text, add_special_tokens=False).ids),
            lambda tokens: told(pieces.decode(list(tokens), skip_special_tokens=False)),
        )

    def encoder(self, network: Any, lexicon: TextResources) -> Gemma4Encoder:
        plain = super(Gemma4Text, self).encoder(network, lexicon)
        return Gemma4Encoder(self, plain.prompt_format, plain.tokenizer, network, lexicon.vectors)


def _ids(tokens: Sequence[Token]) -> list[int]:
    """Return tokens, with 0 for a vector that is of none."""
    return [token if isinstance(token, int) else 0 for token in tokens]


def told(text: str) -> str:
    """Return a generated text without marks of turns and channels; thoughts become <think>…</think>."""
    text = _THOUGHT.sub(lambda found: f"<think>\n{found[1]}</think>", text)
    text = text.replace("<|channel>thought\n", "<think>\n")
    return _MARKS.sub("", text).replace("<eos>", "").strip()


class Gemma4LM(CausalLM):
    """The language model. Its forward also takes the tokens that vectors are of, where layers have vectors of them."""

    def __init__(self, family: Gemma4Text, layer: Callable[[int], nn.Module], norm: nn.Module) -> None:
        super().__init__(family, layer, norm)
        self._layer_width, self._width = family.layer_width, family.width
        if family.layer_width:
            every = family.layers * family.layer_width
            self.embed_tokens_per_layer = nn.Embedding(family.tokens, every)
            self.per_layer_model_projection = nn.Linear(family.width, every, bias=False)
            self.per_layer_projection_norm = Gemma4RMSNorm(family.layer_width, family.eps)

    def forward(
        self,
        x: Tensor,
        mask: Tensor | None,
        rotation: Rotation,
        last: int,
        cache: Cache | None = None,
        deeper: Sequence[Tensor] = (),
        near: tuple[Tensor | None, Rotation] | None = None,
        tokens: Tensor | None = None,
    ) -> Iterator[Tensor]:
        """Yield the states, as `CausalLM`. tokens: (N,T), 0 for a vector that is of none."""
        of_layers = self._of_layers(x, tokens)
        yield x
        shared: dict[str, Any] = {}
        for number, layer in enumerate(self.layers[:last]):
            seen, turned = near if near is not None and self.sees_window[number] else (mask, rotation)
            x = layer(
                x,
                per_layer_input=None if of_layers is None else of_layers[:, :, number],
                shared_kv_states=shared,
                attention_mask=seen,
                position_embeddings=turned,
                **as_cache(cache),
            )
            yield x

    def _of_layers(self, x: Tensor, tokens: Tensor | None) -> Tensor | None:
        """Return the vectors of tokens for each layer, (N,T,L,d)."""
        if not self._layer_width:
            return None
        of_x: Tensor = self.per_layer_model_projection(x) / sqrt(self._width)
        made: Tensor = self.per_layer_projection_norm(torch.unflatten(of_x, 2, (-1, self._layer_width)))
        if tokens is None:
            return made
        own: Tensor = self.embed_tokens_per_layer(tokens).to(made) * sqrt(self._layer_width)
        return (made + torch.unflatten(own, 2, (-1, self._layer_width))) * sqrt(0.5)


class Gemma4Encoder(DecoderEncoder):
    """Gemma 4 on its device. It generates texts; only with a projection of its states it encodes any."""

    def encode(
        self, texts: Sequence[Text], stop_at: int | None = None, padding: T5Padding | None = None
    ) -> list[Conditioning]:
        raise NodeError(
            f"{self.family.title} alone encodes no texts: LTX-2.5's file has a projection of its states, "
            "'text_embedding_projection.'; this one generates texts"
        )

    def framed(self, text: str, padding: T5Padding | None = None) -> Weighted:
        return super().framed(text, T5Padding(pads=0, length=1))

    def forward(self, x: Tensor, seen: Tensor | None, stop_at: int | None) -> Tensor:
        count, least = x.shape[1], self.prompt_format.least
        # ComfyUI pads on the left, and angles of positions are rounded.
        before = max(0, least - count) if seen is None else (least - seen.sum(dim=1, keepdim=True)).clamp(min=0)
        return self.states(self.scaled(x), seen, torch.arange(count, device=x.device)[None] + before, stop_at)

    def turns(self, positions: Tensor, dtype: torch.dtype) -> tuple[Rotation, Rotation | None]:
        family = self.gemma
        steps = torch.arange(0, family.wide_head, 2, dtype=torch.float32, device=positions.device) / family.wide_head
        frequencies = torch.where(steps < ROTATED, family.theta**-steps, 0.0)
        _, near = super().turns(positions, dtype)
        angles = (positions[..., None].float() * frequencies).repeat(1, 1, 2)
        return (angles.cos().to(dtype), angles.sin().to(dtype)), near

    def beside(self, rows: Sequence[Sequence[Token]]) -> dict[str, Any]:
        if not self.gemma.layer_width:
            return {}
        longest = max(map(len, rows))
        ids = torch.tensor([_ids(row) + [0] * (longest - len(row)) for row in rows])
        return {"tokens": to_device(ids, self.network.embed_tokens.weight.device)}

    def logits(self, states: Tensor) -> Tensor:
        made = CAP * torch.tanh(super().logits(states) / CAP)
        # ComfyUI's rule for the 12B, whose images and sounds are vectors between these.
        if not self.gemma.keys_only:
            return made
        return made.index_fill(-1, to_device(torch.tensor(UNSAID), made.device), torch.finfo(made.dtype).min)

    def penalized(self, prompt: Sequence[Token]) -> Sequence[int]:
        return _ids(prompt)

    def prompt(self, request: GenerationRequest) -> Weighted:
        """Return the prompt's tokens, in the template unless it has turns of its own. An image becomes vectors."""
        family = self.gemma
        media = "" if request.image is None else f"\n\n{IMAGE_MARK}\n\n"
        whole = request.text
        if request.use_template and not whole.startswith(TURN):
            opened = UNTHOUGHT if family.primes and not request.thinking else ""
            system = THINKING if request.thinking else ""
            whole = f"{system}{TURN}user\n{whole}{media}<turn|>\n{TURN}model\n{opened}"
        tokens = self.framed(whole)
        tokens = [(PAD, 1.0)] * (self.prompt_format.least - len(tokens)) + tokens
        at = next((at for at, (token, _) in enumerate(tokens) if token == IMAGE), None)
        if request.image is None or at is None or family.tower is None:
            return tokens
        # The vectors of tokens are scaled later on, those of images are not.
        vectors = see(self.network.tower, family.tower, seen_pixels(request.image)) / family.width**0.5
        return [*tokens[:at], *((vector, 1.0) for vector in vectors), *tokens[at + 1 :]]

    @property
    def gemma(self) -> Gemma4Text:
        assert isinstance(self.family, Gemma4Text)
        return self.family
