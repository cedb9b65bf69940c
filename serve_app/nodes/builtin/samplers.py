"""The nodes that make SAMPLER: one of KSampler's by name, or one with its options.

Where ComfyUI lets a node draw noise on the GPU, all noise is drawn on the CPU here.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from serve_app.nodes.runtime import Runtime
from serve_app.sampling.samplers import SAMPLERS
from serve_app.values import Recipe, SamplerChoice

CATEGORY = "sampling/custom_sampling/samplers"


def _number(default: float, most: float = 100.0) -> tuple[str, dict[str, Any]]:
    return ("FLOAT", {"default": default, "min": 0.0, "max": most, "step": 0.01, "round": False})


NOISE_DEVICE = (["gpu", "cpu"],)
SHARE = {"min": 0.0, "max": 1.0, "step": 0.001}


class KSamplerSelect:
    """One of KSampler's samplers."""

    RETURN_TYPES = ("SAMPLER",)
    FUNCTION = "get_sampler"
    CATEGORY = CATEGORY

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        return {"required": {"sampler_name": (list(SAMPLERS),)}}

    def get_sampler(self, sampler_name: str) -> tuple[SamplerChoice]:
        """Return the sampler as it is."""
        return (SamplerChoice(sampler_name),)


class SamplerEulerAncestral:
    """Euler's ancestral sampler."""

    RETURN_TYPES = ("SAMPLER",)
    FUNCTION = "get_sampler"
    CATEGORY = CATEGORY

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        return {"required": {"eta": _number(1.0), "s_noise": _number(1.0)}}

    def get_sampler(self, eta: float, s_noise: float) -> tuple[SamplerChoice]:
        """Return the sampler."""
        return (SamplerChoice("euler_ancestral", {"eta": eta, "s_noise": s_noise}),)


class SamplerEulerAncestralCFGPP:
    """Euler's ancestral sampler, with CFG++."""

    RETURN_TYPES = ("SAMPLER",)
    FUNCTION = "get_sampler"
    CATEGORY = CATEGORY

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        return {"required": {"eta": _number(1.0, 1.0), "s_noise": _number(1.0, 10.0)}}

    def get_sampler(self, eta: float, s_noise: float) -> tuple[SamplerChoice]:
        """Return the sampler."""
        return (SamplerChoice("euler_ancestral_cfg_pp", {"eta": eta, "s_noise": s_noise}),)


class SamplerLMS:
    """Linear multistep, of any order."""

    RETURN_TYPES = ("SAMPLER",)
    FUNCTION = "get_sampler"
    CATEGORY = CATEGORY

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        return {"required": {"order": ("INT", {"default": 4, "min": 1, "max": 100})}}

    def get_sampler(self, order: int) -> tuple[SamplerChoice]:
        """Return the sampler."""
        return (SamplerChoice("lms", {"order": order}),)


class SamplerDPMPP_3M_SDE:
    """SDE-DPM-Solver++(3M)."""

    RETURN_TYPES = ("SAMPLER",)
    FUNCTION = "get_sampler"
    CATEGORY = CATEGORY

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        return {"required": {"eta": _number(1.0), "s_noise": _number(1.0), "noise_device": NOISE_DEVICE}}

    def get_sampler(self, eta: float, s_noise: float, noise_device: str) -> tuple[SamplerChoice]:
        """Return the sampler."""
        return (SamplerChoice("dpmpp_3m_sde", {"eta": eta, "s_noise": s_noise}),)


class SamplerDPMPP_2M_SDE:
    """SDE-DPM-Solver++(2M)."""

    RETURN_TYPES = ("SAMPLER",)
    FUNCTION = "get_sampler"
    CATEGORY = CATEGORY

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        solver = (["midpoint", "heun"],)
        numbers = {"eta": _number(1.0), "s_noise": _number(1.0)}
        return {"required": {"solver_type": solver, **numbers, "noise_device": NOISE_DEVICE}}

    def get_sampler(self, solver_type: str, eta: float, s_noise: float, noise_device: str) -> tuple[SamplerChoice]:
        """Return the sampler."""
        return (SamplerChoice("dpmpp_2m_sde", {"eta": eta, "s_noise": s_noise, "solver": solver_type}),)


class SamplerDPMPP_SDE:
    """DPM-Solver++(2S) on the SDE."""

    RETURN_TYPES = ("SAMPLER",)
    FUNCTION = "get_sampler"
    CATEGORY = CATEGORY

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        numbers = {"eta": _number(1.0), "s_noise": _number(1.0), "r": _number(0.5)}
        return {"required": {**numbers, "noise_device": NOISE_DEVICE}}

    def get_sampler(self, eta: float, s_noise: float, r: float, noise_device: str) -> tuple[SamplerChoice]:
        """Return the sampler."""
        return (SamplerChoice("dpmpp_sde", {"eta": eta, "s_noise": s_noise, "r": r}),)


