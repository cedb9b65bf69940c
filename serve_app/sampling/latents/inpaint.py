"""Inpainting: where a mask is 0 the latents are preserved, where it is 1 they are sampled.

The preserved region is set to the sampler's noise level before each evaluation and restored after it, so that the
network sees one consistent picture. Source: Lugmayr et al. 2022, arXiv:2201.09865, without resampling, as ComfyUI does
it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from functools import lru_cache, partial

import torch
from torch import Tensor
from torch.nn.functional import interpolate

from serve_app.nested_tensor import NestedTensor, Samples, parts_of
from serve_app.recipe.layers import DifferentialDiffusion
from serve_app.recipe.pack_functions import PackFunctions
from serve_app.recipe.patch import Patch
from serve_app.sampling.forward import Injection, to_batch
from serve_app.sampling.latents.layout import LatentLayout
from serve_app.sampling.lazy_sum import Latents, LazySum, mixed, value
from serve_app.sampling.samplers.evaluation import Evaluation
from serve_app.sampling.schedules.levels import Levels
from serve_app.sampling.transfer import to_device


@dataclass(frozen=True, slots=True, eq=False)
class Inpainting:
    """The preserved region of one run. mask: (B,1,…), 1 where to sample; latents: (B,C,…), clean; noise: unit-variance.

    levels: add noise to latents; None: the preserved region stays clean. at: returns the mask of a noise level, if it
    changes. injection: what the preserved region holds in their place.
    """

    mask: Tensor
    latents: Tensor
    noise: Tensor
    levels: Levels | None
    at: Callable[[float], Tensor] | None = None
    injection: Injection | None = None

    def hold(self, evaluation: Evaluation) -> Evaluation:
        """Return the evaluation with the preserved region replaced by the latents at its noise level."""
        latents = LazySum.of(self.latents)
        if self.injection is not None:
            own = self.injection(value(evaluation.x), evaluation.sigma, self._mask(evaluation.sigma))
            kept: Latents = LazySum.of(own)
        elif self.levels is None:
            kept = latents
        else:
            kept = self.levels.noised(latents, LazySum.of(self.noise), evaluation.sigma)
        return replace(evaluation, x=mixed(kept, evaluation.x, self._mask(evaluation.sigma)))

    def restore(self, denoised: Latents, sigma: float) -> Latents:
        """Return denoised of an evaluation at sigma, with the preserved region replaced by the clean latents."""
        return mixed(LazySum.of(self.latents), denoised, self._mask(sigma))

    def _mask(self, sigma: float) -> Tensor:
        return self.mask if self.at is None else self.at(sigma)


def differential(patch: DifferentialDiffusion, levels: Levels, sigmas: Tensor) -> Callable[[Tensor, float], Tensor]:
    """Return a function of a level's mask: 1 where the run's mask reaches the remaining share of the timesteps.

    strength: interpolates from the run's mask to that; 0 acts as 1, as in ComfyUI. Source: Levin and Fried 2023,
    arXiv:2306.00950, Algorithm 1.
    """
    lowest = max(levels.sigma_min, float(sigmas[-1]))
    first, last = (float(t) for t in levels.timestep(torch.tensor([float(sigmas[0]), lowest])))

    def at(mask: Tensor, sigma: float) -> Tensor:
        # In single precision, as ComfyUI: masks drawn in a few shades meet thresholds exactly.
        share = (levels.timestep(torch.tensor([sigma])).float() - last) / (first - last)
        sharp = (mask >= float(share)).to(mask.dtype)
        return sharp if patch.strength in (0, 1) else mask.lerp(sharp, patch.strength)

    return at


def changing_mask(
    mask: Tensor, patches: Iterable[Patch], levels: Levels, sigmas: Tensor
) -> Callable[[float], Tensor] | None:
    """Return a function from a level to its mask, by the last patch that changes masks; None if none does.

    The latest level's mask is cached, as latents are set and restored at the same level.
    """
    for patch in reversed(tuple(patches)):
        if isinstance(patch, DifferentialDiffusion):
            return lru_cache(maxsize=1)(partial(differential(patch, levels, sigmas), mask))
        if isinstance(patch, PackFunctions) and (function := patch.mask) is not None:
            return lru_cache(maxsize=1)(partial(_by_function, function, levels, sigmas, mask))
    return None


def _by_function(
    function: Callable[[Tensor, float, Tensor, Levels], Tensor],
    levels: Levels,
    sigmas: Tensor,
    mask: Tensor,
    sigma: float,
) -> Tensor:
    return function(mask, sigma, sigmas, levels)


def joint_mask(masks: Samples, latents: Tensor, layout: LatentLayout) -> Tensor:
    """Return the mask of latents, packed like them; parts without a mask of their own are all sampled.

    masks: one for each of the first parts, as `latent_mask` has them.
    """
    own, parts = parts_of(masks), layout.parts(latents)
    made = [latent_mask(mask, part) for mask, part in zip(own, parts, strict=False)]
    if not layout.joint:
        return made[0]
    made += [torch.ones_like(part) for part in parts[len(own) :]]
    return layout.pack(NestedTensor([mask.expand_as(part) for mask, part in zip(made, parts, strict=True)]))


def latent_mask(mask: Tensor, latents: Tensor) -> Tensor:
    """Return a pixel mask (H,W), (N,H,W) or (N,1,H,W) as (B,1,h,w), repeated or cut to the latents' batch.

    For latents of a sound, (B,C,T), its columns are the time, and the mask is (B,1,T), the mean of its rows.

    For latents with a time axis, N is that axis, and the mask is (B,1,T,h,w); one of five axes has these itself.
    """
    if latents.ndim == 3:
        rows = mask.float().reshape(-1, *mask.shape[-2:]).mean(1, keepdim=True)
        scaled = interpolate(rows, size=latents.shape[2:], mode="linear")
    elif latents.ndim == 5:
        planes = mask.float() if mask.ndim == 5 else mask.float().reshape(1, 1, -1, *mask.shape[-2:])
        scaled = interpolate(planes, size=latents.shape[2:], mode="trilinear")
    else:
        scaled = interpolate(mask.float().reshape(-1, 1, *mask.shape[-2:]), size=latents.shape[2:], mode="bilinear")
    return to_device(to_batch(scaled, latents.shape[0]), latents.device)
