"""What diffusion transformers are compared with ComfyUI's modules on: small networks, and what they are asked.

Networks are ComfyUI's arguments; weights and inputs are drawn from names (`drawn`, `noise`), so both sides make them
for themselves. Torch alone is imported here: the figures are made in ComfyUI's environment.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import prod, sqrt
from typing import Any
from zlib import crc32

import torch
from torch import Tensor

CHANNELS = 16
OTHERS = {
    "flux2": 128,
    "flux2_klein": 128,
    "ideogram4": 128,
    "ernie_image": 128,
    "auraflow": 4,
    "pixart": 4,
    "pixart_alpha": 4,
}
"""How many channels latents have where not as many."""
ROWS = 2
IN_TIME = ("krea2", "qwen", "qwen_2511", "qwen_layered", "anima")
"""Networks whose latents have an axis of time."""
SIGMAS = (0.3, 0.9)
TIMES = {"ernie_image": 1000, "sd3": 1000, "sd35": 1000, "hidream": 1000, "pixart": 1000, "pixart_alpha": 1000}
"""By what a network is told them times more."""
TEXT_WIDTH, POOLED_WIDTH = 48, 32
GUIDANCE = (3.5, 30.0)

_FLUX: dict[str, Any] = {
    "in_channels": CHANNELS,
    "out_channels": CHANNELS,
    "vec_in_dim": POOLED_WIDTH,
    "context_in_dim": TEXT_WIDTH,
    "hidden_size": 64,
    "mlp_ratio": 4.0,
    "num_heads": 2,
    "depth": 2,
    "depth_single_blocks": 2,
    "axes_dim": [4, 14, 14],
    "theta": 10000,
    "patch_size": 2,
    "qkv_bias": True,
    "guidance_embed": True,
    "txt_ids_dims": [],
}
_FLUX2: dict[str, Any] = {
    **_FLUX,
    "in_channels": 128,
    "out_channels": 128,
    "vec_in_dim": None,
    "mlp_ratio": 3.0,
    "axes_dim": [8, 8, 8, 8],
    "theta": 2000,
    "patch_size": 1,
    "qkv_bias": False,
    "txt_ids_dims": [3],
    "global_modulation": True,
    "mlp_silu_act": True,
    "ops_bias": False,
    "default_ref_method": "index",
    "ref_index_scale": 10.0,
}
_QWEN: dict[str, Any] = {
    "in_channels": 4 * CHANNELS,
    "out_channels": CHANNELS,
    "num_layers": 2,
    "attention_head_dim": 32,
    "num_attention_heads": 2,
    "joint_attention_dim": TEXT_WIDTH,
    "axes_dims_rope": (4, 14, 14),
}
_SD3: dict[str, Any] = {
    "input_size": None,
    "patch_size": 2,
    "in_channels": CHANNELS,
    "out_channels": CHANNELS,
    "depth": 2,
    "num_blocks": 2,
    "adm_in_channels": POOLED_WIDTH,
    "context_embedder_config": {
        "target": "torch.nn.Linear",
        "params": {"in_features": TEXT_WIDTH, "out_features": 128},
    },
    "num_patches": 64,
    "pos_embed_max_size": 8,
}
_PIXART: dict[str, Any] = {
    "hidden_size": 96,
    "num_heads": 16,
    "depth": 2,
    "caption_channels": TEXT_WIDTH,
    "model_max_length": 12,
    "pe_interpolation": None,
}
NETS: Mapping[str, dict[str, Any]] = {
    "zimage": {
        "patch_size": 2,
        "in_channels": CHANNELS,
        "dim": 288,
        "n_layers": 2,
        "n_refiner_layers": 2,
        "n_heads": 9,
        "n_kv_heads": 9,
        "qk_norm": True,
        "cap_feat_dim": TEXT_WIDTH,
        "axes_dims": [8, 12, 12],
        "axes_lens": [64, 64, 64],
        "rope_theta": 256.0,
        "ffn_dim_multiplier": 8 / 3,
        "z_image_modulation": True,
        "time_scale": 1000.0,
        "pad_tokens_multiple": 32,
    },
    "lumina2": {
        "patch_size": 2,
        "in_channels": CHANNELS,
        "dim": 96,
        "n_layers": 2,
        "n_refiner_layers": 2,
        "n_heads": 4,
        "n_kv_heads": 2,
        "qk_norm": True,
        "cap_feat_dim": TEXT_WIDTH,
        "axes_dims": [8, 8, 8],
        "axes_lens": [64, 64, 64],
        "rope_theta": 10000.0,
        "ffn_dim_multiplier": 4.0,
    },
    "flux": _FLUX,
    "chroma": {
        **{key: value for key, value in _FLUX.items() if key != "guidance_embed"},
        "in_channels": CHANNELS * 4,
        "out_channels": CHANNELS * 4,
        "depth": 1,
        "depth_single_blocks": 2,
        "in_dim": 64,
        "out_dim": 64,
        "hidden_dim": 40,
        "n_layers": 2,
    },
    "sd3": _SD3,
    "sd35": {**_SD3, "qk_norm": "rms", "x_block_self_attn_layers": [0]},
    "krea2": {
        "features": 64,
        "heads": 2,
        "kvheads": 1,
        "txtdim": TEXT_WIDTH // 2,
        "txtlayers": 2,
        "txtheads": 2,
        "txtkvheads": 2,
        "layers": 2,
        "channels": CHANNELS,
    },
    "ernie_image": {
        "hidden_size": 256,
        "num_attention_heads": 2,
        "num_layers": 2,
        "ffn_hidden_size": 96,
        "text_in_dim": TEXT_WIDTH,
    },
    "ideogram4": {
        "in_channels": 128,
        "num_layers": 2,
        "num_attention_heads": 2,
        "attention_head_dim": 128,
        "intermediate_size": 96,
        "adaln_dim": 16,
        "llm_features_dim": TEXT_WIDTH,
    },
    "qwen": _QWEN,
    "qwen_2511": {**_QWEN, "num_layers": 1, "default_ref_method": "index_timestep_zero"},
    "qwen_layered": {
        **_QWEN,
        "num_layers": 1,
        "use_additional_t_cond": True,
        "default_ref_method": "negative_index",
    },
    "flux2": _FLUX2,
    "flux2_klein": {**_FLUX2, "guidance_embed": False},
    "flux_schnell": {**_FLUX, "guidance_embed": False},
    "flux_depth": {**_FLUX, "in_channels": 2 * CHANNELS},
    "flux_fill": {**_FLUX, "in_channels": 2 * CHANNELS + 64},
    "anima": {
        "max_img_h": 240,
        "max_img_w": 240,
        "max_frames": 128,
        "in_channels": CHANNELS,
        "out_channels": CHANNELS,
        "patch_spatial": 2,
        "patch_temporal": 1,
        "model_channels": 64,
        "num_blocks": 2,
        "num_heads": 2,
        "crossattn_emb_channels": TEXT_WIDTH,
        "pos_emb_cls": "rope3d",
        "use_adaln_lora": True,
        "adaln_lora_dim": 32,
        "rope_h_extrapolation_ratio": 4.0,
        "rope_w_extrapolation_ratio": 4.0,
        "rope_t_extrapolation_ratio": 1.0,
        "rope_enable_fps_modulation": False,
    },
    "hidream": {
        "patch_size": 2,
        "in_channels": CHANNELS,
        "out_channels": CHANNELS,
        "num_layers": 1,
        "num_single_layers": 2,
        "attention_head_dim": 128,
        "num_attention_heads": 1,
        "caption_channels": [TEXT_WIDTH, TEXT_WIDTH],
        "text_emb_dim": POOLED_WIDTH,
        "axes_dims_rope": (64, 32, 32),
        "max_resolution": (128, 128),
        "llama_layers": [0, 1, 1],
    },
    "auraflow": {
        "in_channels": 4,
        "out_channels": 4,
        "dim": 512,
        "n_double_layers": 1,
        "n_layers": 2,
        "n_heads": 2,
        "global_conddim": 512,
        "cond_seq_dim": TEXT_WIDTH,
        "max_seq": 64,
    },
    "omnigen2": {
        "in_channels": CHANNELS,
        "hidden_size": 96,
        "num_layers": 2,
        "num_refiner_layers": 1,
        "num_attention_heads": 4,
        "num_kv_heads": 2,
        "axes_dim_rope": (8, 8, 8),
        "text_feat_dim": TEXT_WIDTH,
        "timestep_scale": 1000.0,
    },
    "pixart": {**_PIXART, "micro_condition": False},
    "pixart_alpha": {**_PIXART, "micro_condition": True},
}
ADAPTER: dict[str, Any] = {
    "source_dim": TEXT_WIDTH,
    "target_dim": TEXT_WIDTH,
    "model_dim": TEXT_WIDTH,
    "num_layers": 2,
    "num_heads": 2,
}
"""ComfyUI's arguments of Anima's adapter, which its network makes of one size alone."""
LLAMA_STATES = 2
"""How many of Llama's states HiDream's network is told."""


VAE: dict[str, Any] = {
    "double_z": True,
    "z_channels": 4,
    "resolution": 256,
    "in_channels": 3,
    "out_ch": 3,
    "ch": 64,
    "ch_mult": [1, 1],
    "num_res_blocks": 1,
    "attn_resolutions": [],
    "dropout": 0.0,
    "batch_norm_latent": True,
}
"""ComfyUI's arguments of a small autoencoder of Flux.2; its decoder is half as wide."""

