"""Inpainting: where a mask is 0 the latents are kept, where it is 1 they are sampled.

What is kept is held at the sampler's noise level before each evaluation and restored after it, so that the network sees
one consistent picture. Source: Lugmayr et al. 2022, arXiv:2201.09865, without resampling, as ComfyUI does it.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from torch import Tensor
from torch.nn.functional import interpolate

from serve_app.sampling.evaluation import Evaluation
from serve_app.sampling.noise import noised


@dataclass(frozen=True, slots=True, eq=False)
class Inpainting:
    """What one run keeps. mask: (B,1,h,w), 1 where to sample; latents, noise: (B,C,h,w), clean and unit-variance."""

    mask: Tensor
    latents: Tensor
    noise: Tensor

    def hold(self, evaluation: Evaluation) -> Evaluation:
        """Return the evaluation with the kept region replaced by the latents at its noise level."""
        kept = noised(self.latents, self.noise, evaluation.sigma)
        return replace(evaluation, x=kept.lerp(evaluation.x, self.mask))

    def restore(self, denoised: Tensor) -> Tensor:
        """Return denoised with the kept region replaced by the clean latents."""
        return self.latents.lerp(denoised, self.mask)


def latent_mask(mask: Tensor, latents: Tensor) -> Tensor:
    """Return a mask (H,W), (N,H,W) or (N,1,H,W) of pixels as (B,1,h,w), repeated or cut to the latents' batch."""
    batch, _, height, width = latents.shape
    scaled = interpolate(mask.reshape(-1, 1, *mask.shape[-2:]).float(), size=(height, width), mode="bilinear")
    return scaled.repeat(-(-batch // scaled.shape[0]), 1, 1, 1)[:batch].to(latents.device)
