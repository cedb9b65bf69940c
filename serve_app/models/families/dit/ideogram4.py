"""Ideogram 4: one stream of text and image; its text is thirteen layers of a language model's states.

Reads the authors' single file or diffusers'; run by the layers of diffusers' Ideogram4Transformer2DModel. Source:
Ideogram 2026, Ideogram 4; the numbers are ComfyUI's.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import torch
from diffusers.models.transformers.transformer_ideogram4 import (
    Ideogram4MRoPE,
    Ideogram4Transformer2DModel,
    _sinusoidal_embedding,
)
from torch import Tensor, nn
from torch.nn.functional import silu

from serve_app.models.families.family import Rows
from serve_app.models.families.shared.dit import (
    DOUBLES,
    IMAGE_TOKENS,
    PATCH,
    TEXT_TOKENS,
    Passing,
    Transformer,
    attended,
    by_heads,
    check_text,
    passed,
    positions,
    stacked,
    there,
    thirds,
)
from serve_app.models.families.shared.one_stream import TextInputs
from serve_app.models.files.layout import Place, Table
from serve_app.models.files.tensors import Tensors
from serve_app.models.forward import Inputs
from serve_app.models.kernels.attention import attention_over
from serve_app.models.ranks.sharding import sharding
from serve_app.recipe.training import Flow, Training
from serve_app.sampling.forward import Canvas, to_batch
from serve_app.sampling.latents.latent_formats import FLUX2
from serve_app.sampling.transfer import to_device

THETA = 5_000_000
SECTIONS = (24, 20, 20)
"""Frequencies of a head for the text's token, and for an image's row and column, which alternate."""
FIRST = 65536.0
"""The position of an image's first row and column, beyond those of any text."""
TIMES = 1e4

_MODULES = (
    *("input_proj", "llm_cond_norm", "llm_cond_proj", "t_embedding", "adaln_proj", "embed_image_indicator"),
    *("layers", "final_layer"),
)