WAN_VAE: dict[str, Any] = {
    "dim": 8,
    "z_dim": CHANNELS,
    "image_channels": 4,
    "conv_out_channels": 4,
    "temperal_downsample": [False, True, True],
}
"""ComfyUI's arguments of a small autoencoder of Qwen-Image-Layered, which differs from Wan 2.1's in its channels."""
FRAMES = (1, 11)
"""How many frames the videos have that it is tried on; latents stand for as many whole fours and one as there are."""


@dataclass(frozen=True)
class Case:
    """One forward of a network. size: of the latents; text: how many tokens; references: sizes of each.

    method: how those are placed; of Anima's, "as it is" for a text without T5's tokens; of PixArt's, the height and
    width in pixels that are told.

    A size is (h,w), or (frames,h,w) of networks whose latents have an axis of time.

    concat: the size of an image that goes beside x, in latent cells; mask: of its mask, in pixels.
    """

    net: str
    size: tuple[int, ...]
    text: int
    references: tuple[tuple[int, ...], ...] = ()
    method: str = ""
    concat: tuple[int, int] | None = None
    mask: tuple[int, int] | None = None

    @property
    def name(self) -> str:
        return " ".join(
            map(str, (self.net, self.size, self.text, self.references, self.method, self.concat, self.mask))
        )


