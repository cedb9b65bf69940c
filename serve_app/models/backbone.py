"""The backbone: a diffusion network on its device, as the engine evaluates it."""

from __future__ import annotations

from collections.abc import Hashable
from typing import Any

import torch
from torch import Tensor, nn

from serve_app.models.families import UNetArchitecture
from serve_app.sampling.denoiser import EPS, Prediction
from serve_app.sampling.sigmas import NoiseLevels

SD1_LATENT_SCALE = 0.18215
"""Latents times this have about unit variance. Source: Rombach et al. 2022, arXiv:2112.10752, Appendix G."""


class Backbone:
    """A diffusion network with what it was trained on. key: equal for equal weights. network: UNet2DConditionModel."""

    def __init__(self, key: Hashable, architecture: UNetArchitecture, network: nn.Module) -> None:
        self.key = key
        self.architecture = architecture
        self.levels = NoiseLevels()
        self.latent_scale = SD1_LATENT_SCALE
        self._prediction: Prediction = EPS()
        self._network: Any = network
        parameter = next(network.parameters())
        self.device: torch.device = parameter.device
        self._dtype = parameter.dtype

    def denoise(self, x: Tensor, sigma: Tensor, context: Tensor, context_mask: Tensor | None = None) -> Tensor:
        """Return D(x, sigma) as float32 (R,C,h,w).

        x: (R,C,h,w) float32 latents at sigma (R,), any mixture of levels. context: (R,T,D), one text a row;
        context_mask: (R,T) bool, False where a row's text has ended.
        """
        output: Tensor = self._network(
            self._prediction.scale_input(x, sigma).to(self._dtype),
            self.levels.timestep(sigma),
            context.to(self._dtype),
            encoder_attention_mask=context_mask,
            return_dict=False,
        )[0]
        return self._prediction.denoised(x, output.float(), sigma)
