"""The nodes that make SAMPLER: one of KSampler's by name, or one with its options.

Where ComfyUI lets a node draw noise on the GPU, all noise is drawn on the CPU here.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from copy import deepcopy
from typing import Any, TypeAlias

from serve_app.execution.runtime import Runtime
from serve_app.recipe import Recipe
from serve_app.sampling.samplers.samplers import SAMPLERS
from serve_app.values import SamplerChoice

CATEGORY = "model/sampling/samplers"

Make: TypeAlias = Callable[..., SamplerChoice]
"""Takes a node's inputs, by name."""


def _sampler_node(doc: str, make: Make, inputs: Mapping[str, Any], **attributes: Any) -> type:
    """Return a node class. attributes: of the class, beside the usual ones."""

    class SamplerNode:
        __doc__ = doc
        RETURN_TYPES = ("SAMPLER",)
        FUNCTION = "get_sampler"
        CATEGORY = CATEGORY

        @classmethod
        def INPUT_TYPES(cls) -> dict[str, Any]:
            return {"required": deepcopy(inputs)}

        def get_sampler(self, **given: Any) -> tuple[SamplerChoice]:
            return (make(**given),)

    for name, value in attributes.items():
        setattr(SamplerNode, name, value)
    return SamplerNode


def _as(sampler: str, **renamed: str) -> Make:
    """Return what takes a node's inputs for the sampler's options. renamed: input -> option, where they differ."""
    return lambda **given: SamplerChoice(
        sampler, {renamed.get(name, name): value for name, value in given.items() if name not in NOISE_DEVICE}
    )


def _number(default: float, most: float = 100.0, **more: Any) -> tuple[str, dict[str, Any]]:
    return ("FLOAT", {"default": default, "min": 0.0, "max": most, "step": 0.01, "round": False, **more})


def _multiplier(default: float, most: float, tooltip: str) -> tuple[str, dict[str, Any]]:
    return ("FLOAT", {"default": default, "min": 0.0, "max": most, "step": 0.01, "tooltip": tooltip})


def _integer(default: int, least: int, most: int) -> tuple[str, dict[str, Any]]:
    return ("INT", {"default": default, "min": least, "max": most})


def _er_sde(solver_type: str, max_stage: int, eta: float, s_noise: float) -> SamplerChoice:
    if solver_type == "ODE" or eta == 0:
        eta, s_noise, solver_type = 0.0, 0.0, "ODE"
    scale = {"power": eta} if solver_type == "ER-SDE" else {"eta": eta}
    return SamplerChoice("er_sde", {"stages": max_stage, "s_noise": s_noise, **scale})


NOISE = {"eta": _number(1.0), "s_noise": _number(1.0)}
NOISE_DEVICE = {"noise_device": (["gpu", "cpu"],)}
SHARE = {"min": 0.0, "max": 1.0, "step": 0.001}
ADAPTIVE = {"rtol": 0.05, "atol": 0.0078, "h_init": 0.05, "pcoeff": 0.0, "icoeff": 1.0, "dcoeff": 0.0}
"""The defaults of a step size that the error chooses."""


class SamplerSASolver:
    """SA-Solver, with noise between two shares of the model's timesteps."""

    RETURN_TYPES = ("SAMPLER",)
    FUNCTION = "get_sampler"
    CATEGORY = CATEGORY

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        return {
            "required": {
                "model": ("MODEL",),
                "eta": _number(1.0, 10.0),
                "sde_start_percent": ("FLOAT", {"default": 0.2, **SHARE}),
                "sde_end_percent": ("FLOAT", {"default": 0.8, **SHARE}),
                "s_noise": _number(1.0),
                "predictor_order": _integer(3, 1, 6),
                "corrector_order": _integer(4, 0, 6),
                "use_pece": ("BOOLEAN", {}),
                "simple_order_2": ("BOOLEAN", {}),
            },
            "hidden": {"runtime": "RUNTIME"},
        }

    async def get_sampler(
        self,
        model: Recipe,
        eta: float,
        sde_start_percent: float,
        sde_end_percent: float,
        s_noise: float,
        predictor_order: int,
        corrector_order: int,
        use_pece: bool,
        simple_order_2: bool,
        runtime: Runtime,
    ) -> tuple[SamplerChoice]:
        """Return the sampler. Its interval is of the model's noise levels."""
        levels = await runtime.levels(model)
        options = {
            "interval": (levels.at_progress(sde_start_percent), levels.at_progress(sde_end_percent)),
            "eta": eta,
            "s_noise": s_noise,
            "predictor_order": predictor_order,
            "corrector_order": corrector_order,
            "evaluate_corrected": use_pece,
            "simple_order_2": simple_order_2,
        }
        return (SamplerChoice("sa_solver", options),)


