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


_MOGE: dict[str, Any] = {
    "hidden_size": 64,
    "num_hidden_layers": 8,
    "num_attention_heads": 1,
    "layer_norm_eps": 1e-6,
    "use_swiglu_ffn": False,
}
_NORMED = {"res_block_in_norm": "layer_norm", "res_block_hidden_norm": "group_norm"}


def _stack(reads: list[int], writes: list[int | None], **more: Any) -> dict[str, Any]:
    return {
        "dim_in": reads,
        "dim_res_blocks": [32, 16, 8, 8, 8],
        "dim_out": writes,
        "resamplers": ["conv_transpose", "conv_transpose", "bilinear", "bilinear"],
        "num_res_blocks": [1, 2, 1, 0, 1],
        **more,
    }


MOGE: Mapping[str, dict[str, Any]] = {
    "moge 1": {"backbone": _MOGE, "dim_upsample": [16, 8, 8], "num_res_blocks": 1, "dim_times_res_block_hidden": 2},
    "moge 2": {
        "encoder": {"backbone": _MOGE, "intermediate_layers": [1, 3, 5, 7], "dim_out": 24},
        "neck": _stack([26, 2, 2, 2, 2], [None] * 5, **_NORMED),
        **{
            f"{head}_head": _stack([32, 16, 8, 8, 8], [None] * 4 + [writes], **_NORMED)
            for head, writes in {"points": 3, "mask": 1, "normal": 3}.items()
        },
        "scale_head": {"dims": [64, 32, 1]},
    },
}
"""Arguments of MoGe, of ComfyUI's classes."""
MOGE_ASKED: Mapping[str, tuple[str, dict[str, Any]]] = {
    "moge 1|estimated": ("moge 1", {"fov_x_degrees": 0.0, "force_projection": True, "apply_mask": True}),
    "moge 2|estimated": ("moge 2", {"fov_x_degrees": 0.0, "force_projection": False, "apply_mask": True}),
    "moge 2|known": ("moge 2", {"fov_x_degrees": 60.0, "force_projection": True, "apply_mask": False}),
}
"""What MoGeInference is asked: a network, and the inputs but for the image, 2 at level 0."""
MOGE_DRAWN = (
    *(("moge 2|known", output) for output in ("depth", "depth_colored", "normal_opengl", "normal_directx", "mask")),
    ("moge 1|estimated", "normal_opengl"),
)
"""What MoGeRender is asked: the geometry of a case, and the output."""
MESHES = {"moge 2|known": (2, 0.0), "moge 1|estimated": (1, 0.5)}
"""What MoGePointMapToMesh is asked: of which case, and decimation and threshold."""
TOKENS = (80, 160)
"""The fewest and the most patches here: ComfyUI's 1200 take long."""
PANORAMA = {"resolution_level": 0, "split_resolution": 256, "merge_resolution": 300, "batch_size": 6}


def panorama() -> Tensor:
    return image((1, 140, 280, 3))


def by_authors(shapes: Mapping[str, Any]) -> dict[str, list[int]]:
    """Return the names and shapes that DINOv2's authors give the layers of an encoder, of ComfyUI's."""
    made: dict[str, list[int]] = {}
    for name, shape in shapes.items():
        for old, new in _BY_AUTHORS.items():
            name = name.replace(old, new)
        if ".attention.attention.query." in name:
            made[name.replace("attention.attention.query", "attn.qkv")] = [3 * shape[0], *shape[1:]]
        elif ".attention.attention." not in name:
            made[name] = shape
    return made


_BY_AUTHORS = {
    "embeddings.patch_embeddings.projection": "patch_embed.proj",
    "embeddings.cls_token": "cls_token",
    "embeddings.position_embeddings": "pos_embed",
    "embeddings.mask_token": "mask_token",
    "layernorm.": "norm.",
    "encoder.layer.": "blocks.",
    "layer_scale1.lambda1": "ls1.gamma",
    "layer_scale2.lambda1": "ls2.gamma",
    "attention.output.dense": "attn.proj",
}


BIREFNET: Mapping[str, Any] = {"embed_dim": 32, "depths": [1, 2, 1, 1], "num_heads": [1, 2, 4, 8], "window_size": 4}
"""Arguments of BiRefNet's encoder, of ComfyUI's class."""
BIREFNET_SIDE = 128
"""Of what it looks at here: ComfyUI's 1024 take long."""


def positive(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return a network's weights with variances that are above zero."""
    return {name: t.abs() + 0.5 if name.endswith("running_var") else t for name, t in tensors.items()}


FILM: Mapping[str, Any] = {"filters": 4, "flow_filters": (8, 8, 12, 16), "flow_convs": (2, 3, 3, 3)}
"""Arguments of FILM, of ComfyUI's class."""
RIFE: Mapping[str, Any] = {"head_ch": 4, "channels": (16, 16, 12, 8, 8)}
FRAMES = (3, 70, 90, 3)
INTERPOLATED = {"film": 3, "rife": 2}
"""What FrameInterpolate is asked: by which network, and by how much more."""


def frames() -> Tensor:
    return image(FRAMES)
