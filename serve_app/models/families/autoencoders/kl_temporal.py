"""The autoencoder of Stable Video Diffusion: the KL autoencoder, whose decoder also reads neighbouring frames.

Source: Blattmann et al. 2023, arXiv:2311.15127, appendix D; run with the decoder of diffusers'
AutoencoderKLTemporalDecoder.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from diffusers.models.autoencoders.autoencoder_kl_temporal_decoder import TemporalDecoder
from torch import Tensor, nn

from serve_app.models.families.autoencoders.kl import AutoencoderKL
from serve_app.models.families.autoencoders.kl_blocks import slimmed
from serve_app.models.families.family import Located, marked
from serve_app.models.families.unet.unet_names import RES_BLOCK
from serve_app.models.files.layout import Table
from serve_app.models.files.tensors import Tensors
from serve_app.store.models.kinds import VAE_PREFIXES

_MARKS = ("decoder.mid.block_1.mix_factor",)


@dataclass(frozen=True, slots=True)
class TemporalKL(AutoencoderKL):
    """A KL autoencoder of videos: each image is encoded alone, and frames are decoded together.

    ComfyUI decodes as many at once as there is memory for; here it is as many of each size on all machines.
    """

    pixels_together = 8 * 1024 * 576

    @classmethod
    def find(cls, files: Sequence[Tensors]) -> Iterator[Located]:
        found = marked(files[0], VAE_PREFIXES, _MARKS) if len(files) == 1 else None
        if found is not None:
            yield Located(cls.probe(found[1]), found[1], prefix=found[0])

    def table(self, tensors: Tensors | None = None) -> Table:
        return dict(_with_time(super(TemporalKL, self).table().items()))

    def build(self) -> nn.Module:
        vae = super(TemporalKL, self).build()
        vae.decoder = TemporalDecoder(
            in_channels=self.latent_channels,
            out_channels=self.image_channels,
            block_out_channels=self.channels,
            layers_per_block=self.res_blocks,
        )
        return slimmed(vae)

    def decode(self, network: Any, latents: Tensor) -> Tensor:
        frames = len(latents)
        pixels: Tensor = network.decoder(latents, latents.new_zeros(1, frames), num_frames=frames)
        return pixels


def _with_time(spatial: Any) -> Iterator[tuple[str, str]]:
    """Yield module names in the published file and in the network, from those of the KL autoencoder."""
    for theirs, ours in spatial:
        if not (theirs.startswith("decoder.") and ".resnets." in ours):
            yield theirs, ours
        elif ours.endswith(".conv_shortcut"):
            yield theirs, ours.replace(".conv_shortcut", ".spatial_res_block.conv_shortcut")
        else:
            yield theirs, f"{ours}.spatial_res_block"
            yield f"{theirs}.mix_factor", f"{ours}.time_mixer.mix_factor"
            for key, layer in RES_BLOCK.items():
                yield f"{theirs}.time_stack.{key}", f"{ours}.temporal_res_block.{layer}"
    yield "decoder.conv_out.time_mix_conv", "decoder.time_conv_out"
