"""The networks that golden/networks.npz has figures of: ComfyUI's arguments, and what each is asked.

Weights and inputs are drawn from names, so both sides make them for themselves. Torch alone is imported here: the
figures are made in ComfyUI's environment.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from tests.parity.dit_cases import noise, weights

_HUNYUAN: dict[str, Any] = {
    "in_channels": 16,
    "out_channels": 16,
    "vec_in_dim": 768,
    "context_in_dim": 48,
    "hidden_size": 256,
    "mlp_ratio": 4.0,
    "num_heads": 2,
    "depth": 2,
    "depth_single_blocks": 2,
    "axes_dim": [16, 56, 56],
    "theta": 256,
    "patch_size": [1, 2, 2],
    "qkv_bias": True,
    "guidance_embed": True,
    "byt5": False,
    "meanflow": False,
    "use_cond_type_embedding": False,
    "vision_in_dim": None,
    "meanflow_sum": False,
}
_KANDINSKY5: dict[str, Any] = {
    "in_text_dim": 48,
    "in_text_dim2": 32,
    "time_dim": 24,
    "model_dim": 128,
    "ff_dim": 96,
    "visual_embed_dim": 132,
    "num_text_blocks": 1,
    "num_visual_blocks": 2,
}
_FLUX_WITHOUT_POOLED: dict[str, Any] = {
    "in_channels": 16,
    "out_channels": 16,
    "vec_in_dim": None,
    "context_in_dim": 48,
    "hidden_size": 64,
    "mlp_ratio": 4.0,
    "num_heads": 2,
    "depth": 2,
    "depth_single_blocks": 2,
    "axes_dim": [4, 14, 14],
    "theta": 10000,
    "patch_size": 2,
    "qkv_bias": True,
    "guidance_embed": False,
    "txt_ids_dims": [1, 2],
}
BACKBONES: Mapping[str, tuple[str, dict[str, Any]]] = {
    "hunyuan_video": ("comfy.ldm.hunyuan_video.model.HunyuanVideo", _HUNYUAN),
    "boogu": (
        "comfy.ldm.boogu.model.BooguTransformer2DModel",
        {
            "hidden_size": 96,
            "num_layers": 2,
            "num_double_stream_layers": 2,
            "num_refiner_layers": 1,
            "num_attention_heads": 4,
            "num_kv_heads": 2,
            "axes_dim_rope": (8, 8, 8),
            "instruction_feat_dim": 48,
        },
    ),
    **{
        f"chroma_radiance_{head}": (
            "comfy.ldm.chroma_radiance.model.ChromaRadiance",
            {
                "in_channels": 3,
                "out_channels": 3,
                "context_in_dim": 48,
                "hidden_size": 64,
                "mlp_ratio": 4.0,
                "num_heads": 2,
                "depth": 1,
                "depth_single_blocks": 1,
                "axes_dim": [4, 14, 14],
                "theta": 10000,
                "patch_size": 16 if head == "conv" else 4,
                "qkv_bias": True,
                "in_dim": 64,
                "out_dim": 64,
                "hidden_dim": 32,
                "n_layers": 2,
                "txt_ids_dims": [],
                "vec_in_dim": None,
                "nerf_hidden_size": 8,
                "nerf_mlp_ratio": 2,
                "nerf_depth": 2,
                "nerf_max_freqs": 4,
                "nerf_tile_size": 2,
                "nerf_final_head_type": head,
                "nerf_embedder_dtype": None,
                "use_x0": head == "conv",
                "use_sequential_txt_ids": head == "linear",
            },
        )
        for head in ("linear", "conv")
    },
    "ltx_video": (
        "comfy.ldm.lightricks.model.LTXVModel",
        {"cross_attention_dim": 256, "attention_head_dim": 8, "caption_channels": 48, "num_layers": 2},
    ),
    "kandinsky5": ("comfy.ldm.kandinsky5.model.Kandinsky5", _KANDINSKY5),
    "kandinsky5_image": (
        "comfy.ldm.kandinsky5.model.Kandinsky5",
        {**_KANDINSKY5, "visual_embed_dim": 64, "axes_dims": (32, 48, 48), "rope_scale_factor": (1.0, 1.0, 1.0)},
    ),
    "longcat_image": ("comfy.ldm.flux.model.Flux", _FLUX_WITHOUT_POOLED),
    "ovis_image": ("comfy.ldm.flux.model.Flux", {**_FLUX_WITHOUT_POOLED, "yak_mlp": True, "txt_norm": True}),
    "mage_flow": (
        "comfy.ldm.mage_flow.model.MageFlowTransformer2DModel",
        {
            "num_layers": 2,
            "attention_head_dim": 32,
            "num_attention_heads": 2,
            "joint_attention_dim": 48,
            "axes_dims_rope": (4, 14, 14),
        },
    ),
    "lotus": (
        "comfy.ldm.modules.diffusionmodules.openaimodel.UNetModel",
        {
            "image_size": 32,
            "in_channels": 4,
            "out_channels": 4,
            "model_channels": 64,
            "num_res_blocks": [1, 1],
            "channel_mult": [1, 2],
            "num_head_channels": 64,
            "use_spatial_transformer": True,
            "use_linear_in_transformer": True,
            "context_dim": 64,
            "adm_in_channels": 4,
            "num_classes": "sequential",
            "transformer_depth": [1, 0],
            "transformer_depth_output": [1, 1, 0, 0],
            "transformer_depth_middle": 1,
            "use_temporal_attention": False,
        },
    ),
    "hunyuan_video15": (
        "comfy.ldm.hunyuan_video.model.HunyuanVideo",
        {
            **_HUNYUAN,
            "in_channels": 65,
            "out_channels": 32,
            "vec_in_dim": None,
            "depth_single_blocks": 0,
            "patch_size": [1, 1, 1],
            "guidance_embed": False,
            "byt5": True,
            "use_cond_type_embedding": True,
            "vision_in_dim": 40,
            "meanflow_sum": True,
        },
    ),
}
"""The class and the arguments of each network."""
MULTIPLIERS: Mapping[str, float] = {
    **dict.fromkeys(("hunyuan_video", "hunyuan_video15", "kandinsky5", "kandinsky5_image"), 1000.0),
    "lotus": 999.0,
}
"""What a network reads as the time, as a multiple of the level; 1 where none is named."""


@dataclass(frozen=True)
class Case:
    """One forward of a network. x: shape of the latents (2,C,…); text: of the texts (2,T,D).

    options: what the conditionings have besides, by ComfyUI's names; a shape stands for drawn numbers.
    """

    net: str
    x: tuple[int, ...]
    text: tuple[int, ...]
    options: dict[str, Any] = field(default_factory=dict)

    @property
    def name(self) -> str:
        return f"{self.net} {self.x} {self.text} {self.options}"

    def drawn(self) -> tuple[Tensor, Tensor, dict[str, Any]]:
        """Return the latents, the texts and the options."""
        options = {
            key: noise(f"{self.name} {key}", value) if isinstance(value, tuple) else value
            for key, value in self.options.items()
        }
        return noise(f"{self.name} x", self.x), noise(f"{self.name} text", self.text), options


SIGMAS = (0.3, 0.9)
CASES: Sequence[Case] = (
    Case("mage_flow", (2, 128, 5, 4), (2, 5, 48)),
    Case("mage_flow", (2, 128, 5, 4), (2, 9, 48), {"reference_latents": (1, 128, 3, 6)}),
    Case("longcat_image", (2, 16, 8, 6), (2, 5, 48)),
    Case("longcat_image", (2, 16, 7, 6), (2, 9, 48), {"reference_latents": (1, 16, 6, 8)}),
    Case("boogu", (2, 16, 7, 6), (2, 9, 48)),
    Case("boogu", (2, 16, 8, 6), (2, 9, 48), {"reference_latents": (1, 16, 6, 8)}),
    Case("ltx_video", (2, 128, 3, 4, 6), (2, 5, 48)),
    Case("ltx_video", (2, 128, 3, 4, 6), (2, 9, 48), {"frame_rate": 24.0, "masked": 6}),
    Case("chroma_radiance_linear", (2, 3, 14, 12), (2, 5, 48), {"guidance": 0.0}),
    Case("chroma_radiance_conv", (2, 3, 32, 48), (2, 5, 48), {"guidance": 0.0}),
    Case("ovis_image", (2, 16, 7, 6), (2, 9, 48)),
    Case("lotus", (2, 4, 8, 8), (2, 2, 64)),
    Case("kandinsky5_image", (2, 16, 4, 6), (2, 5, 48), {"pooled_output": (2, 32)}),
    Case("kandinsky5", (2, 16, 3, 4, 6), (2, 5, 48), {"pooled_output": (2, 32)}),
    Case(
        "kandinsky5",
        (2, 16, 3, 4, 8),
        (2, 5, 48),
        {"pooled_output": (2, 32), "time_dim_replace": (1, 16, 1, 4, 8), "concat_mask": (1, 1, 3, 4, 8)},
    ),
    Case("hunyuan_video", (2, 16, 3, 4, 6), (2, 5, 48), {"pooled_output": (2, 768), "guidance": 6.0}),
    Case("hunyuan_video15", (2, 32, 3, 4, 5), (2, 5, 48)),
    Case(
        "hunyuan_video15",
        (2, 32, 3, 4, 5),
        (2, 5, 48),
        {
            "conditioning_byt5small": (2, 3, 1472),
            "clip_vision_output": (2, 4, 40),
            "concat_latent_image": (2, 32, 3, 6, 5),
            "concat_mask": (1, 1, 2, 6, 5),
        },
    ),
)

_HUNYUAN_VAE = {
    "block_out_channels": [32, 32, 32, 64, 64],
    "in_channels": 3,
    "out_channels": 3,
    "num_res_blocks": 2,
    "ffactor_spatial": 16,
    "ffactor_temporal": 4,
    "downsample_match_channel": True,
    "upsample_match_channel": True,
    "z_channels": 32,
}
_HUNYUAN_1_VAE = {
    "double_z": True,
    "z_channels": 16,
    "resolution": 256,
    "in_channels": 3,
    "out_ch": 3,
    "ch": 32,
    "ch_mult": [1, 2, 2, 2],
    "num_res_blocks": 2,
    "attn_resolutions": [],
    "dropout": 0.0,
    "conv3d": True,
    "time_compress": 4,
}
_LTX_VIDEO_VAE = {
    "dims": 3,
    "latent_channels": 128,
    "norm_layer": "pixel_norm",
    "patch_size": 4,
    "latent_log_var": "uniform",
    "causal_decoder": False,
    "encoder_base_channels": 16,
    "decoder_base_channels": 16,
}
_TWICE = {"multiplier": 2}
LTX_VIDEO_VAES: Mapping[str, dict[str, Any]] = {
    "ltx_video": {
        **_LTX_VIDEO_VAE,
        "blocks": [
            *(["res_x", 1], ["compress_all", 1], ["res_x_y", 1], ["res_x", 1], ["compress_all", 1]),
            *(["compress_all", 1], ["res_x", 2]),
        ],
    },
    "ltx_video_timed": {
        **_LTX_VIDEO_VAE,
        "timestep_conditioning": True,
        "encoder_blocks": [
            *(["res_x", {"num_layers": 1}], ["compress_space_res", _TWICE], ["compress_time_res", _TWICE]),
            *(["compress_all_res", _TWICE], ["compress_all_res", _TWICE], ["res_x", {"num_layers": 1}]),
        ],
        "decoder_blocks": [
            *(["res_x", {"num_layers": 1}], ["compress_all", {"residual": True, "multiplier": 2}]),
            *(["res_x", {"num_layers": 1}], ["compress_all", {"residual": True, "multiplier": 2}]),
            *(["compress_all", {"residual": True, "multiplier": 2}], ["res_x", {"num_layers": 2}]),
        ],
    },
}
"""The arguments of LTX-Video's: of 0.9, and from 0.9.5 on."""
MAGE_FLOW_VAE: Mapping[str, dict[str, Any]] = {
    "encoder": {"z_ch": 128, "hidden_size": 64, "num_blocks": 2, "head_size": 96, "num_head_blocks": 1},
    "decoder": {"hidden_size": 64, "hidden_size_x": 8, "num_blocks": 3, "num_cond_blocks": 2},
}
"""The arguments of the halves of Mage-Flow's."""
VAES: Mapping[str, tuple[str, dict[str, Any]]] = {
    "hunyuan_video15": ("comfy.ldm.hunyuan_video.vae_refiner", _HUNYUAN_VAE),
    **{
        name: ("comfy.ldm.lightricks.vae.causal_video_autoencoder", {"config": config})
        for name, config in LTX_VIDEO_VAES.items()
    },
    "hunyuan_video": ("comfy.ldm.models.autoencoder", _HUNYUAN_1_VAE),
    "mage_flow": ("comfy.ldm.mage_flow.vae", {}),
}
"""The module with the classes Encoder and Decoder, and their arguments; of Mage-Flow's they are above.

Of HunyuanVideo 1 it is AutoencoderKL, that has both."""
IMAGES: Mapping[str, Sequence[tuple[int, ...]]] = {
    "hunyuan_video15": ((1, 3, 9, 32, 48), (1, 3, 1, 32, 32)),
    "hunyuan_video": ((1, 3, 17, 32, 48), (1, 3, 6, 32, 32)),
    **dict.fromkeys(LTX_VIDEO_VAES, ((1, 3, 17, 64, 96), (1, 3, 1, 64, 64))),
    "mage_flow": ((1, 3, 32, 48),),
}
"""Shapes of the pixels that each encodes."""

__all__ = ["BACKBONES", "CASES", "IMAGES", "MAGE_FLOW_VAE", "MULTIPLIERS", "SIGMAS", "VAES", "Case", "noise", "weights"]