NODE_CLASS_MAPPINGS: Mapping[str, type] = {
    "KSamplerSelect": _sampler_node(
        "One of KSampler's samplers, as it is.",
        lambda sampler_name: SamplerChoice(sampler_name),
        {"sampler_name": (list(SAMPLERS),)},
    ),
    "SamplerEulerAncestral": _sampler_node("Euler's ancestral sampler.", _as("euler_ancestral"), NOISE),
    "SamplerEulerAncestralCFGPP": _sampler_node(
        "Euler's ancestral sampler, with CFG++.",
        _as("euler_ancestral_cfg_pp"),
        {"eta": _number(1.0, 1.0), "s_noise": _number(1.0, 10.0)},
    ),
    "SamplerLMS": _sampler_node("Linear multistep, of any order.", _as("lms"), {"order": _integer(4, 1, 100)}),
    "SamplerDPMPP_3M_SDE": _sampler_node("SDE-DPM-Solver++(3M).", _as("dpmpp_3m_sde"), NOISE | NOISE_DEVICE),
    "SamplerDPMPP_2M_SDE": _sampler_node(
        "SDE-DPM-Solver++(2M).",
        _as("dpmpp_2m_sde", solver_type="solver"),
        {"solver_type": (["midpoint", "heun"],), **NOISE, **NOISE_DEVICE},
    ),
    "SamplerDPMPP_SDE": _sampler_node(
        "DPM-Solver++(2S) on the SDE.", _as("dpmpp_sde"), {**NOISE, "r": _number(0.5), **NOISE_DEVICE}
    ),
    "SamplerDPMPP_2S_Ancestral": _sampler_node("DPM-Solver++(2S), ancestral.", _as("dpmpp_2s_ancestral"), NOISE),
    "SamplerDPMAdaptative": _sampler_node(
        "DPM-Solver-12 or -23, in steps that its error chooses.",
        _as("dpm_adaptive", pcoeff="p", icoeff="i", dcoeff="d", accept_safety="safety"),
        {
            "order": _integer(3, 2, 3),
            **{name: _number(default) for name, default in ADAPTIVE.items()},
            "accept_safety": _number(0.81),
            "eta": _number(0.0),
            "s_noise": _number(1.0),
        },
    ),
    "SamplerER_SDE": _sampler_node(
        "ER-SDE-Solver, on its own SDE, the usual one, or the ODE.",
        _er_sde,
        {
            "solver_type": ("COMBO", {"options": ["ER-SDE", "Reverse-time SDE", "ODE"]}),
            "max_stage": _integer(3, 1, 3),
            "eta": _number(1.0, 10.0, tooltip="How much noise there is; 0 makes it the ODE."),
            "s_noise": _number(1.0),
        },
    ),
    "SamplerSASolver": SamplerSASolver,
    "SamplerSEEDS2": _sampler_node(
        "SEEDS-2, and the exponential Heun method, which is phi_2 with r = 1.",
        _as("seeds_2", solver_type="solver"),
        {
            "solver_type": ("COMBO", {"options": ["phi_1", "phi_2"]}),
            **NOISE,
            "r": ("FLOAT", {"default": 0.5, "min": 0.01, "max": 1.0, "step": 0.01, "round": False}),
        },
    ),
    "SamplerLCM": _sampler_node(
        "LCM's sampler, with more or less noise from its first step to its last.",
        _as("lcm", noise_clip_std="clip"),
        {
            "s_noise": _multiplier(1.0, 64.0, "Multiplies the first step's noise; 1 is as the model was trained."),
            "s_noise_end": _multiplier(1.0, 64.0, "Multiplies the last step's noise; the steps between go evenly."),
            "noise_clip_std": _multiplier(0.0, 10.0, "Cuts noise off at so many standard deviations; 0 cuts nothing."),
        },
    ),
    "SamplerEulerCFGpp": _sampler_node(
        "Euler's method with CFG++, in two versions.",
        lambda version: SamplerChoice("euler_cfg_pp", {"alternative": version == "alternative"}),
        {"version": (["regular", "alternative"],)},
        CATEGORY="experimental",
        EXPERIMENTAL=True,
    ),
}

NODE_DISPLAY_NAME_MAPPINGS: Mapping[str, str] = {
    "SamplerEulerAncestralCFGPP": "SamplerEulerAncestralCFG++",
    "SamplerEulerCFGpp": "SamplerEulerCFG++",
}
