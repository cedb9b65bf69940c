"""Workflows that sample a flow, of a network that is one formula, which are compared with ComfyUI's, by name."""

from __future__ import annotations

from typing import Any

from tests.parity.cases import Case
from tests.parity.workflow import Nodes

TEXTS: Nodes = {
    "positive": ("Fixed", {"kind": "text", "seed": 1, "shape": "1,5,8", "extra": "8"}),
    "negative": ("Fixed", {"kind": "text", "seed": 2, "shape": "1,5,8", "extra": "8"}),
    "other": ("Fixed", {"kind": "text", "seed": 3, "shape": "1,5,8", "extra": "8"}),
}
MODEL = {"model": ["model", 0]}
BOTH = {"positive": ["positive", 0], "negative": ["negative", 0]}
LINKS: dict[str, Any] = {**MODEL, **BOTH, "latent_image": ["latent", 0]}


def _latent(*shape: int) -> tuple[str, dict[str, Any]]:
    return ("Fixed", {"kind": "latent", "seed": 7, "shape": ",".join(map(str, shape))})


def _case(kind: str, target: tuple[str, dict[str, Any]], **nodes: tuple[str, dict[str, Any]]) -> Case:
    return Case({**TEXTS, "model": ("FlowModel", {"kind": kind}), "latent": _latent(2, 16, 8, 6), **nodes, "k": target})


def _sampled(sampler: str = "euler", schedule: str = "simple", **changes: Any) -> tuple[str, dict[str, Any]]:
    settings = {"sampler_name": sampler, "scheduler": schedule, "seed": 11, "steps": 4, "cfg": 3.0, "denoise": 1.0}
    return ("KSampler", {**LINKS, **settings, **changes})


def _empty(kind: str, width: int = 64, height: int = 96, **more: Any) -> tuple[str, dict[str, Any]]:
    return (kind, {"width": width, "height": height, "batch_size": 2, **more})


def _patched(*patches: tuple[str, dict[str, Any]], kind: str = "z", **changes: Any) -> Case:
    nodes: Nodes = {}
    model = ["model", 0]
    for i, (name, inputs) in enumerate(patches):
        nodes[f"patch{i}"] = (name, {"model": model, **inputs})
        model = [f"patch{i}", 0]
    latent = _latent(2, 16, 2, 8, 6) if kind == "wan" else _latent(2, 16, 8, 6)
    return _case(kind, _sampled(model=model, **changes), latent=latent, **nodes)


def _half(latent: str, start: int, end: int, *, first: bool) -> tuple[str, dict[str, Any]]:
    settings = {"sampler_name": "dpmpp_2m", "scheduler": "normal", "noise_seed": 12, "steps": 6, "cfg": 2.0}
    window = {"start_at_step": start, "end_at_step": end}
    flags = {"add_noise": "enable", "return_with_leftover_noise": "enable"}
    if not first:
        flags = dict.fromkeys(flags, "disable")
    return ("KSamplerAdvanced", {**LINKS, **settings, **window, **flags, "latent_image": [latent, 0]})


def _masked(kind: str, sampler: str, shape: str, *samples: int, patch: str = "") -> Case:
    nodes: Nodes = {
        "given": _latent(*samples),
        "mask": ("Fixed", {"kind": "soft mask", "seed": 5, "shape": shape}),
        "latent": ("SetLatentNoiseMask", {"samples": ["given", 0], "mask": ["mask", 0]}),
    }
    if patch:
        nodes["patched"] = (patch, {**MODEL, "strength": 1.0})
    model = ["patched", 0] if patch else ["model", 0]
    return _case(kind, _sampled(sampler, "beta", steps=5, model=model), **nodes)


def _positive(kind: str, node: tuple[str, dict[str, Any]], *samples: int, **nodes: tuple[str, dict[str, Any]]) -> Case:
    combined = ("ConditioningCombine", {"conditioning_1": ["positive", 0], "conditioning_2": ["r", 0]})
    target = _sampled(positive=["c", 0])
    return _case(kind, target, latent=_latent(*samples), r=node, c=combined, **nodes)


def _joint(
    target: tuple[str, dict[str, Any]] | None = None,
    video: str = "video",
    audio: str = "audio",
    **nodes: Any,
) -> Case:
    """Return a case on a latent of two parts, of a video and of its sound."""
    parts: Nodes = {
        "video": _latent(2, 4, 3, 4, 6),
        "audio": ("Fixed", {"kind": "latent", "seed": 8, "shape": "2,3,7,5"}),
    }
    joined = ("LTXVConcatAVLatent", {"video_latent": [video, 0], "audio_latent": [audio, 0]})
    return _case("joint", target or _sampled(), **parts, **nodes, latent=joined)


def _joint_masks() -> dict[str, Any]:
    return {
        "video mask": ("Fixed", {"kind": "soft mask", "seed": 5, "shape": "3,64,48"}),
        "audio mask": ("Fixed", {"kind": "soft mask", "seed": 6, "shape": "1,14,5"}),
        "masked": ("SetLatentNoiseMask", {"samples": ["video", 0], "mask": ["video mask", 0]}),
        "masked audio": ("SetLatentNoiseMask", {"samples": ["audio", 0], "mask": ["audio mask", 0]}),
    }


