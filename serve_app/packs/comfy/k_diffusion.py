"""`comfy.k_diffusion.sampling` for node packs: the server's samplers as functions that call a model, and their helpers.

Packs add samplers of their own by setting `sample_NAME` here.

Source: the facts of ComfyUI 0.33's module of this name.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from math import sqrt
from typing import Any

import torch
from torch import Tensor

from serve_app.sampling.noise import SEEDS
from serve_app.sampling.samplers.brownian import BrownianPath
from serve_app.sampling.samplers.evaluation import next_evaluation
from serve_app.sampling.samplers.samplers import SAMPLERS
from serve_app.sampling.schedules.sigmas import ending_at_zero, exponential, karras


def function_of(name: str) -> Callable[..., Tensor]:
    """Return one of the server's samplers as a function, or one that a pack has set in this module.

    Errors: NodeError for an unknown name.
    """
    if name not in SAMPLERS and f"sample_{name}" in globals():
        added: Callable[..., Tensor] = globals()[f"sample_{name}"]
        return added
    spec = SAMPLERS[name]

    def sample(
        model: Any,
        x: Tensor,
        sigmas: Tensor,
        extra_args: Mapping[str, Any] | None = None,
        callback: Callable[[Mapping[str, Any]], Any] | None = None,
        disable: Any = None,
        noise_sampler: Callable[[Any, Any], Tensor] | None = None,
        **options: Any,
    ) -> Tensor:
        """Sample x over sigmas with a model that is called: (x, sigmas (B,), …) to denoised."""
        extra = dict(extra_args or {})
        levels = model.inner_model.model_sampling.levels
        given = spec.start(x, sigmas.cpu(), int(extra.get("seed") or 0), levels, options)
        if noise_sampler is not None and spec.noise is not None:
            given = spec.function(x, sigmas.cpu(), noise_sampler, **options)
        answer = None
        while True:
            try:
                asked = next_evaluation(given, answer)
            except StopIteration as end:
                made: Tensor = end.value
                return made
            level = x.new_full((x.shape[0],), asked.sigma)
            if asked.want_uncond:
                answer = _both(model, asked.latents, level, extra)
                denoised = answer[0]
            else:
                denoised = answer = model(asked.latents, level, **extra)
            if callback is not None:
                sigma = sigmas[asked.step]
                callback(
                    {"x": asked.latents, "i": asked.step, "sigma": sigma, "sigma_hat": sigma, "denoised": denoised}
                )

    sample.__name__ = f"sample_{name}"
    sample.sampler_name = name  # type: ignore[attr-defined]
    return sample


def _both(model: Any, x: Tensor, level: Tensor, extra: Mapping[str, Any]) -> tuple[Tensor, Tensor]:
    """Return (denoised, uncond) of a model that is called, by a function after guidance."""
    seen: list[Tensor] = []

    def see(told: Mapping[str, Any]) -> Tensor:
        seen.append(told["uncond_denoised"])
        denoised: Tensor = told["denoised"]
        return denoised

    options = dict(extra.get("model_options") or {})
    options["sampler_post_cfg_function"] = [*options.get("sampler_post_cfg_function", ()), see]
    options["disable_cfg1_optimization"] = True
    denoised = model(x, level, **{**extra, "model_options": options})
    return denoised, seen[0]


class BrownianTreeNoiseSampler:
    """Noise between two levels, the increment of one Brownian path; drawn on the CPU."""

    def __init__(
        self,
        x: Tensor,
        sigma_min: Any,
        sigma_max: Any,
        seed: int | None = None,
        transform: Callable[[Tensor], Tensor] = lambda sigma: sigma,
        cpu: bool = False,
    ) -> None:
        self._transform = transform
        low, high = (float(transform(torch.as_tensor(float(sigma)))) for sigma in (sigma_min, sigma_max))
        self._path, self._like = BrownianPath(x.shape, low, high, (seed or 0) % SEEDS), x

    def __call__(self, sigma: Any, sigma_next: Any) -> Tensor:
        start, end = (float(self._transform(torch.as_tensor(float(level)))) for level in (sigma, sigma_next))
        # In this order: a step starts where the one before has ended, whose draws the path keeps.
        before = self._path.at(start)
        return ((self._path.at(end) - before) / sqrt(abs(end - start))).to(self._like.device)


def default_noise_sampler(x: Tensor, seed: int | None = None) -> Callable[[Any, Any], Tensor]:
    """Return a source of independent noise shaped as x, on the CPU. seed None: of torch's own generator."""
    generator = None if seed is None else torch.Generator().manual_seed((seed + 1) % SEEDS)
    return lambda sigma, sigma_next: torch.randn(x.shape, generator=generator).to(x.device)


def append_zero(x: Tensor) -> Tensor:
    """Return levels with 0 after the last."""
    return ending_at_zero(x)


def append_dims(x: Tensor, target_dims: int) -> Tensor:
    """Return a tensor with dimensions of size 1 appended, up to target_dims."""
    return x[(...,) + (None,) * (target_dims - x.ndim)]


def to_d(x: Tensor, sigma: Any, denoised: Tensor) -> Tensor:
    """Return the direction of growing noise."""
    return (x - denoised) / append_dims(torch.as_tensor(sigma), x.ndim)


def get_ancestral_step(sigma_from: Any, sigma_to: Any, eta: float = 1.0) -> tuple[Any, Any]:
    """Return (the level to step down to, how much noise is added after). Source: Karras et al. 2022, Algorithm 2."""
    if not eta:
        return sigma_to, 0.0
    up = min(sigma_to, eta * (sigma_to**2 * (sigma_from**2 - sigma_to**2) / sigma_from**2) ** 0.5)
    return (sigma_to**2 - up**2) ** 0.5, up


class _Between:
    """Two levels."""

    def __init__(self, sigma_min: float, sigma_max: float) -> None:
        self.sigma_min, self.sigma_max = float(sigma_min), float(sigma_max)


def get_sigmas_karras(n: int, sigma_min: float, sigma_max: float, rho: float = 7.0, device: Any = "cpu") -> Tensor:
    """Return levels equally spaced in sigma^(1/rho), with 0 after the last."""
    return karras(_Between(sigma_min, sigma_max), n, rho).to(device)


def get_sigmas_exponential(n: int, sigma_min: float, sigma_max: float, device: Any = "cpu") -> Tensor:
    """Return levels equally spaced in log sigma, with 0 after the last."""
    return exponential(_Between(sigma_min, sigma_max), n).to(device)


for _name in SAMPLERS:
    globals()[f"sample_{_name}"] = function_of(_name)
