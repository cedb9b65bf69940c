"""What networks that look at pictures are compared with ComfyUI's on: small networks, and what their nodes are asked.

Weights are drawn from names (`dit_cases`), pictures by `image_cases`, so both sides make them for themselves. Torch
alone is imported here: the figures are made in ComfyUI's environment.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from tests.parity.dit_cases import weights as drawn_weights
from tests.parity.image_cases import image

SHAPE = (3, 60, 90, 3)
"""Of the pictures."""
DA3_LAYERS = {"hidden_size": 64, "num_hidden_layers": 12, "num_attention_heads": 1, "use_swiglu_ffn": False}
_DA3: dict[str, Any] = {
    "backbone_name": "tiny",
    "out_layers": (5, 7, 9, 11),
    "head_features": 16,
    "head_out_channels": (8, 12, 16, 24),
}
DA3: Mapping[str, dict[str, Any]] = {
    "da3 mono": {**_DA3, "head_type": "dpt", "head_dim_in": 64, "head_output_dim": 1},
    "da3 base": {
        **_DA3,
        **dict.fromkeys(("alt_start", "qknorm_start", "rope_start"), 4),
        "cat_token": True,
        "head_type": "dualdpt",
        "head_dim_in": 128,
        "head_output_dim": 2,
        "has_cam_dec": True,
    },
}
"""Arguments of Depth Anything 3, of ComfyUI's class."""
MONO = {"mode": "mono"}


def views(strategy: str) -> dict[str, str]:
    return {"mode": "multiview", "ref_view_strategy": strategy, "pose_method": "cam_dec"}


DEPTHS: Mapping[str, tuple[str, dict[str, Any]]] = {
    "da3 mono|small": ("da3 mono", {"resolution": 70, "resize_method": "upper_bound_resize", "mode": MONO}),
    "da3 base|small": ("da3 base", {"resolution": 84, "resize_method": "lower_bound_resize", "mode": MONO}),
    **{
        f"da3 base|{strategy}": (
            "da3 base",
            {"resolution": 70, "resize_method": "upper_bound_resize", "mode": views(strategy)},
        )
        for strategy in ("saddle_balanced", "saddle_sim_range", "middle")
    },
}
"""What DA3Inference is asked: a network, and the inputs."""
DA3_DRAWN: Mapping[str, tuple[str, dict[str, Any]]] = {
    f"{name}|{output['output']} {number}": (name, output)
    for name, outputs in {
        "da3 mono|small": (
            {"output": "depth", "normalization": "v2_style", "apply_sky_clip": False},
            {"output": "depth_colored", "normalization": "v2_style", "apply_sky_clip": True},
            {"output": "depth", "normalization": "min_max", "apply_sky_clip": True},
            {"output": "depth", "normalization": "raw", "apply_sky_clip": False},
            {"output": "sky_mask", "colored": True},
        ),
        "da3 base|small": (
            {"output": "depth", "normalization": "v2_style", "apply_sky_clip": False},
            {"output": "confidence", "colored": False},
        ),
    }.items()
    for number, output in enumerate(outputs)
}
"""What DA3Render is asked: the depths of a case, and the output."""


def weights(shapes: Mapping[str, Any]) -> dict[str, Tensor]:
    """Return a network's weights, by the names and shapes of its file."""
    return drawn_weights(shapes)


def pictures(count: int = SHAPE[0]) -> Tensor:
    return image((count, *SHAPE[1:]))