CASES: Sequence[Case] = (
    Case("ideogram4", (4, 6), 5),
    Case("ernie_image", (4, 6), 5),
    Case("ernie_image", (5, 3), 9),
    Case("ideogram4", (5, 3), 9),
    Case("zimage", (8, 8), 5),
    Case("zimage", (6, 10), 32),
    Case("zimage", (9, 7), 40),
    Case("lumina2", (8, 8), 5),
    Case("lumina2", (9, 7), 12),
    Case("flux", (8, 8), 5),
    Case("flux", (8, 8), 9),
    Case("flux", (6, 10), 7),
    Case("flux", (9, 7), 5),
    *(
        Case("flux", size, 5, references, method)
        for method in ("offset", "index", "uxo")
        for size, references in (((8, 6), ((8, 8),)), ((6, 8), ((9, 6), (4, 10))), ((7, 9), ((4, 4), (6, 4), (8, 8))))
    ),
    Case("flux_schnell", (8, 8), 5),
    Case("chroma", (8, 8), 5),
    Case("chroma", (8, 8), 12),
    Case("chroma", (9, 7), 3),
    Case("flux2", (4, 4), 5),
    Case("flux2", (4, 4), 520),
    Case("flux2", (5, 3), 7, ((3, 4), (4, 4)), "index"),
    Case("flux2", (4, 4), 5, ((5, 2),), "offset"),
    Case("flux2_klein", (4, 6), 512),
    Case("flux2_klein", (5, 3), 7, ((3, 4), (4, 4)), "index_timestep_zero"),
    Case("krea2", (8, 6), 5),
    Case("krea2", (8, 6), 9),
    Case("krea2", (7, 9), 4, ((4, 6), (5, 4)), "index"),
    Case("krea2", (7, 9), 4, ((4, 6), (5, 4)), "index_timestep_zero"),
    Case("krea2", (4, 4), 4, ((4, 6),)),
    Case("qwen", (8, 6), 5),
    Case("qwen", (8, 6), 9),
    Case("qwen", (10, 14), 5),
    Case("qwen", (7, 9), 5),
    *(
        Case("qwen", (7, 10), 6, ((6, 6), (5, 9), (8, 4)), method)
        for method in ("", "index", "negative_index", "offset", "uxo", "index_timestep_zero")
    ),
    Case("qwen_2511", (8, 6), 5),
    Case("qwen_2511", (8, 6), 5, ((6, 7), (4, 4))),
    Case("qwen_layered", (8, 6), 5),
    Case("qwen_layered", (3, 6, 7), 5, ((6, 7),)),
    Case("qwen_layered", (3, 6, 7), 8, ((2, 6, 7),)),
    Case("sd3", (8, 8), 5),
    Case("sd3", (9, 7), 7),
    Case("sd35", (16, 16), 5),
    Case("sd35", (9, 4), 5),
    Case("flux_depth", (8, 6), 5, concat=(8, 6)),
    Case("flux_depth", (8, 6), 5),
    Case("flux_fill", (8, 6), 5, concat=(10, 6), mask=(64, 48)),
    Case("flux_fill", (7, 9), 5, concat=(7, 9), mask=(40, 72)),
    Case("flux_fill", (8, 6), 5, concat=(8, 6)),
    Case("anima", (8, 6), 5),
    Case("anima", (8, 6), 515),
    Case("anima", (7, 9), 12),
    Case("anima", (3, 6, 7), 5),
    Case("anima", (8, 6), 9, method="as it is"),
    Case("hidream", (8, 6), 5),
    Case("hidream", (7, 9), 9),
    Case("hidream", (8, 6), 5, concat=(8, 6)),
    Case("hidream", (7, 5), 5, concat=(7, 9)),
    Case("auraflow", (8, 6), 5),
    Case("auraflow", (16, 16), 5),
    Case("auraflow", (7, 9), 12),
    Case("auraflow", (20, 5), 3),
    Case("omnigen2", (8, 6), 5),
    Case("omnigen2", (7, 9), 12),
    Case("omnigen2", (8, 6), 5, ((9, 8),)),
    Case("omnigen2", (7, 9), 3, ((5, 7), (4, 4))),
    Case("pixart", (40, 36), 5),
    Case("pixart", (40, 36), 12),
    Case("pixart", (80, 120), 4),
    Case("pixart_alpha", (34, 38), 5),
    Case("pixart_alpha", (34, 38), 9, method="768 1024"),
)


