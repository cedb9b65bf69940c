"""Small networks of LTX-2's editions and what they are compared with ComfyUI's modules on.

Networks are ComfyUI's arguments, which a file's metadata has; weights and inputs are drawn from names, so both sides
make them for themselves. Torch alone is imported here: the figures are made in ComfyUI's environment.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from tests.parity.dit_cases import noise, weights

ROWS = 2
SIGMA = 0.7
HEADS, AUDIO_HEADS = 4, 2

_BOTH: dict[str, Any] = {
    "num_attention_heads": HEADS,
    "attention_head_dim": 12,
    "cross_attention_dim": 48,
    "audio_num_attention_heads": AUDIO_HEADS,
    "audio_attention_head_dim": 16,
    "audio_cross_attention_dim": 32,
    "num_layers": 2,
    "connector_num_layers": 2,
}
NETS: dict[str, dict[str, Any]] = {
    "ltx2": {
        **_BOTH,
        "caption_channels": 40,
        "rope_type": "interleaved",
        "connector_num_attention_heads": 2,
        "connector_attention_head_dim": 20,
    },
    "ltx23": {
        **_BOTH,
        "caption_channels": 40,
        "apply_gated_attention": True,
        "connector_apply_gated_attention": True,
        "cross_attention_adaln": True,
        "caption_proj_before_connector": True,
        "caption_projection_first_linear": False,
        "rope_type": "split",
        "frequencies_precision": "float64",
        "use_middle_indices_grid": True,
        "causal_temporal_positioning": True,
        "av_ca_timestep_scale_multiplier": 1000.0,
        "connector_num_attention_heads": 4,
        "connector_attention_head_dim": 12,
        "audio_connector_num_attention_heads": 2,
        "audio_connector_attention_head_dim": 16,
    },
}
NETS["ltx25"] = {**NETS["ltx23"], "ff_bias": False, "use_keyframes_abs_pos_embedding": True}
"""The transformers' arguments. LTX-2.0's leaves settings of positions out, which are then the defaults."""
TEXTS = {"ltx2": 40, "ltx23": 80, "ltx25": 80}


@dataclass(frozen=True)
class Case:
    """A forward. size: of the video's latents, (F,h,w); sound: latents of sound, 0 for a video without.

    mask: "" for none, "frames" for a level for each frame, "cells" for one for each cell. reference: tokens of a sound
    whose speaker the sound has, 0 for none.
    """

    net: str
    size: tuple[int, int, int]
    sound: int
    mask: str = ""
    frame_rate: float = 25.0
    tokens: int = 9
    reference: int = 0

    @property
    def name(self) -> str:
        given = f"{self.net} {self.size} {self.sound} {self.mask} {self.frame_rate:g} {self.tokens}"
        return f"{given} {self.reference}" if self.reference else given

    def options(self) -> dict[str, Any]:
        """Return the options of a conditioning."""
        tokens = noise(f"{self.name} reference", (1, self.reference, 128))
        return {"frame_rate": self.frame_rate, **({"ref_audio": {"tokens": tokens}} if self.reference else {})}


CASES = (
    Case("ltx2", (3, 2, 3), 5),
    Case("ltx2", (2, 2, 2), 4, "frames"),
    Case("ltx23", (3, 2, 3), 5, frame_rate=24.0),
    Case("ltx23", (3, 2, 3), 5, "frames"),
    Case("ltx23", (2, 3, 2), 4, "cells"),
    Case("ltx23", (2, 2, 3), 0),
    Case("ltx23", (1, 2, 2), 3, tokens=1030),
    Case("ltx23", (2, 2, 3), 5, reference=4),
    Case("ltx23", (2, 2, 3), 5, "frames", reference=4),
    Case("ltx25", (3, 2, 3), 5, frame_rate=24.0),
    Case("ltx25", (2, 3, 2), 4, "cells"),
)


@dataclass(frozen=True)
class Asked:
    """What a network is asked. masks: of the video (B,1,F,h,w) and of the sound (B,1,T,16)."""

    video: Tensor
    sound: Tensor
    text: Tensor
    masks: tuple[Tensor, Tensor] | None


def asked(case: Case) -> Asked:
    """Return a case's inputs, of ROWS rows at SIGMA."""
    masks = None
    if case.mask:
        shape = (1, 1, *case.size) if case.mask == "cells" else (1, 1, case.size[0], 1, 1)
        video = noise(f"{case.name} mask", shape).sigmoid().expand(ROWS, 1, *case.size)
        masks = (
            video.contiguous(),
            noise(f"{case.name} sound mask", (1, 1, case.sound, 1)).sigmoid().expand(ROWS, 1, -1, 16),
        )
    return Asked(
        noise(f"{case.name} video", (ROWS, 128, *case.size)),
        noise(f"{case.name} sound", (ROWS, 8, case.sound, 16)),
        noise(f"{case.name} text", (ROWS, case.tokens, TEXTS[case.net])),
        masks,
    )


