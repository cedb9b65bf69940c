"""What image encoders, style models and unCLIP are compared with ComfyUI on: small networks, and what they are shown.

Networks are ComfyUI's arguments; weights and inputs are drawn from names, so both sides make them for themselves. Torch
alone is imported here: the figures are made in ComfyUI's environment.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any
from zlib import crc32

import torch
from torch import Tensor

_CLIP: dict[str, Any] = {
    "model_type": "clip_vision_model",
    "num_channels": 3,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_attention_heads": 16,
    "image_size": 32,
    "patch_size": 8,
}
_HALF = {"image_mean": [0.5] * 3, "image_std": [0.5] * 3}
_SIGLIP: dict[str, Any] = {
    **_CLIP,
    **_HALF,
    "model_type": "siglip_vision_model",
    "num_hidden_layers": 27,
    "hidden_act": "gelu_pytorch_tanh",
}
ENCODERS: Mapping[str, dict[str, Any]] = {
    "l": {**_CLIP, "num_hidden_layers": 24, "hidden_act": "quick_gelu", "projection_dim": 24},
    "l bare": {**_CLIP, "num_hidden_layers": 23, "hidden_act": "quick_gelu"},
    "h": {**_CLIP, "num_hidden_layers": 32, "hidden_act": "gelu", "projection_dim": 40, "patch_size": 4},
    "g": {**_CLIP, "num_hidden_layers": 48, "hidden_act": "gelu", "projection_dim": 24, "hidden_size": 16},
    "siglip 384": {**_SIGLIP, "image_size": 384, "patch_size": 14},
    "siglip 512": {**_SIGLIP, "image_size": 512, "patch_size": 16},
}
OPEN_CLIP: Mapping[str, str] = {"h": "embedder.model.visual.", "g": "visual."}
"""Encoders whose files have OpenCLIP's names, and what comes before them."""

IMAGES: Mapping[str, tuple[int, int, int]] = {
    "exact": (2, 32, 32),
    "small": (1, 9, 21),
    "wide": (1, 70, 131),
    "tall": (2, 333, 100),
    "line": (1, 3, 250),
}
"""Sizes of what is looked at: images, height, width; their values go a little beyond 0…1."""

LOOKS: Sequence[tuple[str, str, bool]] = (
    *((name, image, crop) for name in ("l", "l bare", "h", "g") for image in IMAGES for crop in (True, False)),
    *(("siglip 384", image, crop) for image, crop in (("small", True), ("wide", False))),
    ("siglip 512", "wide", True),
)
"""What looks at what, and whether at its middle. SigLIP's are of many tokens, so they look at little."""

REDUX = {"redux_dim": 32, "txt_in_features": 48}
ADAPTER = {"width": 32, "context_dim": 24, "num_head": 8, "n_layes": 2, "num_token": 4}
"""ComfyUI's arguments of small style models."""
TEXTS = {"redux": (2, 5, 48), "adapter": (1, 7, 24)}
STATES = {"redux": (2, 9, 32), "adapter": (2, 17, 32)}
"""Shapes of the texts and of what is seen in two images."""


@dataclass(frozen=True)
class Styled:
    """A text that style models are applied to, one after another: strengths and their types. size: of latents."""

    style: str
    applied: Sequence[tuple[float, str]]
    size: tuple[int, int] = (8, 6)

    @property
    def name(self) -> str:
        return " ".join(map(str, (self.style, self.applied, self.size)))


STYLED: Sequence[Styled] = (
    Styled("redux", ((1.0, "multiply"),)),
    Styled("redux", ((0.4, "multiply"), (1.0, "attn_bias"))),
    Styled("redux", ((0.4, "attn_bias"),)),
    Styled("redux", ((3.0, "attn_bias"),), (9, 7)),
    Styled("redux", ((0.25, "attn_bias"), (0.7, "multiply"), (2.0, "attn_bias")), (7, 8)),
    Styled("adapter", ((0.8, "multiply"),)),
)

SEED = 5
UNCLIP: Mapping[str, Sequence[tuple[int, float, float]]] = {
    "one": ((1, 1.0, 0.0),),
    "noised": ((1, 0.7, 0.3),),
    "two of one node": ((2, -1.5, 0.1),),
    "two nodes": ((1, 1.0, 0.0), (1, 0.5, 1.0)),
}
"""What unCLIP is told: of each node the number of images, strength and noise augmentation."""
WIDTHS = (768, 1024)
"""Of what is seen by the encoders of SD 2.1 unCLIP."""
POOLED = 1280
"""And by those of SDXL's pooled text."""


def picture(name: str) -> Tensor:
    """Return images (B,H,W,3)."""
    return torch.rand(*IMAGES[name], 3, generator=torch.Generator().manual_seed(crc32(name.encode()))) * 1.1 - 0.05


def open_clip(weights: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """Return an image encoder's weights under the names of OpenCLIP."""
    begin = "vision_model."
    names = {
        f"{begin}embeddings.class_embedding": "class_embedding",
        f"{begin}embeddings.patch_embedding.weight": "conv1.weight",
        f"{begin}embeddings.position_embedding.weight": "positional_embedding",
    }
    parts = (
        (f"{begin}pre_layrnorm", "ln_pre"),
        (f"{begin}post_layernorm", "ln_post"),
        (f"{begin}encoder.layers", "transformer.resblocks"),
        ("layer_norm1", "ln_1"),
        ("layer_norm2", "ln_2"),
        ("mlp.fc1", "mlp.c_fc"),
        ("mlp.fc2", "mlp.c_proj"),
        ("self_attn.out_proj", "attn.out_proj"),
    )
    made: dict[str, Tensor] = {}
    for name, tensor in weights.items():
        theirs = names.get(name, name)
        for ours, other in parts:
            theirs = theirs.replace(ours, other)
        if name == "visual_projection.weight":
            made[f"{prefix}proj"] = tensor.t().contiguous()
        elif ".self_attn.q_proj." in name:
            leaf = name.rpartition(".")[2]
            three = [weights[name.replace("q_proj", f"{part}_proj")] for part in "qkv"]
            made[f"{prefix}{theirs.partition('.self_attn.')[0]}.attn.in_proj_{leaf}"] = torch.cat(three)
        elif "_proj." not in name or "out_proj" in name:
            made[prefix + theirs] = tensor
    return made
