"""The nodes that make SIGMAS, by a schedule with its own numbers or for a model."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from serve_app.execution.runtime import Runtime
from serve_app.execution.size import allow_levels
from serve_app.nodes.latent.latents import MAX_RESOLUTION
from serve_app.recipe import Recipe
from serve_app.sampling.schedules.gits import picked
from serve_app.sampling.schedules.schedules import (
    ALIGN_YOUR_STEPS,
    OPTIMAL_STEPS,
    Ends,
    flux_2,
    from_table,
    laplace,
    polyexponential,
    turbo,
    variance_preserving,
)
from serve_app.sampling.schedules.sigmas import SCHEDULES, beta, exponential, karras

CATEGORY = "model/sampling/schedulers"

STEPS = ("INT", {"default": 20, "min": 1, "max": 10000})
DENOISE = ("FLOAT", {"default": 1.0, "min": 0.0, "max": 1.0, "step": 0.01})


def _number(default: float, most: float, step: float = 0.01, least: float = 0.0) -> tuple[str, dict[str, Any]]:
    return ("FLOAT", {"default": default, "min": least, "max": most, "step": step, "round": False})


ENDS: Mapping[str, Any] = {"sigma_max": _number(14.614642, 5000.0), "sigma_min": _number(0.0291675, 5000.0)}


class BasicScheduler:
    """Sigmas of one of KSampler's schedules."""

    RETURN_TYPES = ("SIGMAS",)
    FUNCTION = "get_sigmas"
    CATEGORY = CATEGORY

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        required = {"model": ("MODEL",), "scheduler": (list(SCHEDULES),), "steps": STEPS, "denoise": DENOISE}
        return {"required": required, "hidden": {"runtime": "RUNTIME"}}

    async def get_sigmas(
        self, model: Recipe, scheduler: str, steps: int, denoise: float, runtime: Runtime
    ) -> tuple[Tensor]:
        """Return the last steps + 1 sigmas of a schedule that is longer by 1 / denoise."""
        if denoise <= 0.0:
            return (torch.empty(0),)
        allow_levels(steps, denoise)
        whole = int(steps / denoise) if denoise < 1.0 else steps
        return (SCHEDULES[scheduler](await runtime.levels(model), whole)[-(steps + 1) :],)


class KarrasScheduler:
    """Sigmas equally spaced in a root of sigma."""

    RETURN_TYPES = ("SIGMAS",)
    FUNCTION = "get_sigmas"
    CATEGORY = CATEGORY

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        return {"required": {"steps": STEPS, **ENDS, "rho": _number(7.0, 100.0)}}

    def get_sigmas(self, steps: int, sigma_max: float, sigma_min: float, rho: float) -> tuple[Tensor]:
        """Return sigmas from one end to the other, then 0."""
        return (karras(Ends(sigma_max, sigma_min), steps, rho),)


class ExponentialScheduler:
    """Sigmas equally spaced in their logarithm."""

    RETURN_TYPES = ("SIGMAS",)
    FUNCTION = "get_sigmas"
    CATEGORY = CATEGORY

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        return {"required": {"steps": STEPS, **ENDS}}

    def get_sigmas(self, steps: int, sigma_max: float, sigma_min: float) -> tuple[Tensor]:
        """Return sigmas from one end to the other, then 0."""
        return (exponential(Ends(sigma_max, sigma_min).positive(), steps),)


class PolyexponentialScheduler:
    """Sigmas spaced by a power in their logarithm."""

    RETURN_TYPES = ("SIGMAS",)
    FUNCTION = "get_sigmas"
    CATEGORY = CATEGORY

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        return {"required": {"steps": STEPS, **ENDS, "rho": _number(1.0, 100.0)}}

    def get_sigmas(self, steps: int, sigma_max: float, sigma_min: float, rho: float) -> tuple[Tensor]:
        """Return sigmas from one end to the other, then 0."""
        return (polyexponential(Ends(sigma_max, sigma_min).positive(), steps, rho),)


class LaplaceScheduler:
    """Sigmas most of which lie about one level."""

    RETURN_TYPES = ("SIGMAS",)
    FUNCTION = "get_sigmas"
    CATEGORY = CATEGORY

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        spread = {"mu": _number(0.0, 10.0, 0.1, -10.0), "beta": _number(0.5, 10.0, 0.1)}
        return {"required": {"steps": STEPS, **ENDS, **spread}}

    def get_sigmas(self, steps: int, sigma_max: float, sigma_min: float, mu: float, beta: float) -> tuple[Tensor]:
        """Return so many sigmas, without 0 at the end."""
        return (laplace(Ends(sigma_max, sigma_min), steps, mu, beta),)


class VPScheduler:
    """Sigmas of the variance-preserving process."""

    RETURN_TYPES = ("SIGMAS",)
    FUNCTION = "get_sigmas"
    CATEGORY = CATEGORY

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        betas = {"beta_d": _number(19.9, 5000.0), "beta_min": _number(0.1, 5000.0)}
        return {"required": {"steps": STEPS, **betas, "eps_s": _number(0.001, 1.0, 0.0001)}}

    def get_sigmas(self, steps: int, beta_d: float, beta_min: float, eps_s: float) -> tuple[Tensor]:
        """Return sigmas of the times from 1 to eps_s, then 0."""
        return (variance_preserving(steps, beta_d, beta_min, eps_s),)


