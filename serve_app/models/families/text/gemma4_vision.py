"""How the small Gemma 4 see an image: patches of 16×16 pixels through a transformer, of which nine make a token.

The layers are transformers'. Source: Gemma 2026; the numbers are ComfyUI's.
"""

from __future__ import annotations

from math import floor, sqrt
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.functional import avg_pool2d, interpolate
from transformers.models.gemma4.configuration_gemma4 import Gemma4VisionConfig
from transformers.models.gemma4.modeling_gemma4 import (
    Gemma4RMSNorm,
    Gemma4VisionEncoderLayer,
    Gemma4VisionPatchEmbedder,
)

from serve_app.errors import NodeError
from serve_app.models.files.tensors import Tensors
from serve_app.sampling.transfer import to_device

PATCH, POOLED, MOST_TOKENS = 16, 3, 280
"""Side of a patch; patches along a side of a token; most tokens of an image."""
THETA = 100.0


class Gemma4Tower(NamedTuple):
    """The size of a tower. places: size of the learnt table of positions; clipped: activations stay within bounds."""

    layers: int
    width: int
    hidden_width: int
    head: int
    places: int
    clipped: bool

    @classmethod
    def probe(cls, tensors: Tensors) -> Gemma4Tower | None:
        """Read the tower's size off a text encoder's tensors; None where there is none."""
        if not tensors.has("vision_model.encoder.layers."):
            return None
        inner = tensors.within("vision_model.")
        first = "encoder.layers.0"
        _, places, width = inner.shape("patch_embedder.position_embedding_table")
        return cls(
            inner.count("encoder.layers."),
            width,
            inner.shape(f"{first}.mlp.gate_proj.linear.weight")[0],
            inner.shape(f"{first}.self_attn.q_norm.weight")[0],
            places,
            f"{first}.self_attn.q_proj.input_max" in inner.shapes,
        )

    def build(self, outside: int) -> nn.Module:
        """Return the empty network. outside: width of the language model's vectors."""
        config = Gemma4VisionConfig(
            hidden_size=self.width,
            intermediate_size=self.hidden_width,
            num_hidden_layers=self.layers,
            num_attention_heads=self.width // self.head,
            num_key_value_heads=self.width // self.head,
            head_dim=self.head,
            patch_size=PATCH,
            position_embedding_size=self.places,
            use_clipped_linears=self.clipped,
            attn_implementation="sdpa",
        )
        network, encoder = nn.Module(), nn.Module()
        network.add_module("patch_embedder", Gemma4VisionPatchEmbedder(config))
        layers = nn.ModuleList([Gemma4VisionEncoderLayer(config, number) for number in range(self.layers)])
        encoder.add_module("layers", layers)
        network.add_module("encoder", encoder)
        network.add_module("norm", Gemma4RMSNorm(self.width, config.rms_norm_eps, with_scale=False))
        network.add_module("projection", nn.Linear(self.width, outside, bias=False))
        return network


def seen_pixels(image: Tensor) -> Tensor:
    """Return an image (1,H,W,3) in 0…1 at the size that is seen, (1,3,h,w). Errors: NodeError for one too narrow."""
    height, width = image.shape[1:3]
    side, most = POOLED * PATCH, MOST_TOKENS * (POOLED * PATCH) ** 2
    scale = sqrt(most / (height * width))
    rows, columns = (floor(scale * length / side) for length in (height, width))
    if not rows and not columns:
        raise NodeError(f"the image is {width}×{height}, and its text encoder sees none of it")
    if not rows:
        rows, columns = 1, min(width // height, MOST_TOKENS)
    elif not columns:
        rows, columns = min(height // width, MOST_TOKENS), 1
    pixels = (image.movedim(-1, 1).clamp(0, 1) * 255).floor()
    if (rows * side, columns * side) != (height, width):
        size = (rows * side, columns * side)
        pixels = interpolate(pixels, size=size, mode="bicubic", antialias=True).clamp(0, 255).round()
    return pixels / 255


def see(network: Any, tower: Gemma4Tower, pixels: Tensor) -> Tensor:
    """Return the vectors (N,D) of an image (1,3,h,w), as the language model's first layer reads them."""
    rows, columns = (length // PATCH for length in pixels.shape[2:])
    table = network.patch_embedder.position_embedding_table
    cut = torch.unflatten(torch.unflatten(pixels, 3, (columns, PATCH)), 2, (rows, PATCH))
    patches = to_device(cut.permute(0, 2, 4, 3, 5, 1).flatten(3).flatten(1, 2), table.device)
    places = torch.cartesian_prod(torch.arange(rows), torch.arange(columns)).flip(1)[None]
    places = to_device(places, table.device)
    x = network.patch_embedder(patches, places, torch.zeros_like(places[..., 0], dtype=torch.bool))
    steps = torch.arange(0, tower.head // 2, 2, dtype=torch.float32, device=x.device) / (tower.head // 2)
    angles = places[..., None].float() * THETA**-steps
    turned = torch.cat([angles[:, :, 0], angles[:, :, 0], angles[:, :, 1], angles[:, :, 1]], dim=-1)
    turns = turned.cos().to(x.dtype), turned.sin().to(x.dtype)
    for layer in network.encoder.layers:
        x = layer(x, position_embeddings=turns, attention_mask=None, position_ids=places)
    grid = torch.unflatten(x.float().transpose(1, 2), 2, (rows, columns))
    pooled = avg_pool2d(grid, POOLED).flatten(2).transpose(1, 2).to(x.dtype) * tower.width**0.5
    vectors: Tensor = network.projection(network.norm(pooled))[0]
    return vectors
