"""The audio autoencoder of MiniMax H3: stereo at 32 kHz, 40 latents a second.

Both channels go through the network as sounds of one. Reads ComfyUI's file, whose weight norms are folded; run by the
layers of diffusers' AutoencoderKLMiniMaxH3Audio. Source: MiniMax 2026, MiniMax-H3; Lee et al. 2023 (BigVGAN),
arXiv:2206.04658; Kumar et al. 2023 (DAC), arXiv:2306.06546.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from diffusers.models.autoencoders.autoencoder_kl_minimax_h3_audio import (
    AutoencoderKLMiniMaxH3Audio,
    MiniMaxH3AudioCausalAttention,
)
from torch import Tensor, nn
from torch.nn.functional import adaptive_avg_pool1d, scaled_dot_product_attention
from torch.nn.utils import remove_weight_norm

from serve_app.errors import NodeError
from serve_app.models.families.autoencoders.minimax_h3 import STATISTICS, statistics
from serve_app.models.families.family import AudioVaeFamily, Located, marked
from serve_app.models.families.shared.buffers import buffers_as_weights
from serve_app.models.files.layout import Table
from serve_app.models.files.tensors import Tensors
from serve_app.store.models.kinds import VAE_PREFIXES

_MARK = "pre_block.attn.zero_k_bias"
_PARTS = ("encoder", "decoder", "pre_block", "mean_proj", "logs_proj", "dec_in_proj")
STRIDES, RATES, KERNELS = (2, 4, 4, 5, 5), (5, 5, 2, 2, 2, 2, 2), (9, 9, 4, 4, 4, 4, 4)


class Attention(MiniMaxH3AudioCausalAttention):  # type: ignore[misc]
    """Causal attention that calls its layers, as diffusers' reads their weights, which may be packed."""

    def forward(self, hidden_states: Tensor) -> Tensor:
        """Return the means of all heads for tokens (B,n,W), pooled to the latents' width, (B,n,c)."""
        bias = torch.cat((self.q_bias, self.zero_k_bias, self.v_bias))
        parts = torch.unflatten(self.qkv(hidden_states) + bias, -1, (3, self.num_heads, -1))
        q, k, v = parts.permute(2, 0, 3, 1, 4)
        found = scaled_dot_product_attention(q, k, v, is_causal=True).mean(dim=1)
        pooled: Tensor = self.proj(adaptive_avg_pool1d(found, self.out_dim))
        return pooled


@dataclass(frozen=True, slots=True)
class MiniMaxH3AudioVae(AudioVaeFamily):
    """An autoencoder of sounds. width, decoder_width: of the finest and the coarsest level of its halves.

    inside: width between a half and the latents.
    """

    title = "MiniMax H3"
    step = math.prod(STRIDES)

    width: int
    inside: int
    decoder_width: int
    latent_channels: int = 32
    rate: int = 32000

    @property
    def output_rate(self) -> int:
        return self.rate

    @classmethod
    def find(cls, files: Sequence[Tensors]) -> Iterator[Located]:
        found = marked(files[0], VAE_PREFIXES, (_MARK,)) if len(files) == 1 else None
        if found is not None:
            yield Located(cls.probe(found[1]), found[1], prefix=found[0])

    @classmethod
    def probe(cls, tensors: Tensors) -> MiniMaxH3AudioVae:
        """Read the network's size off its tensors."""
        inside, latent_channels = tensors.shape("dec_in_proj.weight")[:2]
        width, decoder_width = tensors.shape("encoder.block.0.weight")[0], tensors.shape("decoder.conv_pre.weight")[0]
        return cls(width, inside, decoder_width, latent_channels)

    def table(self, tensors: Tensors | None = None) -> Table:
        return {**STATISTICS, **{name: name for name in _PARTS}}

    def build(self) -> nn.Module:
        network = AutoencoderKLMiniMaxH3Audio(
            encoder_dim=self.width,
            encoder_rates=STRIDES,
            latent_dim=self.inside,
            latent_channels=self.latent_channels,
            decoder_dim=self.decoder_width,
            decoder_rates=RATES,
            decoder_kernel_sizes=KERNELS,
        )
        network.pre_block.attn.__class__ = Attention
        network.statistics = statistics(self.latent_channels)
        for layer in network.modules():
            if hasattr(layer, "weight_g"):
                remove_weight_norm(layer)
        buffers_as_weights(network)
        built: nn.Module = network
        return built

    def decode(self, network: Any, latents: Tensor) -> Tensor:
        if latents.ndim != 4 or tuple(latents.shape[1:3]) != (self.latent_channels, self.channels):
            expected = f"(batch,{self.latent_channels},{self.channels},length)"
            raise NodeError(f"the latents are {tuple(latents.shape)}; {self.title}'s of sounds are {expected}")
        (rows, channels), mean, deviation = latents.shape[:2], *self._statistics(network)
        mono = latents.movedim(2, 1).reshape(rows * self.channels, channels, -1) * deviation + mean
        waveform: Tensor = network.decode(mono, return_dict=False)[0]
        return waveform.reshape(rows, self.channels, -1)

    def encode(self, network: Any, waveform: Tensor) -> Tensor:
        mean, deviation = self._statistics(network)
        mono = network.encode(waveform.reshape(-1, 1, waveform.shape[-1]), return_dict=False)[0].mode()
        latents: Tensor = (mono - mean) / deviation
        return latents.view(-1, self.channels, *latents.shape[1:]).movedim(1, 2)

    def _statistics(self, network: Any) -> Sequence[Tensor]:
        own = network.statistics
        return own.mean.view(1, -1, 1), own.deviation.view(1, -1, 1)
