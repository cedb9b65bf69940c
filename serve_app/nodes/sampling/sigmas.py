"""The nodes that change SIGMAS, or read a level off a model."""

from __future__ import annotations

import re
from collections.abc import Mapping
from math import inf
from typing import Any

from torch import Tensor, tensor

from serve_app.errors import NodeError
from serve_app.execution.runtime import Runtime
from serve_app.recipe import Recipe
from serve_app.sampling.schedules.schedules import SPACINGS, extended

CATEGORY = "model/sampling/sigmas"

ABOVE_ALL = 999999999.9
"""What ComfyUI says of the level above every other."""

LEAST_START = 0.0001
"""What a first level of 0 becomes: from 0 itself no sampler can set out."""


class SplitSigmas:
    """Sigmas before and after a step."""

    RETURN_TYPES = ("SIGMAS", "SIGMAS")
    RETURN_NAMES = ("high_sigmas", "low_sigmas")
    FUNCTION = "get_sigmas"
    CATEGORY = CATEGORY

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        return {"required": {"sigmas": ("SIGMAS",), "step": ("INT", {"default": 0, "min": 0, "max": 10000})}}

    def get_sigmas(self, sigmas: Tensor, step: int) -> tuple[Tensor, Tensor]:
        """Return both parts; the step's level ends one and begins the other."""
        return (sigmas[: step + 1], sigmas[step:])


class SplitSigmasDenoise:
    """Sigmas before and within the last share of the steps."""

    RETURN_TYPES = ("SIGMAS", "SIGMAS")
    RETURN_NAMES = ("high_sigmas", "low_sigmas")
    FUNCTION = "get_sigmas"
    CATEGORY = CATEGORY

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        denoise = ("FLOAT", {"default": 1.0, "min": 0.0, "max": 1.0, "step": 0.01})
        return {"required": {"sigmas": ("SIGMAS",), "denoise": denoise}}

    def get_sigmas(self, sigmas: Tensor, denoise: float) -> tuple[Tensor, Tensor]:
        """Return both parts; where the share holds no step the first is empty, as in ComfyUI."""
        steps = round(max(len(sigmas) - 1, 0) * denoise)
        return (sigmas[: len(sigmas) - steps if steps else 0], sigmas[-(steps + 1) :])


class FlipSigmas:
    """Sigmas in reverse order, for sampling towards noise."""

    RETURN_TYPES = ("SIGMAS",)
    FUNCTION = "get_sigmas"
    CATEGORY = CATEGORY

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        return {"required": {"sigmas": ("SIGMAS",)}}

    def get_sigmas(self, sigmas: Tensor) -> tuple[Tensor]:
        """Return the sigmas from the last to the first; a first 0 becomes a little more."""
        flipped = sigmas.flip(0)
        if len(flipped) and flipped[0] == 0:
            flipped[0] = LEAST_START
        return (flipped,)


class SetFirstSigma:
    """Sigmas that begin at another level."""

    RETURN_TYPES = ("SIGMAS",)
    FUNCTION = "set_first_sigma"
    CATEGORY = CATEGORY

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        sigma = ("FLOAT", {"default": 136.0, "min": 0.0, "max": 20000.0, "step": 0.001, "round": False})
        return {"required": {"sigmas": ("SIGMAS",), "sigma": sigma}}

    def set_first_sigma(self, sigmas: Tensor, sigma: float) -> tuple[Tensor]:
        """Return the sigmas with the first one set. Errors: NodeError if there is none."""
        if not len(sigmas):
            raise NodeError("sigmas is empty, so it has no first level to set")
        changed = sigmas.clone()
        changed[0] = sigma
        return (changed,)


class ExtendIntermediateSigmas:
    """Sigmas with further ones between, in a range of levels."""

    RETURN_TYPES = ("SIGMAS",)
    FUNCTION = "extend"
    CATEGORY = CATEGORY

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        level = {"max": 20000.0, "step": 0.01, "round": False}
        return {
            "required": {
                "sigmas": ("SIGMAS",),
                "steps": ("INT", {"default": 2, "min": 1, "max": 100}),
                "start_at_sigma": ("FLOAT", {"default": -1.0, "min": -1.0, **level}),
                "end_at_sigma": ("FLOAT", {"default": 12.0, "min": 0.0, **level}),
                "spacing": (list(SPACINGS),),
            }
        }

    def extend(
        self, sigmas: Tensor, steps: int, start_at_sigma: float, end_at_sigma: float, spacing: str
    ) -> tuple[Tensor]:
        """Return the sigmas with each step in the range made into several; a start below 0 is above every level."""
        highest = inf if start_at_sigma < 0 else start_at_sigma
        return (extended(sigmas, steps, highest, end_at_sigma, spacing),)


class SamplingPercentToSigma:
    """The level at a share of a model's timesteps."""

    RETURN_TYPES = ("FLOAT",)
    RETURN_NAMES = ("sigma_value",)
    FUNCTION = "get_sigma"
    CATEGORY = CATEGORY

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        tooltip = "The model's own highest and lowest level at 0.0 and 1.0, not the bounds that ranges are checked by."
        return {
            "required": {
                "model": ("MODEL",),
                "sampling_percent": ("FLOAT", {"default": 0.0, "min": 0.0, "max": 1.0, "step": 0.0001}),
                "return_actual_sigma": ("BOOLEAN", {"default": False, "tooltip": tooltip}),
            },
            "hidden": {"runtime": "RUNTIME"},
        }

    async def get_sigma(
        self, model: Recipe, sampling_percent: float, return_actual_sigma: bool, runtime: Runtime
    ) -> tuple[float]:
        """Return the level; at the ends, what bounds all levels unless the model's own are asked for."""
        levels = await runtime.levels(model)
        if return_actual_sigma and sampling_percent in (0.0, 1.0):
            return (levels.sigma_max if sampling_percent == 0.0 else levels.sigma_min,)
        return (min(levels.at_progress(sampling_percent), ABOVE_ALL),)


class ManualSigmas:
    """Sigmas as they are written."""

    RETURN_TYPES = ("SIGMAS",)
    FUNCTION = "read"
    CATEGORY = "model/sampling/sigmas"
    EXPERIMENTAL = True

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        return {"required": {"sigmas": ("STRING", {"default": "1, 0.5", "multiline": False})}}

    def read(self, sigmas: str) -> tuple[Tensor]:
        """Return the numbers of the text, whatever stands between them; none, with which no step is made, of others."""
        return (tensor([float(number) for number in re.findall(r"[-+]?(?:\d*\.)?\d+", sigmas)]),)


_NODES = (
    SplitSigmas,
    SplitSigmasDenoise,
    FlipSigmas,
    SetFirstSigma,
    ExtendIntermediateSigmas,
    SamplingPercentToSigma,
    ManualSigmas,
)

NODE_CLASS_MAPPINGS: Mapping[str, type] = {node.__name__: node for node in _NODES}

NODE_DISPLAY_NAME_MAPPINGS: Mapping[str, str] = {}
