"""Workflows of conditioning, custom sampling, guiders and model patches that are compared with ComfyUI's, by name."""

from __future__ import annotations

from typing import Any

from tests.parity.cases import MINI15, Case, sampled
from tests.parity.workflow import Nodes

BOTH = {"positive": ["positive", 0], "negative": ["negative", 0]}
ENDS = {"sigma_max": 14.614642, "sigma_min": 0.0291675}
MODEL = {"model": ["checkpoint", 0]}


def _sigmas(kind: str, **inputs: Any) -> Case:
    needs_model = kind in ("BasicScheduler", "SDTurboScheduler", "BetaSamplingScheduler")
    return Case({**MINI15, "k": (kind, {**(MODEL if needs_model else {}), **inputs})})


def _changed(kind: str, **inputs: Any) -> Case:
    karras = ("KarrasScheduler", {"steps": 8, **ENDS, "rho": 7.0})
    return Case({"s": karras, "k": (kind, {"sigmas": ["s", 0], **inputs})})


def _patched(*patches: tuple[str, dict[str, Any]], **changes: Any) -> Case:
    nodes, model = dict(MINI15), ["checkpoint", 0]
    for i, (kind, inputs) in enumerate(patches):
        nodes[f"patch{i}"] = (kind, {"model": model, **inputs})
        model = [f"patch{i}", 0]
    settings = {"sampler": "euler", "schedule": "karras", "seed": 71, **changes}
    return Case({**nodes, "k": sampled(**settings, model=model)})


def _guided(guider: tuple[str, dict[str, Any]], *, sampler: str = "euler", **more: tuple[str, dict[str, Any]]) -> Case:
    nodes: Nodes = {
        **MINI15,
        "empty": ("CLIPTextEncode", {"text": "", "clip": ["checkpoint", 1]}),
        "noise": ("RandomNoise", {"noise_seed": 72}),
        "sampler": ("KSamplerSelect", {"sampler_name": sampler}),
        "sigmas": ("KarrasScheduler", {"steps": 4, **ENDS, "rho": 7.0}),
        "guider": (guider[0], {**MODEL, **guider[1]}),
        **more,
    }
    links = {name: [name, 0] for name in ("noise", "guider", "sampler", "sigmas")}
    k = ("SamplerCustomAdvanced", {**links, "latent_image": ["latent", 0]})
    return Case({**nodes, "k": k})


def _conditioned(kind: str, **inputs: Any) -> Case:
    region = (kind, {"conditioning": ["negative", 0], **inputs})
    combined = ("ConditioningCombine", {"conditioning_1": ["positive", 0], "conditioning_2": ["r", 0]})
    k = sampled("euler", "karras", seed=73, positive=["c", 0])
    return Case({**MINI15, "r": region, "c": combined, "k": k})


_DUAL = {"cond1": ["positive", 0], "cond2": ["empty", 0], "negative": ["negative", 0]}
_PERP = {**BOTH, "empty_conditioning": ["empty", 0]}
_MASK: Nodes = {
    "mask": ("SolidMask", {"value": 0.6, "width": 64, "height": 64}),
    "hole": ("SolidMask", {"value": 0.2, "width": 24, "height": 40}),
    "shades": (
        "MaskComposite",
        {"destination": ["mask", 0], "source": ["hole", 0], "x": 8, "y": 8, "operation": "subtract"},
    ),
    "masked": ("SetLatentNoiseMask", {"samples": ["latent", 0], "mask": ["shades", 0]}),
}


def _differential(strength: float) -> Case:
    case = _patched(("DifferentialDiffusion", {"strength": strength}), steps=6, latent_image=["masked", 0])
    return Case({**case.nodes, **_MASK})


_DEFAULT = {"cond": ["r", 0], "cond_DEFAULT": ["negative", 0]}