def _replaced(length: int) -> Case:
    """Return a case on a latent whose sound is replaced by one of another length, with a mask."""
    other: Nodes = {
        "other audio": ("Fixed", {"kind": "latent", "seed": 9, "shape": f"2,3,{length},5"}),
        "other masked": ("SetLatentNoiseMask", {"samples": ["other audio", 0], "mask": ["audio mask", 0]}),
        "joined": ("LTXVConcatAVLatent", {"video_latent": ["video", 0], "audio_latent": ["audio", 0]}),
    }
    return _joint(video="joined", audio="other masked", **_joint_masks(), **other)


_OTHER = {"conditioning": ["other", 0]}
_ADVANCED = {name: [name, 0] for name in ("noise", "guider", "sampler", "sigmas")}
_CUSTOM: Nodes = {
    "noise": ("RandomNoise", {"noise_seed": 13}),
    "guider": ("CFGGuider", {**MODEL, **BOTH, "cfg": 2.5}),
    "sampler": ("KSamplerSelect", {"sampler_name": "dpmpp_2m_sde"}),
    "sigmas": ("Flux2Scheduler", {"steps": 5, "width": 768, "height": 512}),
}
_BOTH_NOISES: Nodes = {"noise": ("RandomNoise", {"noise_seed": 14}), "none": ("DisableNoise", {})}

