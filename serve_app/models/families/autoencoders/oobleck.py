"""Oobleck, the autoencoder of ACE-Step 1.5 and YuE 2, at 48 kHz, and of Stable Audio Open, at 44.1 kHz: stereo.

Run by the layers of diffusers' AutoencoderOobleck. Latents of a sound are the mean ones; ComfyUI draws some about them,
others each time. Source: Evans et al. 2024 (Stable Audio Open), arXiv:2407.14358.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from math import prod
from typing import Any, ClassVar

from diffusers.models.autoencoders.autoencoder_oobleck import AutoencoderOobleck
from torch import Tensor, nn
from torch.nn.utils import weight_norm

from serve_app.models.families.family import AudioVaeFamily, Located, marked
from serve_app.models.files.layout import Place, Table
from serve_app.models.files.tensors import Tensors
from serve_app.store.models.kinds import VAE_PREFIXES

_MARK = "decoder.layers.1.layers.0.beta"
_LAST = "decoder.layers.2.layers.1"
_NAMES = (("weight_g", "parametrizations.weight.original0"), ("weight_v", "parametrizations.weight.original1"))
"""Of a normed weight, by either of torch's ways to norm one; the network has the first."""


class OobleckVae(AudioVaeFamily):
    """An autoencoder of stereo sound, by its strides. multiples: of its width, after each."""

    latent_axes = 3
    strides: ClassVar[tuple[int, ...]]
    multiples: ClassVar[tuple[int, ...]] = (1, 2, 4, 8, 16)

    width: int

    @property
    def output_rate(self) -> int:
        return self.rate

    @classmethod
    def find(cls, files: Sequence[Tensors]) -> Iterator[Located]:
        found = marked(files[0], VAE_PREFIXES, (_MARK,)) if len(files) == 1 else None
        if found is not None and (family := cls.probe(found[1])) is not None:
            yield Located(family, found[1], prefix=found[0])

    @classmethod
    def probe(cls, tensors: Tensors) -> OobleckVae | None:
        """Read the network's size off its tensors; None for one of other strides."""
        names = [f"{_LAST}.{name}" for name in _NAMES[1] if f"{_LAST}.{name}" in tensors.shapes]
        if not names or tensors.shape(names[0])[2] != 2 * cls.strides[-2]:
            return None
        first = names[0].replace(_LAST, "decoder.layers.0")
        outputs, channels = tensors.shape(first)[:2]
        return cls(outputs // cls.multiples[-1], channels)  # type: ignore[call-arg]

    def table(self, tensors: Tensors | None = None) -> Table:
        table: dict[str, str | tuple[Place, ...]] = {}
        last = len(self.strides) + 1
        for half in ("encoder", "decoder"):
            modules = {"0": "conv1", str(last): "snake1", str(last + 1): "conv2"}
            for number in range(len(self.strides)):
                ours, theirs = f"block.{number}", f"{number + 1}.layers"
                units = range(3) if half == "encoder" else range(2, 5)
                for unit, at in enumerate(units, 1):
                    parts = ("snake1", "conv1", "snake2", "conv2")
                    modules |= {f"{theirs}.{at}.layers.{i}": f"{ours}.res_unit{unit}.{p}" for i, p in enumerate(parts)}
                ends = {3: "snake1", 4: "conv1"} if half == "encoder" else {0: "snake1", 1: "conv_t1"}
                modules |= {f"{theirs}.{at}": f"{ours}.{part}" for at, part in ends.items()}
            for theirs, ours in modules.items():
                name = f"{half}.layers.{theirs}"
                if "snake" in ours:
                    for part in ("alpha", "beta"):
                        table[f"{name}.{part}"] = (Place(f"{half}.{ours}.{part}", shape=(1, -1, 1)),)
                    continue
                table |= {f"{name}.bias": f"{half}.{ours}.bias"}
                table |= {f"{name}.{written}": f"{half}.{ours}.{names[0]}" for names in _NAMES for written in names}
        return table

    def build(self) -> nn.Module:
        network = AutoencoderOobleck(
            encoder_hidden_size=self.width,
            downsampling_ratios=list(self.strides),
            channel_multiples=list(self.multiples),
            decoder_channels=self.width,
            decoder_input_channels=self.latent_channels,
            audio_channels=self.channels,
            sampling_rate=self.rate,
        )
        # diffusers' latents are as wide as the network.
        widest = self.width * self.multiples[-1]
        network.encoder.conv2 = weight_norm(nn.Conv1d(widest, 2 * self.latent_channels, 3, padding=1))
        # Without it a step of an odd stride makes one sample too few.
        for block, stride in zip(network.decoder.block, reversed(self.strides), strict=True):
            block.conv_t1.output_padding = (stride % 2,)
        built: nn.Module = network
        return built

    def decode(self, network: Any, latents: Tensor) -> Tensor:
        sounds: Tensor = network.decoder(latents)
        return sounds

    def encode(self, network: Any, waveform: Tensor) -> Tensor:
        mean: Tensor = network.encoder(waveform).chunk(2, dim=1)[0]
        return mean


@dataclass(frozen=True, slots=True)
class AceStep15Vae(OobleckVae):
    """ACE-Step 1.5's: a latent for 1,920 samples."""

    title = "ACE-Step 1.5"
    strides = (2, 4, 4, 6, 10)
    step = prod(strides)

    width: int
    latent_channels: int = 64
    rate: int = 48000


@dataclass(frozen=True, slots=True)
class YuE2Vae(OobleckVae):
    """YuE 2's: a latent for 1,920 samples."""

    title = "YuE 2"
    strides = (2, 2, 4, 4, 5, 6)
    multiples = (1, 2, 4, 8, 16, 32)
    step = prod(strides)

    width: int
    latent_channels: int = 64
    rate: int = 48000


@dataclass(frozen=True, slots=True)
class StableAudioOpenVae(OobleckVae):
    """Stable Audio Open's: a latent for 2,048 samples."""

    title = "Stable Audio Open"
    strides = (2, 4, 4, 8, 8)
    step = prod(strides)

    width: int
    latent_channels: int = 64
    rate: int = 44100
