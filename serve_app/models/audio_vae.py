"""The autoencoder between sounds and latents, on its device. Latents here are its own: unscaled."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from serve_app.errors import NodeError
from serve_app.models.families.family import AudioVaeFamily
from serve_app.models.tiling import Tiles
from serve_app.sampling.transfer import to_device, to_host
from serve_app.values import SoundTiling


class AudioVae:
    """An autoencoder of sounds. network: as its family builds it."""

    def __init__(self, family: AudioVaeFamily, network: nn.Module) -> None:
        self.family = family
        self.network = network
        parameter = next(network.parameters())
        self._device, self._dtype = parameter.device, parameter.dtype

    def decode(self, latents: Tensor) -> Tensor:
        """Return sounds (B,C,T) of the family's `output_rate` from latents (B,c,…), float32 on the host.

        Errors: NodeError for latents of another autoencoder.
        """
        if latents.ndim != self.family.latent_axes or latents.shape[1] != self.family.latent_channels:
            given = ",".join(map(str, latents.shape))
            raise NodeError(
                f"the latents are ({given}), and the audio VAE of {self.family.title} decodes latents of "
                f"{self.family.latent_axes} axes with {self.family.latent_channels} channels"
            )
        return to_host(self.family.decode(self.network, to_device(latents, self._device).to(self._dtype)).float())

    def decode_tiled(self, latents: Tensor, tiling: SoundTiling) -> Tiles:
        """Decode latents (B,c,…,T) tile by tile, faded linearly into each other, as ComfyUI does."""
        count, factor = latents.shape[-1], 0
        overlap = min(tiling.overlap, tiling.length - 1)
        starts = range(0, count - overlap, tiling.length - overlap) if count > tiling.length else [0]
        total, weights = torch.zeros(0), torch.zeros(0)
        for number, start in enumerate(starts, 1):
            part = latents[..., start : start + tiling.length]
            made = self.decode(part)
            # A GPU has filled it once the caller asks for more.
            yield number, len(starts)
            if not factor:
                factor = made.shape[-1] // part.shape[-1]
                total, weights = made.new_zeros(*made.shape[:2], count * factor), made.new_zeros(count * factor)
            fade = torch.ones(made.shape[-1])
            if 0 < (faded := overlap * factor) < len(fade):
                ramp = torch.arange(1, faded + 1) / faded
                fade[:faded] *= ramp
                fade[-faded:] *= ramp.flip(0)
            at = slice(start * factor, start * factor + len(fade))
            total[..., at] += made[..., : total[..., at].shape[-1]] * fade[: len(weights[at])]
            weights[at] += fade[: len(weights[at])]
        return total / weights

    def encode(self, waveform: Tensor) -> Tensor:
        """Return the mean latents of sounds (B,C,T) of the family's `rate`, float32 on the host.

        A sound gets the family's channels: the last is repeated, or those beyond are left out. It is cut to a multiple
        of the family's step, equally on both sides, as in ComfyUI. Errors: NodeError for one shorter than a step.
        """
        family, length = self.family, waveform.shape[-1]
        if length < family.step:
            raise NodeError(
                f"the sound has {length:,} samples at {family.rate:,} Hz; {family.title} takes at least {family.step:,}"
            )
        over = length % family.step
        kept = waveform[:, : family.channels, over // 2 : over // 2 + length - over]
        lacking = family.channels - kept.shape[1]
        if lacking > 0:
            kept = kept[:, [*range(kept.shape[1]), *[-1] * lacking]]
        return to_host(family.encode(self.network, to_device(kept, self._device).to(self._dtype)).float())