FLOW_CASES: dict[str, Case] = {
    **{f"kinds|{kind}": _case(kind, _sampled(), latent=_empty("EmptySD3LatentImage")) for kind in ("z", "flux", "wan")},
    **{
        f"empty|{kind} {name}": _case(kind, _sampled(denoise=denoise), latent=_empty(name))
        for kind in ("flux", "flux 2", "wan")
        for name, denoise in [("EmptyLatentImage", 1.0), ("EmptySD3LatentImage", 0.6)]
    },
    "empty|flux 2 own": _case("flux 2", _sampled(), latent=_empty("EmptyFlux2LatentImage")),
    "empty|flux 2 half cells": _case("flux 2", _sampled(), latent=_empty("EmptyLatentImage", 72, 88)),
    "empty|layers": _case("wan", _sampled(), latent=_empty("EmptyQwenImageLayeredLatentImage", layers=2)),
    **{
        f"partial|{sampler}": _case("z", _sampled(sampler, "sgm_uniform", denoise=0.6))
        for sampler in ("euler", "euler_ancestral", "dpmpp_2m_sde", "lcm", "uni_pc", "res_multistep", "ddim", "er_sde")
    },
    "partial|in time": _case("wan", _sampled(denoise=0.6), latent=_latent(1, 16, 3, 4, 6)),
    "partial|image in time": _case("wan", _sampled(denoise=0.6)),
    "halves|first": _case("flux", _half("latent", 0, 3, first=True)),
    "halves|both": _case("flux", _half("half", 3, 6, first=False), half=_half("latent", 0, 3, first=True)),
    "halves|no noise": _case("flux", _half("latent", 2, 6, first=False)),
    **{
        f"mask|{sampler}": _masked("z", sampler, "1,64,48", 2, 16, 8, 6)
        for sampler in ("euler", "euler_ancestral", "ddim", "dpmpp_sde", "uni_pc")
    },
    "mask|in time": _masked("wan", "euler", "3,64,48", 1, 16, 3, 8, 6),
    "mask|one in time": _masked("wan", "euler", "1,64,48", 2, 16, 2, 8, 6),
    "mask|differential": _masked("flux", "euler", "1,64,48", 2, 16, 8, 6, patch="DifferentialDiffusion"),
    "patch|rescale": _patched(("RescaleCFG", {"multiplier": 0.6})),
    "patch|rescale in time": _patched(("RescaleCFG", {"multiplier": 0.6}), kind="wan"),
    "patch|zero star in time": _patched(("CFGZeroStar", {}), kind="wan"),
    "patch|norm in time": _patched(("CFGNorm", {"strength": 0.9}), kind="wan"),
    "patch|apg in time": _patched(("APG", {"eta": 0.4, "norm_threshold": 3.0, "momentum": -0.4}), kind="wan"),
    "patch|tangential in time": _patched(("TCFG", {}), kind="wan"),
    "patch|epsilon": _patched(("Epsilon Scaling", {"scaling_factor": 1.02})),
    "patch|renorm truncated": _patched(("RenormCFG", {"cfg_trunc": 0.9, "renorm_cfg": 0.0})),
    "patch|score": _case(
        "z",
        _sampled(model=["patched", 0]),
        # ComfyUI's takes no batches.
        latent=_latent(1, 16, 8, 6),
        patched=("TemporalScoreRescaling", {**MODEL, "tsr_k": 0.8, "tsr_sigma": 1.5}),
    ),
    "patch|override": _patched(("CFGOverride", {"cfg": 1.0, "start_percent": 0.3, "end_percent": 0.9})),
    "patch|LazyCache": _patched(
        ("LazyCache", {"reuse_threshold": 0.6, "start_percent": 0.1, "end_percent": 0.9, "verbose": False}),
        kind="flux",
        steps=12,
    ),
    "patch|aura": _patched(("ModelSamplingAuraFlow", {"shift": 1.73}), kind="flux"),
    "patch|sd3": _patched(("ModelSamplingSD3", {"shift": 5.0}), kind="z"),
    "patch|flux": _patched(
        ("ModelSamplingFlux", {"max_shift": 1.15, "base_shift": 0.5, "width": 640, "height": 832}), kind="z"
    ),
    "conditioning|area": _positive(
        "z",
        ("ConditioningSetAreaPercentage", {**_OTHER, "width": 0.5, "height": 0.7, "x": 0.2, "y": 0.1, "strength": 0.8}),
        *(2, 16, 12, 14),
    ),
    "conditioning|range": _positive(
        "flux", ("ConditioningSetTimestepRange", {**_OTHER, "start": 0.2, "end": 0.7}), *(2, 16, 8, 6)
    ),
    "conditioning|mask in time": _positive(
        "wan",
        ("ConditioningSetMask", {**_OTHER, "mask": ["m", 0], "strength": 0.7, "set_cond_area": "default"}),
        *(1, 16, 2, 8, 6),
        m=("Fixed", {"kind": "mask", "seed": 4, "shape": "1,64,48"}),
    ),
    "custom|flux 2": _case(
        "flux 2",
        ("SamplerCustomAdvanced", {**_ADVANCED, "latent_image": ["latent", 0]}),
        latent=_latent(2, 128, 4, 3),
        **_CUSTOM,
    ),
    **{
        f"noise|{noise} {kind}": _case(
            kind,
            ("AddNoise", {**MODEL, "noise": [noise, 0], "sigmas": ["s", 0], "latent_image": ["latent", 0]}),
            s=("BasicScheduler", {**MODEL, "scheduler": "simple", "steps": 4, "denoise": 0.5}),
            latent=_latent(2, 16, 1, 8, 6) if kind == "wan" else _latent(2, 16, 8, 6),
            **_BOTH_NOISES,
        )
        for noise, kind in [("noise", "flux"), ("none", "flux"), ("noise", "wan")]
    },
    "batch|of one seed": _case(
        "wan",
        _sampled(latent_image=["second", 0]),
        latent=_latent(3, 16, 2, 4, 6),
        second=("LatentFromBatch", {"samples": ["latent", 0], "batch_index": 1, "length": 2}),
    ),
    "latent|upscaled in time": _case(
        "wan",
        (
            "LatentUpscale",
            {"samples": ["latent", 0], "upscale_method": "bilinear", "width": 96, "height": 64, "crop": "center"},
        ),
        latent=_latent(2, 16, 3, 8, 6),
    ),
    "sigmas|ideogram 4": _case(
        "z", ("Ideogram4Scheduler", {"steps": 7, "width": 1536, "height": 1024, "mu": 0.5, "std": 1.5})
    ),
    "sigmas|flux 2 large": _case("z", ("Flux2Scheduler", {"steps": 7, "width": 1536, "height": 1024})),
    **{
        f"sigmas|optimal {kind}": _case(
            "z", ("OptimalStepsScheduler", {"model_type": kind, "steps": steps, "denoise": denoise})
        )
        for kind, steps, denoise in [("FLUX", 20, 1.0), ("Wan", 20, 0.7), ("Chroma", 12, 0.5)]
    },
    "image|kontext": _case(
        "z",
        ("FluxKontextImageScale", {"image": ["image", 0]}),
        image=("Fixed", {"kind": "image", "seed": 6, "shape": "1,23,40,3"}),
    ),
    **{
        f"joint|{sampler}": _joint(_sampled(sampler))
        for sampler in ("euler", "euler_ancestral", "dpmpp_2m_sde", "uni_pc", "res_multistep")
    },
    "joint|partial": _joint(_sampled(denoise=0.6)),
    "joint|one noise": _joint(
        video="same", same=("LatentBatchSeedBehavior", {"samples": ["video", 0], "seed_behavior": "fixed"})
    ),
    "joint|video masked": _joint(_sampled("euler_ancestral"), video="masked", **_joint_masks()),
    "joint|sound masked": _joint(audio="masked audio", **_joint_masks()),
    "joint|both masked": _joint(_sampled("uni_pc"), video="masked", audio="masked audio", **_joint_masks()),
    "joint|video's mask only": _joint(
        _sampled(latent_image=["again", 0]),
        again=("SetLatentNoiseMask", {"samples": ["latent", 0], "mask": ["video mask", 0]}),
        **_joint_masks(),
    ),
    "joint|shorter sound": _replaced(5),
    "joint|longer sound": _replaced(11),
    "joint|rescaled": _joint(_sampled(model=["patched", 0]), patched=("RescaleCFG", {**MODEL, "multiplier": 0.6})),
}
