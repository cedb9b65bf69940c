"""Stable Diffusion 1.x and 2.x. Source: Rombach et al. 2022, arXiv:2112.10752."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from serve_app.models.families.family import File
from serve_app.models.families.shared.concat import EDIT_CHANNELS, image_to_edit, mask_and_image
from serve_app.models.families.unet.unet import Unet
from serve_app.recipe.training import Discrete, Training
from serve_app.sampling.forward import Canvas
from serve_app.sampling.latents.latent_formats import SD

_V_SPREAD = 0.09


@dataclass(frozen=True, slots=True)
class Sd(Unet):
    """A backbone of SD 1.x or 2.x."""

    title = "Stable Diffusion 1.x and 2.x"
    latent_format = SD
    text_prefixes = {"clip_l": "cond_stage_model.transformer.", "clip_h": "cond_stage_model.model."}  # noqa: RUF012

    @classmethod
    def has_widths(cls, context_dim: int, vector_dim: int) -> bool:
        return not vector_dim

    def training(self, file: File, names: Mapping[str, str]) -> Training:
        """SD 2's files do not state it; as ComfyUI does, it is guessed from the spread of one bias."""
        last = len(self.channels) - 1
        bias = f"up_blocks.{last}.attentions.{self.res_blocks[0]}.transformer_blocks.0.norm1.bias"
        if not self.linear or self.concat_channels or bias not in names:
            return Discrete()
        spread = file.tensor(names[bias]).float().std(correction=0)
        return Discrete("v_prediction" if float(spread) > _V_SPREAD else "eps")

    def vector(self, options: Mapping[str, Any], canvas: Canvas, role: str) -> Tensor | None:
        return None

    def concat(
        self, options: Mapping[str, Any], latents: Tensor, mask: Tensor | None, trained_as: Training
    ) -> Tensor | None:
        if not self.concat_channels:
            return None
        if self.concat_channels == EDIT_CHANNELS:
            return image_to_edit(options, latents)
        return mask_and_image(options, latents, mask, self.latent_format)
