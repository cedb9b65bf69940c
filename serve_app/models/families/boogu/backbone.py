"""Boogu-Image and its edition for edits: OmniGen2's layers, with some before them where text and images are apart.

Reads the authors' names; run by the layers of diffusers' Lumina2Transformer2DModel. Source: Boogu 2026, Boogu-Image
0.1; the numbers are ComfyUI's.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch
from diffusers.models.attention import LuminaFeedForward
from diffusers.models.normalization import LuminaRMSNormZero
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention

from serve_app.models.families.dit.lumina2 import FACTOR, MULTIPLE
from serve_app.models.families.dit.omnigen2 import EPS, OmniGen2
from serve_app.models.families.shared.dit import by_heads
from serve_app.models.families.shared.one_stream import Stream
from serve_app.models.files.layout import Table
from serve_app.models.files.tensors import Tensors
from serve_app.models.kernels.attention import attention_over
from serve_app.models.kernels.rotary import rotated
from serve_app.models.ranks.sharding import Sharding, sharding
from serve_app.recipe.training import Flow

DOUBLES = "double_stream_layers"


@dataclass(frozen=True, slots=True)
class Boogu(OmniGen2):
    """A backbone. doubles: number of layers where text and images are apart."""

    title = "Boogu-Image"
    trained_as = Flow(3.16, 1.0)
    stack = "single_stream_layers"

    doubles: int = 0

    @classmethod
    def probe(cls, tensors: Tensors) -> Boogu:
        found = super(Boogu, cls).probe(tensors)
        assert isinstance(found, Boogu)
        return replace(found, doubles=tensors.count(f"{DOUBLES}."))

    def table(self, tensors: Tensors | None = None) -> Table:
        return {**super(Boogu, self).table(tensors), DOUBLES: DOUBLES}

    def build(self) -> nn.Module:
        network = super(Boogu, self).build()
        network.add_module(DOUBLES, nn.ModuleList(_Layer(self) for _ in range(self.doubles)))
        return network

    def together(self, network: Any, image: Stream, text: Stream, time: Tensor, shards: Sharding) -> Stream:
        both, of_images = image.followed_by(text).sharded(shards), sharding(*shards.lengths[:-1])
        layers, image, words = network.get_submodule(DOUBLES), image.sharded(of_images), shards.shard(text.tokens, 2)
        alone = [(layer.img_self_attn, of_images.of_attention) for layer in layers]
        with attention_over(shards.of_attention, apart=alone):
            for layer in layers:
                image, words = layer(image, words, time, both)
        return replace(both, tokens=torch.cat([image.tokens, words], dim=1))


class _Layer(nn.Module):
    """A layer in which images attend to the text and themselves, and then once more to themselves alone."""

    def __init__(self, family: Boogu) -> None:
        super().__init__()
        width = family.width
        self.img_instruct_attn = _Joint(family)
        self.img_self_attn = _Attention(family)
        for name in ("img_feed_forward", "instruct_feed_forward"):
            self.add_module(name, LuminaFeedForward(width, FACTOR * width, MULTIPLE))
        for name in ("img_norm1", "img_norm2", "img_norm3", "instruct_norm1", "instruct_norm2"):
            self.add_module(name, LuminaRMSNormZero(width, EPS, norm_elementwise_affine=True))
        for name in ("img_attn_norm", "img_self_attn_norm", "img_ffn_norm1", "img_ffn_norm2"):
            self.add_module(name, nn.RMSNorm(width, EPS))
        for name in ("instruct_attn_norm", "instruct_ffn_norm1", "instruct_ffn_norm2"):
            self.add_module(name, nn.RMSNorm(width, EPS))

    def forward(self, image: Stream, text: Tensor, time: Tensor, both: Stream) -> tuple[Stream, Tensor]:
        """Return the images and the text's tokens after the layer. time: (R,W). both: as all tokens are placed."""
        layer: Any = self
        of_image, image_gate, image_scale, image_fed_gate = layer.img_norm1(image.tokens, time)
        again, again_gate, _, _ = layer.img_norm3(image.tokens, time)
        of_text, text_gate, text_scale, text_fed_gate = layer.instruct_norm1(text, time)
        image_input, image_shift, _, _ = layer.img_norm2(image.tokens, time)
        text_input, text_shift, _, _ = layer.instruct_norm2(text, time)
        found_image, found_text = layer.img_instruct_attn(of_image, of_text, both)
        itself = layer.img_self_attn(replace(image, tokens=again))
        tokens = image.tokens + _opened(image_gate, layer.img_attn_norm(found_image))
        tokens = tokens + _opened(again_gate, layer.img_self_attn_norm(itself))
        inner = layer.img_ffn_norm1((1 + image_scale[:, None]) * image_input + image_shift[:, None])
        tokens = tokens + _opened(image_fed_gate, layer.img_ffn_norm2(layer.img_feed_forward(inner)))
        words = text + _opened(text_gate, layer.instruct_attn_norm(found_text))
        inner = layer.instruct_ffn_norm1((1 + text_scale[:, None]) * text_input + text_shift[:, None])
        words = words + _opened(text_fed_gate, layer.instruct_ffn_norm2(layer.instruct_feed_forward(inner)))
        return replace(image, tokens=tokens), words


