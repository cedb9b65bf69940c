"""The latent upscalers of LTX-2: networks that double the sides of a video's latents, or its frames.

Reads the authors' file, whose metadata has the network's arguments; run by diffusers' LTX2LatentUpsamplerModel. Source:
HaCohen et al. 2026, arXiv:2601.03233.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from diffusers.pipelines.ltx2.latent_upsampler import RATIONAL_RESAMPLER_SCALE_MAPPING, LTX2LatentUpsamplerModel
from torch import Tensor, nn

from serve_app.models.families.family import LatentUpscalerFamily, Located
from serve_app.models.files.layout import Table
from serve_app.models.files.tensors import Tensors

MARK = "post_upsample_res_blocks.0.conv2.bias"
_LAYERS = ("initial_conv", "initial_norm", "res_blocks", "upsampler", "post_upsample_res_blocks", "final_conv")


@dataclass(frozen=True, slots=True)
class Ltx2Upscaler(LatentUpscalerFamily):
    """A latent upscaler. width: of its layers; blocks: before and after its resampling; axes: of its convolutions.

    sides, frames: whether it enlarges these. scale: of the sides, of a network with a resampler of fractions; None:
    2.
    """

    title = "LTX-2"

    latent_channels: int
    width: int
    blocks: int
    axes: int
    sides: bool
    frames: bool
    scale: float | None

    @classmethod
    def find(cls, files: Sequence[Tensors]) -> Iterator[Located]:
        if MARK in files[0].shapes:
            yield Located(cls.probe(files[0]), files[0])

    @classmethod
    def probe(cls, tensors: Tensors) -> Ltx2Upscaler:
        """Read the network's size off its tensors and metadata. Errors: ModelFileError for an unsupported variant."""
        first = tensors.shape("initial_conv.weight")
        config = tensors.config()
        scale = float(config.get("spatial_scale", 2.0)) if config.get("rational_resampler") else None
        if scale is not None and scale not in RATIONAL_RESAMPLER_SCALE_MAPPING:
            known = ", ".join(f"{one:g}" for one in RATIONAL_RESAMPLER_SCALE_MAPPING)
            raise tensors.unsupported(f"holds a latent upscaler whose scale is {scale:g}; supported are {known}")
        sides, frames = (bool(config.get(f"{what}_upsample", what == "spatial")) for what in ("spatial", "temporal"))
        if not sides and not frames:
            raise tensors.unsupported("holds a latent upscaler whose metadata says that it enlarges nothing")
        return cls(
            first[1], first[0], tensors.count("res_blocks."), len(first) - 2, sides=sides, frames=frames, scale=scale
        )

    def table(self, tensors: Tensors | None = None) -> Table:
        return {name: name for name in _LAYERS}

    def build(self) -> nn.Module:
        built: nn.Module = LTX2LatentUpsamplerModel(
            in_channels=self.latent_channels,
            mid_channels=self.width,
            num_blocks_per_stage=self.blocks,
            dims=self.axes,
            spatial_upsample=self.sides,
            temporal_upsample=self.frames,
            rational_spatial_scale=self.scale or 2.0,
            use_rational_resampler=self.scale is not None,
        )
        return built

    def enlarged(self, network: Any, latents: Tensor) -> Tensor:
        made: Tensor = network(latents)
        return made
