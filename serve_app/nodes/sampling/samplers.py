"""The nodes that make SAMPLER: one of KSampler's by name, or one with its options.

Where ComfyUI lets a node draw noise on the GPU, all noise is drawn on the CPU here.
"""

from __future__ import annotations

from typing import Annotated, TypeAlias

from serve_app.nodes.declare import node
from serve_app.nodes.inputs import Choice, Float, InputType, Int
from serve_app.nodes.sockets import BOOLEAN, MODEL, RUNTIME, SAMPLER
from serve_app.sampling.samplers.samplers import SAMPLERS
from serve_app.values import SamplerChoice

CATEGORY = "model/sampling/samplers"

Factor: TypeAlias = Annotated[float, Float(1.0, min=0.0, max=100.0, step=0.01, round=False)]
SmallFactor: TypeAlias = Annotated[float, Float(1.0, min=0.0, max=10.0, step=0.01, round=False)]
NoiseDevice: TypeAlias = Annotated[str, Choice(["gpu", "cpu"])]


@node("KSamplerSelect", category=CATEGORY, function="get_sampler")
def ksampler_select(sampler_name: Annotated[str, Choice(SAMPLERS)]) -> SAMPLER:
    """One of KSampler's samplers, as it is."""
    return SamplerChoice(sampler_name)


@node("SamplerEulerAncestral", category=CATEGORY, function="get_sampler")
def sampler_euler_ancestral(eta: Factor, s_noise: Factor) -> SAMPLER:
    """Euler's ancestral sampler."""
    return SamplerChoice("euler_ancestral", {"eta": eta, "s_noise": s_noise})


@node("SamplerEulerAncestralCFGPP", "SamplerEulerAncestralCFG++", category=CATEGORY, function="get_sampler")
def sampler_euler_ancestral_cfgpp(
    eta: Annotated[float, Float(1.0, min=0.0, max=1.0, step=0.01, round=False)], s_noise: SmallFactor
) -> SAMPLER:
    """Euler's ancestral sampler, with CFG++."""
    return SamplerChoice("euler_ancestral_cfg_pp", {"eta": eta, "s_noise": s_noise})


@node("SamplerLMS", category=CATEGORY, function="get_sampler")
def sampler_lms(order: Annotated[int, Int(4, min=1, max=100)]) -> SAMPLER:
    """Linear multistep, of any order."""
    return SamplerChoice("lms", {"order": order})


@node("SamplerDPMPP_3M_SDE", category=CATEGORY, function="get_sampler")
def sampler_dpmpp_3m_sde(eta: Factor, s_noise: Factor, noise_device: NoiseDevice) -> SAMPLER:
    """SDE-DPM-Solver++(3M)."""
    return SamplerChoice("dpmpp_3m_sde", {"eta": eta, "s_noise": s_noise})


@node("SamplerDPMPP_2M_SDE", category=CATEGORY, function="get_sampler")
def sampler_dpmpp_2m_sde(
    solver_type: Annotated[str, Choice(["midpoint", "heun"])], eta: Factor, s_noise: Factor, noise_device: NoiseDevice
) -> SAMPLER:
    """SDE-DPM-Solver++(2M)."""
    return SamplerChoice("dpmpp_2m_sde", {"solver": solver_type, "eta": eta, "s_noise": s_noise})


@node("SamplerDPMPP_SDE", category=CATEGORY, function="get_sampler")
def sampler_dpmpp_sde(
    eta: Factor,
    s_noise: Factor,
    r: Annotated[float, Float(0.5, min=0.0, max=100.0, step=0.01, round=False)],
    noise_device: NoiseDevice,
) -> SAMPLER:
    """DPM-Solver++(2S) on the SDE."""
    return SamplerChoice("dpmpp_sde", {"eta": eta, "s_noise": s_noise, "r": r})


@node("SamplerDPMPP_2S_Ancestral", category=CATEGORY, function="get_sampler")
def sampler_dpmpp_2s_ancestral(eta: Factor, s_noise: Factor) -> SAMPLER:
    """DPM-Solver++(2S), ancestral."""
    return SamplerChoice("dpmpp_2s_ancestral", {"eta": eta, "s_noise": s_noise})