@dataclass(frozen=True, slots=True)
class Ideogram4(Transformer):
    """A backbone. width: of a token; inside: of feed-forward layers; modulation: width of what modulates blocks."""

    title = "Ideogram 4"
    trained_as = Flow(1.0, 1.0)
    latent_format = FLUX2
    dtypes = (torch.bfloat16,)

    width: int
    heads: int
    layers: int
    inside: int
    text_width: int
    modulation: int = 512
    latent_channels: int = 128

    @classmethod
    def probe(cls, tensors: Tensors) -> Ideogram4:
        """Read the network's size off its tensors. Errors: ModelFileError for an unsupported variant."""
        width, channels = tensors.shape("input_proj.weight")
        head = tensors.shape("layers.0.attention.norm_q.weight")[0]
        if width % head or head < 2 * sum(SECTIONS) - 8 or channels % PATCH**2:
            raise tensors.unsupported(
                f"has an Ideogram 4 backbone {width} wide with heads of {head}; supported are heads of 120 and more"
            )
        return cls(
            width,
            width // head,
            tensors.count("layers."),
            tensors.shape("layers.0.feed_forward.w1.weight")[0],
            tensors.shape("llm_cond_norm.weight")[0],
            tensors.shape("adaln_proj.weight")[0],
            channels,
        )

    def table(self, tensors: Tensors | None = None) -> Table:
        table: dict[str, str | tuple[Place, ...]] = {name: name for name in _MODULES}
        for attention in (f"layers.{number}.attention" for number in range(self.layers)):
            table[f"{attention}.qkv"] = thirds(self.width, *(f"{attention}.to_{kind}" for kind in "qkv"))
            table[f"{attention}.o"] = f"{attention}.to_out.0"
        return table

    def build(self) -> nn.Module:
        network = Ideogram4Transformer2DModel(
            in_channels=self.latent_channels,
            num_layers=self.layers,
            attention_head_dim=self.width // self.heads,
            num_attention_heads=self.heads,
            intermediate_size=self.inside,
            adaln_dim=self.modulation,
            llm_features_dim=self.text_width,
        )
        # A table that is in no file: `call_inputs` computes what it needs.
        network.rotary_emb = nn.Identity()
        built: nn.Module = network
        return built

    @property
    def sharded_heads(self) -> int:
        return self.heads

    def inputs(
        self,
        cond: Tensor,
        options: Mapping[str, Any],
        role: str,
        canvas: Canvas,
        device: torch.device,
        trained_as: Training,
    ) -> TextInputs:
        """Return the text, which may have no tokens. Errors: NodeError for one of another family's encoder."""
        text = cond if cond.shape[1] else cond.new_zeros(1, 0, self.text_width)
        check_text(text, self.text_width, self.title)
        return TextInputs(to_batch(to_device(text, device).float(), canvas.rows))

    def call_inputs(self, network: Any, rows: Sequence[Rows]) -> Mapping[Any, Tensor | None]:
        """Return the call's input tensors. Rows may differ in level, text and its length, and LoRAs."""
        dtype, texts = network.input_proj.weight.dtype, [r.inputs.text for r in rows]
        text, size = stacked([one.to(dtype) for one in texts]), rows[0].x.shape[-2:]
        of_text = torch.arange(float(text.shape[1]))[:, None].expand(-1, 3)
        of_image = positions(size, patch=1) + FIRST
        at = torch.cat([of_text, of_image])
        cos, sin = _rotary(self.width // self.heads)(at[None])
        return {
            "x": torch.cat([r.x for r in rows]).to(dtype),
            "level": torch.cat([r.timestep for r in rows]),
            "text": text,
            "mask": by_heads(attended(there(texts), len(of_image))),
            "cos": to_device(cos, text.device).to(dtype),
            "sin": to_device(sin, text.device).to(dtype),
            **passed(rows),
        }

    def run(self, network: Any, rows: Sequence[Rows], given: Inputs) -> Tensor:
        x, text = given["x"], given["text"]
        # The network's time runs from noise to image.
        embed, time = network.t_embedding, TIMES * (1 - given["level"].float())
        embedded = embed.mlp_out(silu(embed.mlp_in(_sinusoidal_embedding(time, embed.dim).to(x.dtype))))
        modulation = silu(network.adaln_proj(embedded))[:, None]
        of_text, of_image = network.embed_image_indicator.weight
        words = network.llm_cond_proj(network.llm_cond_norm(text)) + of_text
        image, passing = network.input_proj(_tokens(x)) + of_image, Passing(rows, DOUBLES, given)
        shards = sharding(words.shape[1], image.shape[1])
        stream, mask = shards.shard(torch.cat([words, image], dim=1)), shards.mask(given.get("mask"))
        turns = shards.shard(given["cos"]), shards.shard(given["sin"])
        with attention_over(shards.of_attention):
            for number, layer in enumerate(network.layers):

                def call(layer: Any = layer, stream: Tensor = stream) -> Any:
                    return layer(stream, mask, turns, modulation)

                (stream,) = passing.through(number, call, stream)
        made = network.final_layer(stream[:, shards.count(TEXT_TOKENS) :], modulation)
        return -_latents(shards.gather(made, IMAGE_TOKENS), *x.shape[-2:])


@lru_cache(maxsize=8)
def _rotary(head: int) -> nn.Module:
    """Return what turns positions (1,L,3) to cosines and sines (1,L,head); so far out their rounding matters."""
    with torch.device("cpu"):
        made: nn.Module = Ideogram4MRoPE(head, THETA, SECTIONS)
    return made


def _tokens(latents: Tensor) -> Tensor:
    """Return latents (B,C,h,w) as tokens (B,hw,C), in which the channels of one pixel are contiguous."""
    by_pixel = latents.view(len(latents), -1, PATCH, PATCH, *latents.shape[-2:])
    return by_pixel.permute(0, 4, 5, 2, 3, 1).flatten(3).flatten(1, 2)


def _latents(tokens: Tensor, height: int, width: int) -> Tensor:
    """Return tokens (B,hw,C) as latents (B,C,height,width): the inverse of `_tokens`."""
    cut = tokens.view(len(tokens), height, width, PATCH, PATCH, -1)
    return cut.permute(0, 5, 3, 4, 1, 2).flatten(1, 3)
