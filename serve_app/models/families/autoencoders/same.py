"""SAME, the autoencoder of Stable Audio 3: stereo at 44.1 kHz, a latent for 4,096 samples.

Reads ComfyUI's checkpoint; run by the layers of diffusers' AutoencoderSAME. ComfyUI adds noise of a thousandth of the
latents' deviation before it decodes, another each time; here none is added. Source: Stability AI 2026,
arXiv:2605.17991.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from diffusers.models.attention_dispatch import dispatch_attention_fn
from diffusers.models.autoencoders.autoencoder_same import AutoencoderSAME
from torch import Tensor, nn

from serve_app.models.families.audio.stable_audio3 import angles_of, half_rotated
from serve_app.models.families.family import AudioVaeFamily, Located, marked
from serve_app.models.files.layout import Table, inside
from serve_app.models.files.tensors import Tensors
from serve_app.store.models.kinds import VAE_PREFIXES

PATCH, STRIDE, MULTIPLE = 256, 16, 6
"""Samples of a token, tokens of a latent, and the width of a token as a multiple of the channels."""
HEAD = 64
_MARK = "decoder.layers.3.transformers.0.pre_norm.alpha"
_OLD, _NEW = "weight_v", "parametrizations.weight.original1"
_DIRECTIONS = (_OLD, _NEW)
"""A normed weight's name, as by either of torch's ways to norm one."""
_BLOCK = {
    "pre_norm": "norm_attn",
    "self_attn": "attn",
    "ff_norm": "norm_ff",
    "ff.ff.0.proj": "ff.proj_in",
    "ff.ff.2": "ff.proj_out",
}


class DifferenceAttention:
    """What two attentions find within a band, less the one than the other."""

    def __call__(self, attn: Any, hidden_states: Tensor, attn_mask: Tensor | None = None) -> Tensor:
        """Return the output for tokens (B,n,W). attn_mask: the band, as a sum."""
        fused = torch.unflatten(attn.to_qkv(hidden_states), -1, (5, attn.heads, attn.dim_heads))
        q, k, v, other_q, other_k = fused.unbind(2)
        turns = angles_of(hidden_states.shape[1], attn.dim_heads // 2, hidden_states.device)
        found, less = (
            dispatch_attention_fn(
                half_rotated(attn.q_norm(one), turns), half_rotated(attn.k_norm(other), turns), v, attn_mask=attn_mask
            )
            for one, other in ((q, k), (other_q, other_k))
        )
        out: Tensor = attn.to_out((found - less).flatten(2))
        return out


@dataclass(frozen=True, slots=True)
class SameVae(AudioVaeFamily):
    """An autoencoder of stereo sound. width: of a token of its transformers."""

    title = "Stable Audio 3"
    dtypes = (torch.bfloat16,)
    step = PATCH * STRIDE
    latent_axes = 3

    width: int
    layers: int
    latent_channels: int = 256
    rate: int = 44100

    @property
    def output_rate(self) -> int:
        return self.rate

    @classmethod
    def find(cls, files: Sequence[Tensors]) -> Iterator[Located]:
        found = marked(files[0], VAE_PREFIXES, (_MARK,)) if len(files) == 1 else None
        if found is not None:
            yield Located(cls.probe(found[1]), found[1], prefix=found[0])

    @classmethod
    def probe(cls, tensors: Tensors) -> SameVae:
        """Read the network's size off its tensors. Errors: ModelFileError for the small edition."""
        mapping = next((name for name in _DIRECTIONS if f"decoder.layers.3.mapping.{name}" in tensors.shapes), _OLD)
        if tensors.shape(f"decoder.layers.3.mapping.{mapping}")[2] != 1:
            raise tensors.unsupported("has Stable Audio 3's small VAE (SAME-S); supported is the large one (SAME-L)")
        return cls(
            tensors.shape("encoder.layers.2.weight")[1],
            tensors.count("decoder.layers.3.transformers."),
            tensors.shape("encoder.layers.2.weight")[0],
        )

    def table(self, tensors: Tensors | None = None) -> Table:
        table = {
            "encoder.layers.0": "encoder.blocks.0",
            "encoder.layers.2": "encoder.proj",
            "decoder.layers.1": "decoder.proj",
            "decoder.layers.3": "decoder.blocks.0",
            "bottleneck.scaling_factor": "bottleneck.scale",
            "bottleneck.bias": "bottleneck.bias",
            "bottleneck.running_std": "bottleneck.running_std",
        }
        for half, theirs in (("encoder", "encoder.layers.0"), ("decoder", "decoder.layers.3")):
            normed = f"{theirs}.mapping.parametrizations.weight.original"
            table |= {f"{normed}0": f"{half}.blocks.0.mapping.weight_g"}
            table |= {f"{normed}1": f"{half}.blocks.0.mapping.weight_v"}
            for number in range(self.layers):
                end = f"transformers.{number}"
                table |= dict(inside(f"{theirs}.{end}", f"{half}.blocks.0.{end}", _BLOCK))
        return table

    def build(self) -> nn.Module:
        network = AutoencoderSAME(
            patch_size=PATCH,
            encoder_channels=self.width // MULTIPLE,
            encoder_c_mults=(MULTIPLE,),
            encoder_strides=(STRIDE,),
            encoder_transformer_depths=(self.layers,),
            latent_dim=self.latent_channels,
            dim_heads=HEAD,
            # As of the 12 layers that are published.
            decoder_sinusoidal_blocks=(self.layers * 2 // 3,),
            sampling_rate=self.rate,
        )
        # Only parameters go to the device.
        del network.bottleneck.running_std
        network.bottleneck.running_std = nn.Parameter(torch.empty(1), requires_grad=False)
        for half in (network.encoder, network.decoder):
            for block in half.blocks[0].transformers:
                block.attn.rope = nn.Identity()
                block.attn.processor = DifferenceAttention()
        built: nn.Module = network
        return built

    def decode(self, network: Any, latents: Tensor) -> Tensor:
        sounds: Tensor = network.patch_embed.decode(network.decoder(network.bottleneck.decode(latents)))
        return sounds

    def encode(self, network: Any, waveform: Tensor) -> Tensor:
        latents: Tensor = network.bottleneck.encode(network.encoder(network.patch_embed.encode(waveform)))
        return latents
