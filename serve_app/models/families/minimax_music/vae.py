"""The decoder of MiniMax Music 3's sounds: stereo at 44.1 kHz, each channel by itself; nothing encodes them.

Run by transformers' DacDecoder. Source: Kumar et al. 2023 (DAC), arXiv:2306.06546.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from math import prod
from typing import Any

from torch import Tensor, nn
from torch.nn.utils import weight_norm
from transformers.models.dac.configuration_dac import DacConfig
from transformers.models.dac.modeling_dac import DacDecoder

from serve_app.errors import NodeError
from serve_app.models.families.family import AudioVaeFamily, Located, marked
from serve_app.models.files.layout import Table
from serve_app.models.files.tensors import Tensors
from serve_app.store.models.kinds import VAE_PREFIXES

STRIDES = (8, 8, 4, 2)
_MARK = "dec_in_proj.weight"


@dataclass(frozen=True, slots=True)
class MiniMaxMusic3Vae(AudioVaeFamily):
    """A decoder. width: of its first layer; inside: of what it is fed."""

    title = "MiniMax Music 3"
    step = prod(STRIDES)
    latent_axes = 3

    width: int
    inside: int
    latent_channels: int = 128
    rate: int = 44100

    @property
    def output_rate(self) -> int:
        return self.rate

    @classmethod
    def find(cls, files: Sequence[Tensors]) -> Iterator[Located]:
        found = marked(files[0], VAE_PREFIXES, (_MARK,)) if len(files) == 1 else None
        if found is not None:
            prefix, tensors = found
            inside, channels, _ = tensors.shape(_MARK)
            family = cls(tensors.shape("decoder.model.0.weight_v")[0], inside, 2 * channels)
            yield Located(family, tensors, prefix=prefix)

    def table(self, tensors: Tensors | None = None) -> Table:
        last = len(STRIDES) + 1
        table = {"dec_in_proj": "dec_in_proj", "decoder.model.0": "decoder.conv1"}
        table |= {f"decoder.model.{last}": "decoder.snake1", f"decoder.model.{last + 1}": "decoder.conv2"}
        for number in range(len(STRIDES)):
            theirs, ours = f"decoder.model.{number + 1}.block", f"decoder.block.{number}"
            table |= {f"{theirs}.0": f"{ours}.snake1", f"{theirs}.1": f"{ours}.conv_t1"}
            for unit in range(1, 4):
                parts = enumerate(("snake1", "conv1", "snake2", "conv2"))
                table |= {f"{theirs}.{unit + 1}.block.{i}": f"{ours}.res_unit{unit}.{part}" for i, part in parts}
        return table

    def build(self) -> nn.Module:
        network = nn.Module()
        network.dec_in_proj = nn.Conv1d(self.latent_channels // 2, self.inside, 1)
        config = DacConfig(hidden_size=self.inside, decoder_hidden_size=self.width, upsampling_ratios=list(STRIDES))
        decoder = DacDecoder(config)
        for layer in decoder.modules():
            if isinstance(layer, nn.Conv1d | nn.ConvTranspose1d):
                weight_norm(layer)
        network.decoder = decoder
        return network

    def decode(self, network: Any, latents: Tensor) -> Tensor:
        each = latents.unflatten(1, (2, -1)).flatten(0, 1)  # type: ignore[no-untyped-call]
        sounds: Tensor = network.decoder(network.dec_in_proj(each))
        return sounds.view(latents.shape[0], 2, -1)

    def encode(self, network: Any, waveform: Tensor) -> Tensor:
        raise NodeError("MiniMax Music 3's VAE has no encoder; sounds of another model's can be encoded")