def drawn(name: str, shape: Sequence[int]) -> Tensor:
    """Return a weight float32 whose layer keeps the variance of what goes through it."""
    normal = noise(name, shape)
    if len(shape) == 1 or name.endswith(("pad_token", "gamma")):
        return 1 + 0.05 * normal if name.endswith(("weight", "scale", "gamma")) else 0.1 * normal
    return normal / sqrt(prod(shape[1:]))


def weights(shapes: Mapping[str, Sequence[int]]) -> dict[str, Tensor]:
    """Return weights of these names and shapes."""
    return {name: drawn(name, shape) for name, shape in shapes.items()}


def autoencoder(shapes: Mapping[str, Sequence[int]]) -> dict[str, Tensor]:
    """Return weights of an autoencoder; its variances are above zero."""
    return {name: t.abs() + 0.5 if name.endswith("running_var") else t for name, t in weights(shapes).items()}


def noise(name: str, shape: Sequence[int]) -> Tensor:
    """Return normal numbers that the name stands for."""
    return torch.randn(tuple(shape), generator=torch.Generator().manual_seed(crc32(name.encode())))


@dataclass(frozen=True)
class Asked:
    """The tensors of a case: latents as the network sees them; references and concat as the autoencoder made them."""

    x: Tensor
    sigma: Tensor
    text: Tensor
    pooled: Tensor
    guidance: Tensor
    references: list[Tensor]
    concat: Tensor | None
    mask: Tensor | None


def t5_tokens(case: Case) -> tuple[Tensor, Tensor] | None:
    """Return T5's tokens of each row's text and their weights, (2,S) each; None where a text is told as it is."""
    if case.net != "anima" or case.method:
        return None
    ids, weights = (noise(f"{case.name} {what}", (ROWS, case.text + 2)) for what in ("ids", "weights"))
    return (ids.abs() * 10000).int() % 32128, weights.round().clamp(0.5, 1.5)


def llama_states(case: Case) -> Tensor:
    """Return Llama's states of each row's text, (2,L,S,D)."""
    return noise(f"{case.name} states", (ROWS, LLAMA_STATES, case.text + 3, TEXT_WIDTH))


def asked(case: Case) -> Asked:
    """Return what a network is asked in a case."""
    draw = lambda what, *shape: noise(f"{case.name} {what}", shape)  # noqa: E731
    channels = OTHERS.get(case.net, CHANNELS)
    time = lambda size: (1,) if case.net in IN_TIME and len(size) == 2 else ()  # noqa: E731
    return Asked(
        draw("x", ROWS, channels, *time(case.size), *case.size),
        torch.tensor(SIGMAS) * TIMES.get(case.net, 1),
        draw("text", ROWS, case.text, TEXT_WIDTH),
        draw("pooled", ROWS, POOLED_WIDTH),
        torch.tensor(GUIDANCE),
        [draw(f"reference {i}", 1, channels, *time(size), *size) for i, size in enumerate(case.references)],
        None if case.concat is None else draw("concat", 1, CHANNELS, *case.concat),
        None if case.mask is None else (draw("mask", 1, 1, *case.mask) > 0).float(),
    )