class _Attention(nn.Module):
    """Attention of a stream to itself, several queries to each key."""

    def __init__(self, family: Boogu) -> None:
        super().__init__()
        width, self.head = family.width, family.width // family.heads
        self.to_q = nn.Linear(width, width, bias=False)
        self.to_k, self.to_v = (nn.Linear(width, family.shared * self.head, bias=False) for _ in range(2))
        self.norm_q, self.norm_k = nn.RMSNorm(self.head, EPS), nn.RMSNorm(self.head, EPS)
        self.to_out = nn.ModuleList([nn.Linear(width, width, bias=False)])

    def forward(self, x: Stream) -> Tensor:
        """Return what the tokens find, (R,S,W)."""
        made: Tensor = self.to_out[0](_found(self, self.to_q(x.tokens), self.to_k(x.tokens), self.to_v(x.tokens), x))
        return made


class _Joint(nn.Module):
    """Attention of an image and a text to both, each with its own layers."""

    def __init__(self, family: Boogu) -> None:
        super().__init__()
        width, self.head = family.width, family.width // family.heads
        self.norm_q, self.norm_k = nn.RMSNorm(self.head, EPS), nn.RMSNorm(self.head, EPS)
        self.to_out = nn.ModuleList([nn.Linear(width, width, bias=False)])
        self.processor = nn.Module()
        for stream in ("img", "instruct"):
            for kind, made in (("q", width), ("k", family.shared * self.head), ("v", family.shared * self.head)):
                self.processor.add_module(f"{stream}_to_{kind}", nn.Linear(width, made, bias=False))
            self.processor.add_module(f"{stream}_out", nn.Linear(width, width, bias=False))

    def forward(self, image: Tensor, text: Tensor, both: Stream) -> tuple[Tensor, Tensor]:
        """Return what the image's and the text's tokens find. both: as they are placed."""

        def of(name: str, x: Tensor) -> Tensor:
            made: Tensor = self.processor.get_submodule(name)(x)
            return made

        q, k, v = (torch.cat([of(f"img_to_{kind}", image), of(f"instruct_to_{kind}", text)], dim=1) for kind in "qkv")
        found, count = _found(self, q, k, v, both), image.shape[1]
        of_image, of_text = of("img_out", found[:, :count]), of("instruct_out", found[:, count:])
        return self.to_out[0](of_image), self.to_out[0](of_text)


def _found(layer: Any, q: Tensor, k: Tensor, v: Tensor, where: Stream) -> Tensor:
    """Return what attention finds, (R,S,W), for queries, keys and values (R,S,…) of tokens that are so placed."""
    q, k, v = (torch.unflatten(part, -1, (-1, layer.head)) for part in (q, k, v))
    q, k = rotated(layer.norm_q(q), layer.norm_k(k), where.turns)
    q, k, v = (part.transpose(1, 2) for part in (q, k, v))
    found = scaled_dot_product_attention(q, k, v, attn_mask=by_heads(where.there), enable_gqa=True)
    return found.transpose(1, 2).flatten(2)


def _opened(gate: Tensor, x: Tensor) -> Tensor:
    """Return tokens (R,S,W) times a gate (R,W)."""
    return gate[:, None].tanh() * x