class SamplerDPMPP_2S_Ancestral:
    """DPM-Solver++(2S), ancestral."""

    RETURN_TYPES = ("SAMPLER",)
    FUNCTION = "get_sampler"
    CATEGORY = CATEGORY

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        return {"required": {"eta": _number(1.0), "s_noise": _number(1.0)}}

    def get_sampler(self, eta: float, s_noise: float) -> tuple[SamplerChoice]:
        """Return the sampler."""
        return (SamplerChoice("dpmpp_2s_ancestral", {"eta": eta, "s_noise": s_noise}),)


class SamplerDPMAdaptative:
    """DPM-Solver-12 or -23, in steps that its error chooses."""

    RETURN_TYPES = ("SAMPLER",)
    FUNCTION = "get_sampler"
    CATEGORY = CATEGORY

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        defaults = {
            "rtol": 0.05,
            "atol": 0.0078,
            "h_init": 0.05,
            "pcoeff": 0.0,
            "icoeff": 1.0,
            "dcoeff": 0.0,
            "accept_safety": 0.81,
            "eta": 0.0,
            "s_noise": 1.0,
        }
        numbers = {name: _number(default) for name, default in defaults.items()}
        return {"required": {"order": ("INT", {"default": 3, "min": 2, "max": 3}), **numbers}}

    def get_sampler(
        self,
        order: int,
        rtol: float,
        atol: float,
        h_init: float,
        pcoeff: float,
        icoeff: float,
        dcoeff: float,
        accept_safety: float,
        eta: float,
        s_noise: float,
    ) -> tuple[SamplerChoice]:
        """Return the sampler."""
        steps = {"order": order, "rtol": rtol, "atol": atol, "h_init": h_init, "safety": accept_safety}
        control = {"p": pcoeff, "i": icoeff, "d": dcoeff}
        return (SamplerChoice("dpm_adaptive", {**steps, **control, "eta": eta, "s_noise": s_noise}),)


class SamplerER_SDE:
    """ER-SDE-Solver, on its own SDE, the usual one, or the ODE."""

    RETURN_TYPES = ("SAMPLER",)
    FUNCTION = "get_sampler"
    CATEGORY = CATEGORY

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        eta = _number(1.0)
        eta[1]["tooltip"] = "How much noise the reverse-time SDE has; 0 makes it the ODE. ER-SDE has its own."
        return {
            "required": {
                "solver_type": ("COMBO", {"options": ["ER-SDE", "Reverse-time SDE", "ODE"]}),
                "max_stage": ("INT", {"default": 3, "min": 1, "max": 3}),
                "eta": eta,
                "s_noise": _number(1.0),
            }
        }

    def get_sampler(self, solver_type: str, max_stage: int, eta: float, s_noise: float) -> tuple[SamplerChoice]:
        """Return the sampler."""
        options: dict[str, Any] = {"stages": max_stage, "s_noise": s_noise}
        if solver_type != "ER-SDE":
            eta = 0.0 if solver_type == "ODE" else eta
            options |= {"eta": eta, "s_noise": s_noise if eta else 0.0}
        return (SamplerChoice("er_sde", options),)


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
                "predictor_order": ("INT", {"default": 3, "min": 1, "max": 6}),
                "corrector_order": ("INT", {"default": 4, "min": 0, "max": 6}),
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
        """Return the sampler, with the levels of this model."""
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


class SamplerEulerCFGpp:
    """Euler's method with CFG++, in two versions."""

    RETURN_TYPES = ("SAMPLER",)
    FUNCTION = "get_sampler"
    CATEGORY = "_for_testing"
    EXPERIMENTAL = True

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        return {"required": {"version": (["regular", "alternative"],)}}

    def get_sampler(self, version: str) -> tuple[SamplerChoice]:
        """Return the sampler."""
        return (SamplerChoice("euler_cfg_pp", {"alternative": version == "alternative"}),)


_NODES = (
    KSamplerSelect,
    SamplerEulerAncestral,
    SamplerEulerAncestralCFGPP,
    SamplerLMS,
    SamplerDPMPP_3M_SDE,
    SamplerDPMPP_2M_SDE,
    SamplerDPMPP_SDE,
    SamplerDPMPP_2S_Ancestral,
    SamplerDPMAdaptative,
    SamplerER_SDE,
    SamplerSASolver,
    SamplerEulerCFGpp,
)

NODE_CLASS_MAPPINGS: Mapping[str, type] = {node.__name__: node for node in _NODES}

NODE_DISPLAY_NAME_MAPPINGS: Mapping[str, str] = {
    "SamplerEulerAncestralCFGPP": "SamplerEulerAncestralCFG++",
    "SamplerEulerCFGpp": "SamplerEulerCFG++",
}
