"""Lumina Image 2.0.

Reads the authors' single file; run by the layers of diffusers' Lumina2Transformer2DModel. Source: Qin et al. 2025,
arXiv:2503.21758; the numbers are ComfyUI's.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from diffusers.models.transformers.transformer_lumina2 import Lumina2Transformer2DModel
from torch import Tensor, nn

from serve_app.models.families.shared.dit import PATCH, WHOLE_EPS
from serve_app.models.families.shared.one_stream import OneStream
from serve_app.models.files.layout import Place, Table
from serve_app.models.files.tensors import Tensors
from serve_app.recipe.training import Flow

SHIFT = 6.0
THETA = 10000.0
AXES = 3
"""A head is in this many equal parts, each rotated by one coordinate."""
FACTOR, MULTIPLE = 4, 256
"""A layer is wider inside by the factor, up to the next such multiple."""

_NEWBIE = "clip_text_pooled_proj."
_LAYER = {
    "attention.out": "attn.to_out.0",
    "attention.q_norm": "attn.norm_q",
    "attention.k_norm": "attn.norm_k",
    "feed_forward.w1": "feed_forward.linear_1",
    "feed_forward.w2": "feed_forward.linear_2",
    "feed_forward.w3": "feed_forward.linear_3",
    "adaLN_modulation.1": "norm1.linear",
    "attention_norm2": "norm2",
    "ffn_norm1": "ffn_norm1",
    "ffn_norm2": "ffn_norm2",
}
_ENDS = {
    "x_embedder": "x_embedder",
    "cap_embedder": "time_caption_embed.caption_embedder",
    "t_embedder.mlp.0": "time_caption_embed.timestep_embedder.linear_1",
    "t_embedder.mlp.2": "time_caption_embed.timestep_embedder.linear_2",
    "final_layer.adaLN_modulation.1": "norm_out.linear_1",
    "final_layer.linear": "norm_out.linear_2",
}


@dataclass(frozen=True, slots=True)
class Lumina2(OneStream):
    """A backbone. width: of a token; heads: of queries, shared: of keys and values."""

    title = "Lumina 2"
    dispatches = False
    trained_as = Flow(SHIFT, 1.0)
    theta = THETA

    width: int
    heads: int
    shared: int
    layers: int
    refiners: int
    text_width: int
    latent_channels: int = 16

    @classmethod
    def probe(cls, tensors: Tensors) -> Lumina2:
        """Read the network's size off its tensors. Errors: ModelFileError for NewBie and unsupported variants."""
        if tensors.has(_NEWBIE):
            raise tensors.unsupported("is NewBie, which is not supported")
        width, text_width = tensors.shape("cap_embedder.1.weight")
        head = tensors.shape("layers.0.attention.q_norm.weight")[0]
        fused = tensors.shape("layers.0.attention.qkv.weight")[0]
        wide = tensors.shape("layers.0.feed_forward.w1.weight")[0]
        if width % head or head % (2 * AXES) or (fused - width) % (2 * head) or wide != inside(width):
            raise tensors.unsupported(
                f"has a Lumina 2 backbone {width} wide with heads of {head} and {wide} inside; supported are heads "
                f"of a multiple of {2 * AXES} and {inside(width)} inside"
            )
        return cls(
            width,
            width // head,
            (fused - width) // (2 * head),
            tensors.count("layers."),
            tensors.count("noise_refiner."),
            text_width,
            tensors.shape("x_embedder.weight")[1] // PATCH**2,
        )

    @property
    def axes(self) -> tuple[int, ...]:
        return (self.width // self.heads // AXES,) * AXES

    @property
    def sharded_heads(self) -> int:
        return self.heads

    def table(self, tensors: Tensors | None = None) -> Table:
        table: dict[str, str | tuple[Place, ...]] = dict(_ENDS)
        keys = self.width // self.heads * self.shared
        ends = (0, self.width, self.width + keys, self.width + 2 * keys)
        for stack, count in (
            ("layers", self.layers),
            ("noise_refiner", self.refiners),
            ("context_refiner", self.refiners),
        ):
            for number in range(count):
                layer = f"{stack}.{number}"
                table |= {f"{layer}.{theirs}": f"{layer}.{ours}" for theirs, ours in _LAYER.items()}
                # Without modulation the norm is the whole of it.
                table[f"{layer}.attention_norm1"] = f"{layer}.norm1{'' if stack == 'context_refiner' else '.norm'}"
                table[f"{layer}.attention.qkv"] = tuple(
                    Place(f"{layer}.attn.to_{kind}", rows=(ends[i], ends[i + 1])) for i, kind in enumerate("qkv")
                )
        return table

    def build(self) -> nn.Module:
        network = Lumina2Transformer2DModel(
            in_channels=self.latent_channels,
            hidden_size=self.width,
            num_layers=self.layers,
            num_refiner_layers=self.refiners,
            num_attention_heads=self.heads,
            num_kv_heads=self.shared,
            multiple_of=MULTIPLE,
            axes_dim_rope=self.axes,
            cap_feat_dim=self.text_width,
        )
        for name, module in network.named_modules():
            if name.endswith(("norm_q", "norm_k")):
                module.eps = WHOLE_EPS
        built: nn.Module = network
        return built

    def time(self, network: Any, time: Tensor) -> Tensor:
        embed = network.time_caption_embed
        made: Tensor = embed.timestep_embedder(embed.time_proj(time).to(network.x_embedder.bias.dtype))
        return made

    def embedded_image(self, network: Any) -> tuple[nn.Module, Tensor | None]:
        return network.x_embedder, None

    def embedded_text(self, network: Any) -> tuple[nn.Module, Tensor | None]:
        return network.time_caption_embed.caption_embedder, None

    def last(self, network: Any, tokens: Tensor, time: Tensor) -> Tensor:
        made: Tensor = network.norm_out(tokens, time)
        return made


def inside(width: int) -> int:
    """Return the width of a feed-forward layer for tokens of a width."""
    return -(-FACTOR * width // MULTIPLE) * MULTIPLE