CUSTOM: dict[str, Case] = {
    "sigmas|basic": _sigmas("BasicScheduler", scheduler="sgm_uniform", steps=6, denoise=0.7),
    "sigmas|basic none": _sigmas("BasicScheduler", scheduler="beta", steps=6, denoise=1.0),
    "sigmas|karras": _sigmas("KarrasScheduler", steps=9, sigma_max=20.0, sigma_min=0.1, rho=5.0),
    "sigmas|exponential": _sigmas("ExponentialScheduler", steps=9, **ENDS),
    "sigmas|polyexponential": _sigmas("PolyexponentialScheduler", steps=9, **ENDS, rho=1.7),
    "sigmas|laplace": _sigmas("LaplaceScheduler", steps=9, **ENDS, mu=0.3, beta=0.8),
    "sigmas|vp": _sigmas("VPScheduler", steps=9, beta_d=19.0, beta_min=0.2, eps_s=0.002),
    "sigmas|turbo": _sigmas("SDTurboScheduler", steps=3, denoise=0.8),
    "sigmas|beta": _sigmas("BetaSamplingScheduler", steps=9, alpha=0.5, beta=0.8),
    "sigmas|ays": _sigmas("AlignYourStepsScheduler", model_type="SD1", steps=10, denoise=1.0),
    "sigmas|ays xl": _sigmas("AlignYourStepsScheduler", model_type="SDXL", steps=17, denoise=0.6),
    "sigmas|ays svd": _sigmas("AlignYourStepsScheduler", model_type="SVD", steps=4, denoise=1.0),
    **{
        f"sigmas|gits {coeff} {steps}": _sigmas("GITSScheduler", coeff=coeff, steps=steps, denoise=denoise)
        for coeff, steps, denoise in [(0.8, 2, 1.0), (1.05, 13, 0.5), (1.2, 10, 1.0), (1.5, 20, 1.0), (1.35, 33, 0.8)]
    },
    "sigmas|split": _changed("SplitSigmas", step=3),
    "sigmas|split denoise": _changed("SplitSigmasDenoise", denoise=0.4),
    "sigmas|flip": _changed("FlipSigmas"),
    "sigmas|first": _changed("SetFirstSigma", sigma=80.0),
    **{
        f"sigmas|extend {spacing}": _changed(
            "ExtendIntermediateSigmas", steps=3, start_at_sigma=start, end_at_sigma=1.0, spacing=spacing
        )
        for spacing, start in [("linear", -1.0), ("cosine", 8.0), ("sine", 12.0)]
    },
    "guider|basic": _guided(("BasicGuider", {"conditioning": ["positive", 0]})),
    "guider|basic cfg++": _guided(("BasicGuider", {"conditioning": ["positive", 0]}), sampler="euler_cfg_pp"),
    "guider|cfg": _guided(("CFGGuider", {**BOTH, "cfg": 4.0})),
    **{
        f"guider|dual {style} {cfg} {middle} {sampler}": _guided(
            ("DualCFGGuider", {**_DUAL, "cfg_conds": cfg, "cfg_cond2_negative": middle, "style": style}),
            sampler=sampler,
        )
        for style, cfg, middle, sampler in [
            ("regular", 4.0, 3.0, "euler"),
            ("regular", 1.0, 1.0, "euler"),
            ("regular", 3.0, 1.0, "euler_cfg_pp"),
            ("nested", 4.0, 2.0, "euler"),
            ("nested", 4.0, 2.0, "euler_cfg_pp"),
        ]
    },
    **{
        f"guider|perp {cfg} {scale} {sampler}": _guided(
            ("PerpNegGuider", {**_PERP, "cfg": cfg, "neg_scale": scale}), sampler=sampler
        )
        for cfg, scale, sampler in [(4.0, 1.5, "euler"), (4.0, 0.0, "euler"), (3.0, 0.8, "euler_cfg_pp")]
    },
    "guider|no noise": _guided(
        ("CFGGuider", {**BOTH, "cfg": 3.0}), noise=("DisableNoise", {}), sampler="euler_ancestral"
    ),
    "noise|added": Case(
        {
            **MINI15,
            "noise": ("RandomNoise", {"noise_seed": 5}),
            "s": ("KarrasScheduler", {"steps": 4, **ENDS, "rho": 7.0}),
            "k": (
                "AddNoise",
                {**MODEL, "noise": ["noise", 0], "sigmas": ["s", 0], "latent_image": ["latent", 0]},
            ),
        }
    ),
    "conditioning|default": Case(
        {
            **MINI15,
            "r": (
                "ConditioningSetArea",
                {"conditioning": ["positive", 0], "width": 64, "height": 64, "x": 16, "y": 0, "strength": 0.7},
            ),
            "c": ("ConditioningSetDefaultCombine", _DEFAULT),
            "k": sampled("euler", "karras", seed=74, positive=["c", 0]),
        }
    ),
    "conditioning|percentage": _conditioned(
        "ConditioningSetAreaPercentage", width=0.4, height=0.9, x=0.3, y=0.25, strength=1.3
    ),
    "conditioning|zero": _conditioned("ConditioningZeroOut"),
    "conditioning|strength": _conditioned("ConditioningSetAreaStrength", strength=0.4),
    "patch|rescale": _patched(("RescaleCFG", {"multiplier": 0.6})),
    "patch|zero star": _patched(("CFGZeroStar", {})),
    "patch|norm": _patched(("CFGNorm", {"strength": 0.9})),
    "patch|tangential": _patched(("TCFG", {})),
    "patch|apg": _patched(("APG", {"eta": 0.4, "norm_threshold": 3.0, "momentum": -0.4})),
    "patch|fresca": _patched(("FreSca", {"scale_low": 0.9, "scale_high": 1.4, "freq_cutoff": 2})),
    "patch|mahiro": _patched(("Mahiro", {})),
    "patch|epsilon": _patched(("Epsilon Scaling", {"scaling_factor": 1.02})),
    "patch|several": _patched(
        ("TCFG", {}),
        ("RescaleCFG", {"multiplier": 0.3}),
        ("CFGNorm", {"strength": 1.0}),
        ("Epsilon Scaling", {"scaling_factor": 0.98}),
    ),
    "patch|operation": Case(
        {
            "op": ("LatentOperationTonemapReinhard", {"multiplier": 0.8}),
            **_patched(("LatentApplyOperationCFG", {"operation": ["op", 0]})).nodes,
        }
    ),
    "patch|tangential cfg++": _patched(("TCFG", {}), sampler="euler_cfg_pp", cfg=1.5),
    "patch|apg at 1": _patched(("APG", {"eta": 0.4, "norm_threshold": 0.0, "momentum": 0.5}), cfg=1.0),
    "patch|freeu": _patched(("FreeU", {"b1": 1.1, "b2": 1.2, "s1": 0.9, "s2": 0.2})),
    "patch|freeu 2": _patched(("FreeU_V2", {"b1": 1.3, "b2": 1.4, "s1": 0.9, "s2": 0.2})),
    "patch|differential": _differential(1.0),
    "patch|differential half": _differential(0.5),
}
