"""Small networks of Stable Audio 3, and what they are asked, here and in ComfyUI."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from tests.parity.dit_cases import drawn

TEXT = 768
"""Width of a text, which ComfyUI knows as one."""
NET: dict[str, Any] = {
    "audio_model": "dit1.0",
    "io_channels": 256,
    "embed_dim": 128,
    "cond_token_dim": TEXT,
    "global_cond_dim": TEXT,
    "project_cond_tokens": True,
    "depth": 2,
    "num_heads": 2,
    "num_memory_tokens": 4,
    "local_add_cond_dim": 257,
    "global_cond_shared_embed": True,
    "global_cond_type": "adaLN",
    "timestep_features_type": "expo",
    "input_concat_dim": 0,
    "attn_kwargs": {"qk_norm": "rms", "differential": True},
    "norm_type": "rms_norm",
}
"""ComfyUI's arguments of the network."""
VAE: dict[str, Any] = {"channels": 32, "transformer_depths": 3, "sinusoidal_blocks": 2, "sliding_window": [1, 1]}
TEXT_SIZES: dict[str, int] = {
    "vocab_size": 64,
    "hidden_size": TEXT,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
}
TOKENS = ((5, 9, 33, 2, 60), (7, 8, 0, 0, 0), (0, 0, 0, 0, 0))
"""Tokens of texts; 0 is padding."""
SECONDS, LENGTH = 2.0, 20
"""Of the sound that is sampled, and latents of the sound that modules are asked about."""
SEED, STEPS, CFG = 7, 3, 2.0
RUNS = ("lcm|simple|1.0", "euler|normal|0.7")
"""Sampler, schedule and denoise."""


def weights(shapes: Mapping[str, Any]) -> dict[str, Tensor]:
    """Return weights of these names and shapes; what is divided by is not near zero."""
    made = {name: drawn(name, shape) for name, shape in shapes.items()}
    for name, shape in shapes.items():
        if name.endswith(("running_std", "weight_g", "original0")):
            made[name] = torch.full(tuple(shape), 0.8)
    return made