class SDTurboScheduler:
    """Sigmas that the Turbo models are distilled on."""

    RETURN_TYPES = ("SIGMAS",)
    FUNCTION = "get_sigmas"
    CATEGORY = CATEGORY

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        steps = ("INT", {"default": 1, "min": 1, "max": 10})
        denoise = ("FLOAT", {"default": 1.0, "min": 0, "max": 1.0, "step": 0.01})
        return {
            "required": {"model": ("MODEL",), "steps": steps, "denoise": denoise},
            "hidden": {"runtime": "RUNTIME"},
        }

    async def get_sigmas(self, model: Recipe, steps: int, denoise: float, runtime: Runtime) -> tuple[Tensor]:
        """Return the model's sigmas at tenths of its timesteps, then 0."""
        return (turbo(await runtime.levels(model), steps, denoise),)


class BetaSamplingScheduler:
    """Sigmas spaced as quantiles of a beta distribution."""

    RETURN_TYPES = ("SIGMAS",)
    FUNCTION = "get_sigmas"
    CATEGORY = CATEGORY

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        shape = {"alpha": _number(0.6, 50.0), "beta": _number(0.6, 50.0)}
        return {"required": {"model": ("MODEL",), "steps": STEPS, **shape}, "hidden": {"runtime": "RUNTIME"}}

    async def get_sigmas(self, model: Recipe, steps: int, alpha: float, beta: float, runtime: Runtime) -> tuple[Tensor]:
        """Return the model's sigmas, equal ones once, then 0."""
        return (_quantiles(await runtime.levels(model), steps, alpha, beta),)


# The node's own input of that name would hide the schedule.
_quantiles = beta


class AlignYourStepsScheduler:
    """Sigmas that were optimised for a kind of model."""

    RETURN_TYPES = ("SIGMAS",)
    FUNCTION = "get_sigmas"
    CATEGORY = CATEGORY

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        steps = ("INT", {"default": 10, "min": 1, "max": 10000})
        return {"required": {"model_type": (list(ALIGN_YOUR_STEPS),), "steps": steps, "denoise": DENOISE}}

    def get_sigmas(self, model_type: str, steps: int, denoise: float) -> tuple[Tensor]:
        """Return the table's sigmas for ten steps, interpolated for other numbers."""
        return (from_table(ALIGN_YOUR_STEPS[model_type], steps, denoise),)


class OptimalStepsScheduler:
    """Sigmas that were searched for a kind of model that samples a flow."""

    RETURN_TYPES = ("SIGMAS",)
    FUNCTION = "execute"
    CATEGORY = CATEGORY

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        kind = ("COMBO", {"options": list(OPTIMAL_STEPS)})
        return {
            "required": {
                "model_type": kind,
                "steps": ("INT", {"default": 20, "min": 3, "max": 1000}),
                "denoise": DENOISE,
            }
        }

    def execute(self, model_type: str, steps: int, denoise: float) -> tuple[Tensor]:
        """Return the table's sigmas, interpolated for other numbers of steps."""
        return (from_table(OPTIMAL_STEPS[model_type], steps, denoise),)


class GITSScheduler:
    """Sigmas that follow where sampling's path bends."""

    RETURN_TYPES = ("SIGMAS",)
    FUNCTION = "get_sigmas"
    CATEGORY = CATEGORY

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        coeff = ("FLOAT", {"default": 1.2, "min": 0.8, "max": 1.5, "step": 0.05})
        steps = ("INT", {"default": 10, "min": 2, "max": 1000})
        return {"required": {"coeff": coeff, "steps": steps, "denoise": DENOISE}}

    def get_sigmas(self, coeff: float, steps: int, denoise: float) -> tuple[Tensor]:
        """Return the table's sigmas for up to twenty steps, interpolated for more."""
        return (from_table(picked(coeff, steps), steps, denoise),)


class Flux2Scheduler:
    """Sigmas that FLUX.2 was tuned for, by the size of the image."""

    RETURN_TYPES = ("SIGMAS",)
    FUNCTION = "execute"
    CATEGORY = CATEGORY

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        side = ("INT", {"default": 1024, "min": 16, "max": MAX_RESOLUTION, "step": 1})
        steps = ("INT", {"default": 20, "min": 1, "max": 4096})
        return {"required": {"steps": steps, "width": side, "height": side}}

    def execute(self, steps: int, width: int, height: int) -> tuple[Tensor]:
        """Return the sigmas, then 0."""
        return (flux_2(steps, round(width * height / (16 * 16))),)


_NODES = (
    SDTurboScheduler,
    BasicScheduler,
    KarrasScheduler,
    ExponentialScheduler,
    PolyexponentialScheduler,
    LaplaceScheduler,
    VPScheduler,
    BetaSamplingScheduler,
    AlignYourStepsScheduler,
    GITSScheduler,
    OptimalStepsScheduler,
    Flux2Scheduler,
)

NODE_CLASS_MAPPINGS: Mapping[str, type] = {node.__name__: node for node in _NODES}

NODE_DISPLAY_NAME_MAPPINGS: Mapping[str, str] = {}