VAE: dict[str, Any] = {
    "_class_name": "CausalVideoAutoencoder",
    "dims": 3,
    "in_channels": 3,
    "out_channels": 3,
    "latent_channels": 128,
    "encoder_blocks": [
        ["res_x", {"num_layers": 1}],
        ["compress_space_res", {"multiplier": 2}],
        ["res_x", {"num_layers": 1}],
        ["compress_time_res", {"multiplier": 2}],
        ["compress_all_res", {"multiplier": 2}],
        ["res_x", {"num_layers": 2}],
        ["compress_all_res", {"multiplier": 2}],
        ["res_x", {"num_layers": 1}],
    ],
    "decoder_blocks": [
        ["res_x", {"num_layers": 1, "inject_noise": False}],
        ["compress_all", {"residual": True, "multiplier": 2}],
        ["res_x", {"num_layers": 2, "inject_noise": False}],
        ["compress_all", {"residual": True, "multiplier": 2}],
        ["compress_all", {"residual": True, "multiplier": 2}],
        ["res_x", {"num_layers": 1, "inject_noise": False}],
    ],
    "norm_layer": "pixel_norm",
    "patch_size": 4,
    "latent_log_var": "uniform",
    "causal_decoder": False,
    "timestep_conditioning": False,
    "encoder_base_channels": 8,
    "decoder_base_channels": 8,
}
"""The arguments of a small autoencoder of videos."""
VAE_25: dict[str, Any] = {
    "_class_name": "CausalDiffusionVAE",
    "dims": 3,
    "model_output_type": "x0",
    "encoder": {
        "dims": 3,
        "in_channels": 3,
        "out_channels": 128,
        "blocks": [*VAE["encoder_blocks"][:6], ["compress_all_res", {"multiplier": 1}], VAE["encoder_blocks"][7]],
        "patch_size": 4,
        "latent_log_var": "constant",
        "norm_layer": "pixel_norm",
        "base_channels": 8,
        "spatial_padding_mode": "zeros",
    },
    "decoder": {
        "in_channels": 128,
        "out_channels": 3,
        "patch_size": 4,
        "head_dim": 16,
        "stage_channels": [128, 64, 32, 32, 16],
        "stage_depths": [1, 2, 1, 1, 2],
        "stage_kernels": [[3, 3, 3], [3, 3, 5], [3, 5, 5], [3, 5, 5]],
        "upsamples": [[[1, 2, 2], 2], [[2, 1, 1], 2], [[2, 2, 2], 1], [[2, 2, 2], 2]],
        "stage5_kernel": [5, 7, 7],
        "t_emb_dim": 24,
        "timestep_scale_multiplier": 1000.0,
        "default_num_inference_steps": 1,
    },
}
"""The arguments of a small autoencoder of LTX-2.5's videos."""
VAES = {"vae": VAE, "vae 2.5": VAE_25}
_AUDIO: dict[str, Any] = {
    "double_z": True,
    "mel_bins": 64,
    "z_channels": 8,
    "resolution": 256,
    "downsample_time": False,
    "in_channels": 2,
    "out_ch": 2,
    "ch": 8,
    "ch_mult": [1, 2, 4],
    "num_res_blocks": 1,
    "attn_resolutions": [],
    "dropout": 0.0,
    "mid_block_add_attention": False,
    "norm_type": "pixel",
    "causality_axis": "height",
}
AUDIO_VAE: dict[str, Any] = {
    "model": {"params": {"ddconfig": _AUDIO, "sampling_rate": 16000}},
    "preprocessing": {"stft": {"filter_length": 1024, "hop_length": 160}},
}
_AMP: dict[str, Any] = {
    "upsample_initial_channel": 64,
    "resblock": "AMP1",
    "activation": "snakebeta",
    "resblock_kernel_sizes": [3, 7],
    "resblock_dilation_sizes": [[1, 3, 5], [1, 3, 5]],
    "use_bias_at_final": False,
    "use_tanh_at_final": False,
    "stereo": True,
}
VOCODERS: dict[str, dict[str, Any]] = {
    "ltx2": {
        "upsample_initial_channel": 32,
        "resblock": "1",
        "upsample_rates": [6, 5, 2, 2, 2],
        "upsample_kernel_sizes": [16, 15, 8, 4, 4],
        "resblock_kernel_sizes": [3, 7],
        "resblock_dilation_sizes": [[1, 3, 5], [1, 3, 5]],
        "stereo": True,
    },
    "ltx23": {
        "vocoder": {**_AMP, "upsample_rates": [5, 2, 2, 2, 2, 2], "upsample_kernel_sizes": [11, 4, 4, 4, 4, 4]},
        "bwe": {
            **_AMP,
            "upsample_rates": [6, 5, 2, 2, 2],
            "upsample_kernel_sizes": [12, 11, 4, 4, 4],
            "input_sampling_rate": 16000,
            "output_sampling_rate": 48000,
            "hop_length": 80,
            "n_fft": 512,
            "num_mels": 64,
        },
    },
}
"""The arguments of small vocoders, which are in a file with the autoencoder of sounds."""
_ENLARGING: dict[str, Any] = {"in_channels": 128, "mid_channels": 32, "num_blocks_per_stage": 1, "dims": 3}
UPSCALERS: dict[str, dict[str, Any]] = {
    "sides": _ENLARGING,
    "a fraction": {**_ENLARGING, "spatial_scale": 1.5, "rational_resampler": True},
    "frames": {**_ENLARGING, "spatial_upsample": False, "temporal_upsample": True},
}
"""The arguments of small latent upscalers, each of which is a file."""
LATENT_FRAMES = (1, 3)
SPECTRA = (1, 2, 13, 64)


def metadata(net: str) -> dict[str, str]:
    """Return the metadata that a checkpoint of an edition has."""
    vae, vocoder = (VAE_25, VOCODERS["ltx23"]) if net == "ltx25" else (VAE, VOCODERS[net])
    parts = {"transformer": NETS[net], "vae": vae, "audio_vae": AUDIO_VAE, "vocoder": vocoder}
    return {"config": json.dumps(parts)}


def autoencoder_weights(shapes: Mapping[str, Sequence[int]]) -> dict[str, Tensor]:
    """Return weights of autoencoders; deviations and filters of spectra are above zero, and sounds within −1…1."""
    above, loud = ("std-of-means", "mel_basis"), ("vocoder.vocoder.conv_post.weight", "bwe_generator.conv_post.weight")
    made = {name: tensor.abs() + 0.1 if name.endswith(above) else tensor for name, tensor in weights(shapes).items()}
    return {name: tensor * 1e-4 if name.endswith(loud) else tensor for name, tensor in made.items()}


def levels(case: Case) -> Tensor:
    """Return the level of each row."""
    return torch.full((ROWS,), SIGMA)
