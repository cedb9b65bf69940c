"""A small network of SAM 3.1, and what it is asked, here and in ComfyUI."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from tests.parity.dit_cases import drawn, noise

WIDTH = 64
"""Of the image encoder and of texts."""
NET: dict[str, Any] = {
    "image_model": "SAM31",
    "d_model": 32,
    "mem_dim": 32,
    "embed_dim": WIDTH,
    "depth": 8,
    "mlp_ratio": 1.5,
    "global_att_blocks": (1, 3, 5, 7),
    "num_queries": 6,
}
"""ComfyUI's arguments."""
LAYERS = 1
"""Of each of its other transformers."""
TOKENS = 5
TEXTS = ("a red cat, (two dogs): 2", "(a red cat) " * 12)
"""Two things, and one of more tokens than are read at once."""
FRAMES = 3
THRESHOLD = 0.02
POINTS = ((0.3, 0.4), (0.6, 0.7), (0.8, 0.2))
"""Two of a thing, and one that is not."""
BOX = (0.4, 0.5, 0.5, 0.6)
"""Centre and size."""


def weights(shapes: Mapping[str, Any]) -> dict[str, Tensor]:
    """Return weights of these names and shapes."""
    return {name: drawn(name, shape) for name, shape in shapes.items()}


def images(count: int, height: int = 60, width: int = 84) -> Tensor:
    """Return images of patches that move to the right, (B,H,W,3)."""
    scene = noise("scene", (1, 3, 8, 16)).sigmoid()
    scene = scene.repeat_interleave(height // 6, 2).repeat_interleave(width // 6, 3)
    return torch.cat([scene[..., :height, 3 * n : 3 * n + width] for n in range(count)]).movedim(1, -1).contiguous()


def text(name: str) -> tuple[Tensor, Tensor]:
    """Return the tokens of a text, of which the last is padding, and which count."""
    counts = torch.ones(1, TOKENS, dtype=torch.int64)
    counts[:, -1] = 0
    return noise(name, (1, TOKENS, WIDTH)), counts


def initial() -> Tensor:
    """Return the masks of two things in the first image."""
    masks = torch.zeros(2, 60, 84)
    masks[0, 10:40, 8:36] = 1
    masks[1, 25:55, 30:70] = 1
    return masks


def published(net: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return ComfyUI's tensors of a network under the names of the authors' file, with fused projections."""
    named = {}
    for name, tensor in net.items():
        if name.startswith("tracker."):
            name = "tracker.model." + name.removeprefix("tracker.")
        if "sam_mask_decoder.transformer." in name:
            name = name.replace(".mlp.0.", ".mlp.lin1.").replace(".mlp.2.", ".mlp.lin2.")
            name = name.replace(".norm_final.", ".norm_final_attn.")
        named[name] = tensor
    for name in [name for name in named if name.startswith("detector.") and ".q_proj." in name]:
        parts = [named.pop(name.replace(".q_proj.", f".{part}_proj.")) for part in "qkv"]
        named[name.replace(".q_proj.", ".in_proj_")] = torch.cat(parts)
    return named


def text_encoder() -> dict[str, Tensor]:
    """Return a text encoder as the file has it."""
    shapes: dict[str, tuple[int, ...]] = {
        "token_embedding.weight": (49408, WIDTH),
        "positional_embedding": (32, WIDTH),
        "text_projection": (WIDTH, WIDTH // 2),
        "ln_final.weight": (WIDTH,),
        "ln_final.bias": (WIDTH,),
    }
    sides = {"attn.in_proj_": (3 * WIDTH, WIDTH), "attn.out_proj.": (WIDTH, WIDTH)}
    sides |= {"mlp.c_fc.": (2 * WIDTH, WIDTH), "mlp.c_proj.": (WIDTH, 2 * WIDTH)}
    for layer in ("transformer.resblocks.0.", "transformer.resblocks.1."):
        for norm in ("ln_1.", "ln_2."):
            shapes |= {f"{layer}{norm}weight": (WIDTH,), f"{layer}{norm}bias": (WIDTH,)}
        for name, (outputs, inputs) in sides.items():
            shapes |= {f"{layer}{name}weight": (outputs, inputs), f"{layer}{name}bias": (outputs,)}
    return {f"detector.backbone.language_backbone.encoder.{name}": t for name, t in weights(shapes).items()}


def checkpoint(keys: Mapping[str, Any]) -> dict[str, Tensor]:
    """Return the whole file. keys: of the network, with their shapes."""
    return published(weights(keys)) | text_encoder()
