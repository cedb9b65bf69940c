"""Empty networks: an architecture becomes diffusers' or transformers' module on the meta device, holding no memory.

Nothing is drawn at random and nothing allocated; `checkpoint` gives the parameters their tensors.
"""

from __future__ import annotations

import torch
from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
from torch import nn
from transformers.models.clip.configuration_clip import CLIPTextConfig
from transformers.models.clip.modeling_clip import CLIPTextModel

from serve_app.models.families import (
    NORM_GROUPS,
    VOCABULARY,
    Architecture,
    DualTextArchitecture,
    TextArchitecture,
    TinyVaeArchitecture,
    UNetArchitecture,
    VaeArchitecture,
)
from serve_app.models.tiny_vae import TinyVae


def network(architecture: Architecture) -> nn.Module:
    """Return the architecture's module on the meta device, ready for inference but for its tensors."""
    with torch.device("meta"):
        match architecture:
            case UNetArchitecture():
                module = _unet(architecture)
            case VaeArchitecture():
                module = _vae(architecture)
            case TinyVaeArchitecture():
                module = TinyVae(architecture)
            case TextArchitecture():
                module = _text(architecture)
            case DualTextArchitecture():
                module = nn.ModuleDict({"l": _text(architecture.l), "g": _text(architecture.g)})
    return module.eval().requires_grad_(False)


def _unet(architecture: UNetArchitecture) -> nn.Module:
    down = ["CrossAttnDownBlock2D" if depth else "DownBlock2D" for depth in architecture.depths]
    up = ["CrossAttnUpBlock2D" if depth else "UpBlock2D" for depth in reversed(architecture.depths)]
    # diffusers reads the middle's depth from the last level's, which is free when that level has no attention.
    depths = (*architecture.depths[:-1], architecture.middle_depth)
    unet: nn.Module = UNet2DConditionModel(
        in_channels=architecture.latent_channels + architecture.concat_channels,
        out_channels=architecture.latent_channels,
        down_block_types=tuple(down),
        up_block_types=tuple(up),
        block_out_channels=architecture.channels,
        layers_per_block=architecture.res_blocks,
        transformer_layers_per_block=tuple(max(depth, 1) for depth in depths),
        cross_attention_dim=architecture.context_dim,
        # The argument's name is historical: for this class it is the number of heads.
        attention_head_dim=architecture.heads,
        use_linear_projection=architecture.linear,
        class_embed_type="projection" if architecture.vector_dim else None,
        projection_class_embeddings_input_dim=architecture.vector_dim or None,
        norm_num_groups=NORM_GROUPS,
    )
    return unet


def _vae(architecture: VaeArchitecture) -> nn.Module:
    levels = len(architecture.channels)
    vae: nn.Module = AutoencoderKL(
        in_channels=architecture.image_channels,
        out_channels=architecture.image_channels,
        down_block_types=("DownEncoderBlock2D",) * levels,
        up_block_types=("UpDecoderBlock2D",) * levels,
        block_out_channels=architecture.channels,
        layers_per_block=architecture.res_blocks,
        latent_channels=architecture.latent_channels,
        norm_num_groups=NORM_GROUPS,
        use_quant_conv=architecture.quantized,
        use_post_quant_conv=architecture.quantized,
    )
    return vae


def _text(architecture: TextArchitecture) -> nn.Module:
    model: nn.Module = CLIPTextModel(
        CLIPTextConfig(
            vocab_size=VOCABULARY,
            hidden_size=architecture.width,
            intermediate_size=architecture.hidden_width,
            num_hidden_layers=architecture.layers,
            num_attention_heads=architecture.heads,
            max_position_embeddings=architecture.positions,
            hidden_act="quick_gelu" if architecture.kind == "l" else "gelu",
            layer_norm_eps=1e-5,
        )
    )
    # transformers has moved the encoder up out of `text_model`; both places occur among its releases.
    encoder: nn.Module = getattr(model, "text_model", model)
    if architecture.projection:
        encoder.text_projection = nn.Linear(architecture.width, architecture.projection, bias=False)
    return encoder
