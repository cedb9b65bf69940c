"""Small networks of Stable Video Diffusion, and what they are asked, here and in ComfyUI."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from tests.parity.dit_cases import drawn, noise

UNET: dict[str, Any] = {
    "image_size": 32,
    "in_channels": 8,
    "out_channels": 4,
    "model_channels": 64,
    "channel_mult": [1, 2, 2],
    "num_res_blocks": [1, 1, 1],
    "transformer_depth": [1, 1, 0],
    "transformer_depth_output": [1, 1, 1, 1, 0, 0],
    "transformer_depth_middle": 1,
    "context_dim": 48,
    "adm_in_channels": 768,
    "num_classes": "sequential",
    "num_heads": -1,
    "num_head_channels": 64,
    "use_linear_in_transformer": True,
    "use_temporal_attention": True,
    "use_temporal_resblock": True,
    "extra_ff_mix_layer": True,
    "use_spatial_context": True,
    "merge_strategy": "learned_with_images",
    "merge_factor": 0.0,
    "video_kernel_size": [3, 1, 1],
    "legacy": False,
    "use_spatial_transformer": True,
}
"""ComfyUI's arguments of the network."""

VAE: dict[str, Any] = {
    "double_z": True,
    "z_channels": 4,
    "resolution": 64,
    "in_channels": 3,
    "out_ch": 3,
    "ch": 32,
    "ch_mult": [1, 2],
    "num_res_blocks": 2,
    "attn_resolutions": [],
    "dropout": 0.0,
}
"""ComfyUI's arguments of the autoencoder's halves."""

FRAMES, SIZE = 5, (8, 12)
SEED, STEPS, CFG = 7, 4, 2.5
SAID = {"fps": 8, "motion_bucket_id": 90, "augmentation_level": 0.1}
RUNS = ("plain|euler|karras", "linear|dpmpp_2m|karras", "triangle|euler_ancestral|normal")
"""Guidance, sampler and schedule."""
LOWEST = 1.0


def weights(shapes: Mapping[str, Any]) -> dict[str, Tensor]:
    """Return weights of these names and shapes."""
    return {name: drawn(name, shape) for name, shape in shapes.items()}


def texts() -> dict[str, Tensor]:
    """Return what is seen in the image, by role."""
    seen = noise("seen", (1, 1, UNET["context_dim"]))
    return {"positive": seen, "negative": seen * 0}


def images() -> dict[str, Tensor]:
    """Return the latents of the image, by role; of another size than the video's."""
    image = noise("image", (1, 4, 10, 12))
    return {"positive": image, "negative": image * 0}