@node("SamplerDPMAdaptative", category=CATEGORY, function="get_sampler")
def sampler_dpm_adaptative(
    order: Annotated[int, Int(3, min=2, max=3)],
    rtol: Annotated[float, Float(0.05, min=0.0, max=100.0, step=0.01, round=False)],
    atol: Annotated[float, Float(0.0078, min=0.0, max=100.0, step=0.01, round=False)],
    h_init: Annotated[float, Float(0.05, min=0.0, max=100.0, step=0.01, round=False)],
    pcoeff: Annotated[float, Float(0.0, min=0.0, max=100.0, step=0.01, round=False)],
    icoeff: Factor,
    dcoeff: Annotated[float, Float(0.0, min=0.0, max=100.0, step=0.01, round=False)],
    accept_safety: Annotated[float, Float(0.81, min=0.0, max=100.0, step=0.01, round=False)],
    eta: Annotated[float, Float(0.0, min=0.0, max=100.0, step=0.01, round=False)],
    s_noise: Factor,
) -> SAMPLER:
    """DPM-Solver-12 or -23, in steps that its error chooses."""
    return SamplerChoice(
        "dpm_adaptive",
        {
            "order": order,
            "rtol": rtol,
            "atol": atol,
            "h_init": h_init,
            "p": pcoeff,
            "i": icoeff,
            "d": dcoeff,
            "safety": accept_safety,
            "eta": eta,
            "s_noise": s_noise,
        },
    )


@node("SamplerER_SDE", category=CATEGORY, function="get_sampler")
def sampler_er_sde(
    solver_type: Annotated[str, InputType("COMBO", {"options": ["ER-SDE", "Reverse-time SDE", "ODE"]})],
    max_stage: Annotated[int, Int(3, min=1, max=3)],
    eta: Annotated[
        float,
        Float(1.0, min=0.0, max=10.0, step=0.01, round=False, tooltip="How much noise there is; 0 makes it the ODE."),
    ],
    s_noise: Factor,
) -> SAMPLER:
    """ER-SDE-Solver, on its own SDE, the usual one, or the ODE."""
    if solver_type == "ODE" or eta == 0:
        eta, s_noise, solver_type = 0.0, 0.0, "ODE"
    scale = {"power": eta} if solver_type == "ER-SDE" else {"eta": eta}
    return SamplerChoice("er_sde", {"stages": max_stage, "s_noise": s_noise, **scale})


@node("SamplerSASolver", category=CATEGORY, function="get_sampler")
async def sampler_sa_solver(
    model: MODEL,
    eta: SmallFactor,
    sde_start_percent: Annotated[float, Float(0.2, min=0.0, max=1.0, step=0.001)],
    sde_end_percent: Annotated[float, Float(0.8, min=0.0, max=1.0, step=0.001)],
    s_noise: Factor,
    predictor_order: Annotated[int, Int(3, min=1, max=6)],
    corrector_order: Annotated[int, Int(4, min=0, max=6)],
    use_pece: BOOLEAN,
    simple_order_2: BOOLEAN,
    runtime: RUNTIME,
) -> SAMPLER:
    """SA-Solver, with noise between two shares of the model's timesteps.

    Return the sampler. Its interval is of the model's noise levels.
    """
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
    return SamplerChoice("sa_solver", options)


@node("SamplerSEEDS2", category=CATEGORY, function="get_sampler")
def sampler_seeds2(
    solver_type: Annotated[str, InputType("COMBO", {"options": ["phi_1", "phi_2"]})],
    eta: Factor,
    s_noise: Factor,
    r: Annotated[float, Float(0.5, min=0.01, max=1.0, step=0.01, round=False)],
) -> SAMPLER:
    """SEEDS-2, and the exponential Heun method, which is phi_2 with r = 1."""
    return SamplerChoice("seeds_2", {"solver": solver_type, "eta": eta, "s_noise": s_noise, "r": r})


@node("SamplerLCM", category=CATEGORY, function="get_sampler")
def sampler_lcm(
    s_noise: Annotated[
        float,
        Float(
            1.0,
            min=0.0,
            max=64.0,
            step=0.01,
            tooltip="Multiplies the first step's noise; 1 is as the model was trained.",
        ),
    ],
    s_noise_end: Annotated[
        float,
        Float(
            1.0, min=0.0, max=64.0, step=0.01, tooltip="Multiplies the last step's noise; the steps between go evenly."
        ),
    ],
    noise_clip_std: Annotated[
        float,
        Float(
            0.0, min=0.0, max=10.0, step=0.01, tooltip="Cuts noise off at so many standard deviations; 0 cuts nothing."
        ),
    ],
) -> SAMPLER:
    """LCM's sampler, with more or less noise from its first step to its last."""
    return SamplerChoice("lcm", {"s_noise": s_noise, "s_noise_end": s_noise_end, "clip": noise_clip_std})


@node("SamplerEulerCFGpp", "SamplerEulerCFG++", category="experimental", function="get_sampler", experimental=True)
def sampler_euler_cfgpp(version: Annotated[str, Choice(["regular", "alternative"])]) -> SAMPLER:
    """Euler's method with CFG++, in two versions."""
    return SamplerChoice("euler_cfg_pp", {"alternative": version == "alternative"})
