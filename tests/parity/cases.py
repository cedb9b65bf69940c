"""Workflows on mini15 that are compared with ComfyUI's, by name: group|what makes it differ."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from tests.parity.workflow import EMPTY, LINKS, Nodes, models


@dataclass(frozen=True, slots=True)
class Case:
    """A workflow and what is compared of it: the first output of its target."""

    nodes: Nodes
    target: str = "k"

    def as_json(self) -> dict[str, Any]:
        """Return it for the other side."""
        nodes = {name: {"class_type": kind, "inputs": inputs} for name, (kind, inputs) in self.nodes.items()}
        return {"nodes": nodes, "target": self.target, "slot": 0}


def sampled(sampler: str, schedule: str, seed: int, steps: int = 4, **changes: Any) -> tuple[str, dict[str, Any]]:
    """Return a KSampler of cfg 5 connected to the usual nodes."""
    settings = {
        "sampler_name": sampler,
        "scheduler": schedule,
        "seed": seed,
        "steps": steps,
        "cfg": 5.0,
        "denoise": 1.0,
    }
    return ("KSampler", {**LINKS, **settings, **changes})


MINI15 = {**models("mini15"), **EMPTY}


def case(sampler: tuple[str, dict[str, Any]] | None = None, **nodes: tuple[str, dict[str, Any]]) -> Case:
    """Return the usual workflow with some nodes added or put in place of others."""
    return Case({**MINI15, **nodes, "k": sampler or sampled("euler", "karras", seed=7)})


def conditioned(**nodes: tuple[str, dict[str, Any]]) -> Case:
    """Return a workflow whose positive conditioning is the node `c`'s."""
    return case(sampled("euler", "karras", seed=7, positive=["c", 0]), **nodes)


def patched(class_type: str, sampler: str = "euler", schedule: str = "karras", **inputs: Any) -> Case:
    """Return a workflow whose model goes through one node."""
    return case(
        sampled(sampler, schedule, seed=7, model=["m", 0]), m=(class_type, {"model": ["checkpoint", 0], **inputs})
    )


def custom(sampler: tuple[str, dict[str, Any]], schedule: tuple[str, dict[str, Any]], **changes: Any) -> Case:
    """Return a SamplerCustom with a sampler node and a schedule node."""
    inputs = {**LINKS, "add_noise": True, "noise_seed": 8, "cfg": 5.0, "sampler": ["s", 0], "sigmas": ["g", 0]}
    return Case({**MINI15, "s": sampler, "g": schedule, "k": ("SamplerCustom", {**inputs, **changes})})


EULER = ("KSamplerSelect", {"sampler_name": "euler"})
KARRAS = ("KarrasScheduler", {"steps": 4, "sigma_max": 14.614642, "sigma_min": 0.0291675, "rho": 7.0})
HINT = ("Fixed", {"kind": "image", "seed": 5, "shape": "1, 64, 64, 3"})
CONTROL_NET = ("ControlNetLoader", {"control_net_name": "controlnet.safetensors"})
WIDE = ("EmptyLatentImage", {"width": 128, "height": 128, "batch_size": 1})
MASK = ("Fixed", {"kind": "mask", "seed": 6, "shape": "1, 64, 64"})
IMAGE = ("Fixed", {"kind": "image", "seed": 13, "shape": "1, 64, 64, 3"})
PICTURE = ("Fixed", {"kind": "latent", "seed": 11, "shape": "1, 4, 8, 8"})


def fixed_latent(*shape: int) -> tuple[str, dict[str, Any]]:
    """Return latents that both sides are given."""
    return ("Fixed", {"kind": "latent", "seed": 12, "shape": ", ".join(map(str, shape))})


def _combined(node: tuple[str, dict[str, Any]], **more: tuple[str, dict[str, Any]]) -> Case:
    combine = ("ConditioningCombine", {"conditioning_1": ["positive", 0], "conditioning_2": ["a", 0]})
    return conditioned(a=node, c=combine, **more)


def _area(width: int, height: int, x: int, y: int, strength: float) -> tuple[str, dict[str, Any]]:
    return (
        "ConditioningSetArea",
        {"conditioning": ["negative", 0], "width": width, "height": height, "x": x, "y": y, "strength": strength},
    )


def _masked(bounds: str) -> tuple[str, dict[str, Any]]:
    return (
        "ConditioningSetMask",
        {"conditioning": ["negative", 0], "mask": ["mask", 0], "strength": 0.7, "set_cond_area": bounds},
    )


def _range(start: float, end: float, conditioning: str = "positive") -> tuple[str, dict[str, Any]]:
    return ("ConditioningSetTimestepRange", {"conditioning": [conditioning, 0], "start": start, "end": end})


def _lora(
    model: float, clip: float, of: Any = ("checkpoint", 0), text: Any = ("checkpoint", 1)
) -> tuple[str, dict[str, Any]]:
    strengths = {"lora_name": "lora.safetensors", "strength_model": model, "strength_clip": clip}
    return ("LoraLoader", {"model": list(of), "clip": list(text), **strengths})


def _controlled(positive: str, negative: str, strength: float, start: float, end: float) -> tuple[str, dict[str, Any]]:
    links = {"positive": [positive, 0], "negative": [negative, 0], "control_net": ["net", 0], "image": ["hint", 0]}
    return ("ControlNetApplyAdvanced", {**links, "strength": strength, "start_percent": start, "end_percent": end})


def _split(half: int, **changes: Any) -> Case:
    whole = custom(EULER, ("SplitSigmas", {"sigmas": ["whole", 0], "step": 2}), sigmas=["g", half], **changes)
    return Case({**whole.nodes, "whole": KARRAS, "given": fixed_latent(1, 4, 8, 8)})


def _flipped() -> Case:
    changes = {"add_noise": False, "cfg": 1.0, "latent_image": ["given", 0]}
    flipped = custom(EULER, ("FlipSigmas", {"sigmas": ["whole", 0]}), **changes)
    return Case({**flipped.nodes, "whole": KARRAS, "given": fixed_latent(1, 4, 8, 8)})


CASES: dict[str, Case] = {
    "conditioning|area": _combined(_area(80, 64, 16, 8, 0.8), latent=WIDE),
    "conditioning|area over the edge": _combined(_area(96, 80, 56, 72, 1.5), latent=WIDE),
    "conditioning|area alone": conditioned(c=_area(64, 72, 24, 32, 1.0), latent=WIDE),
    "conditioning|mask": _combined(_masked("default"), mask=MASK),
    "conditioning|mask bounds": _combined(_masked("mask bounds"), mask=MASK),
    "conditioning|range": _combined(_range(0.2, 0.7, "negative")),
    "conditioning|a range that leaves a gap": conditioned(c=_range(0.3, 0.8)),
    "conditioning|average": conditioned(
        c=(
            "ConditioningAverage",
            {"conditioning_to": ["positive", 0], "conditioning_from": ["negative", 0], "conditioning_to_strength": 0.3},
        )
    ),
    "conditioning|concat": conditioned(
        c=("ConditioningConcat", {"conditioning_to": ["positive", 0], "conditioning_from": ["negative", 0]})
    ),
    "clip|skip 3": conditioned(
        skip=("CLIPSetLastLayer", {"clip": ["checkpoint", 1], "stop_at_clip_layer": -3}),
        c=("CLIPTextEncode", {"text": "a (red:1.3) [house], \\(old\\)", "clip": ["skip", 0]}),
    ),
    "clip|long text": conditioned(
        c=("CLIPTextEncode", {"text": "a very long story about a house, " * 20, "clip": ["checkpoint", 1]})
    ),
    "latent|batch of three": case(
        sampled("dpmpp_2m_sde", "karras", seed=7),
        latent=("EmptyLatentImage", {"width": 64, "height": 64, "batch_size": 3}),
    ),
    "latent|not square": case(latent=("EmptyLatentImage", {"width": 104, "height": 72, "batch_size": 2})),
    "latent|partial denoise": case(sampled("euler", "normal", seed=7, denoise=0.6), latent=PICTURE),
    "latent|mask": case(
        sampled("euler_ancestral", "normal", seed=7, denoise=0.8, latent_image=["masked", 0]),
        latent=PICTURE,
        mask=MASK,
        masked=("SetLatentNoiseMask", {"samples": ["latent", 0], "mask": ["mask", 0]}),
    ),
    "latent|one of a batch": case(
        sampled("euler", "normal", seed=7, latent_image=["one", 0]),
        latent=("EmptyLatentImage", {"width": 64, "height": 64, "batch_size": 4}),
        one=("LatentFromBatch", {"samples": ["latent", 0], "batch_index": 2, "length": 1}),
    ),
    "lora|both parts": case(
        sampled("euler", "karras", seed=7, model=["lora", 0], positive=["c", 0]),
        lora=_lora(0.8, 0.6),
        c=("CLIPTextEncode", {"text": "a house", "clip": ["lora", 1]}),
    ),
    "lora|twice, once negative": case(
        sampled("euler", "karras", seed=7, model=["again", 0], positive=["c", 0]),
        lora=_lora(0.7, 0.5),
        again=_lora(-0.4, -0.3, ["lora", 0], ["lora", 1]),
        c=("CLIPTextEncode", {"text": "a house", "clip": ["again", 1]}),
    ),
    "control|both": case(
        sampled("euler", "karras", seed=7, positive=["c", 0], negative=["c", 1]),
        hint=HINT,
        net=CONTROL_NET,
        c=_controlled("positive", "negative", 0.7, 0.0, 0.8),
    ),
    "control|chain": case(
        sampled("dpmpp_2m", "karras", seed=7, positive=["d", 0], negative=["d", 1]),
        hint=HINT,
        net=CONTROL_NET,
        c=_controlled("positive", "negative", 0.5, 0.1, 1.0),
        d=(
            "ControlNetApplyAdvanced",
            {**_controlled("positive", "negative", 0.6, 0.0, 0.5)[1], "positive": ["c", 0], "negative": ["c", 1]},
        ),
    ),
    "control|simple, on a batch": case(
        sampled("euler", "karras", seed=7, positive=["c", 0]),
        hint=HINT,
        net=CONTROL_NET,
        latent=("EmptyLatentImage", {"width": 72, "height": 56, "batch_size": 2}),
        c=(
            "ControlNetApply",
            {"conditioning": ["positive", 0], "control_net": ["net", 0], "image": ["hint", 0], "strength": 0.9},
        ),
    ),
    "training|v": patched("ModelSamplingDiscrete", sampling="v_prediction", zsnr=False),
    "training|x0": patched("ModelSamplingDiscrete", sampling="x0", zsnr=False),
    "training|lcm": patched("ModelSamplingDiscrete", "lcm", "sgm_uniform", sampling="lcm", zsnr=False),
    "training|v, zero terminal SNR": patched(
        "ModelSamplingDiscrete", "euler", "normal", sampling="v_prediction", zsnr=True
    ),
    "training|edm": patched("ModelSamplingContinuousEDM", sampling="edm", sigma_max=80.0, sigma_min=0.002),
    "training|continuous v": patched(
        "ModelSamplingContinuousV", sampling="v_prediction", sigma_max=500.0, sigma_min=0.03
    ),
    "image|to image": case(
        sampled("euler", "karras", seed=7, denoise=0.6),
        image=IMAGE,
        latent=("VAEEncode", {"pixels": ["image", 0], "vae": ["checkpoint", 2]}),
    ),
    "image|decoded": Case(
        {
            **MINI15,
            "k": sampled("dpmpp_2m", "karras", seed=7),
            "decoded": ("VAEDecode", {"samples": ["k", 0], "vae": ["checkpoint", 2]}),
        },
        "decoded",
    ),
    "inpaint|encoded for it": case(
        sampled("euler", "normal", seed=7),
        image=IMAGE,
        mask=MASK,
        latent=(
            "VAEEncodeForInpaint",
            {"pixels": ["image", 0], "vae": ["checkpoint", 2], "mask": ["mask", 0], "grow_mask_by": 6},
        ),
    ),
    "steps|a window": case(
        (
            "KSamplerAdvanced",
            {
                **LINKS,
                "add_noise": "enable",
                "noise_seed": 7,
                "steps": 8,
                "cfg": 5.0,
                "sampler_name": "dpmpp_2m",
                "scheduler": "karras",
                "start_at_step": 2,
                "end_at_step": 6,
                "return_with_leftover_noise": "enable",
            },
        )
    ),
    "steps|cfg of one": case(sampled("euler", "karras", seed=7, cfg=1.0)),
    "inpaint|differential": case(
        sampled("euler", "normal", seed=7, model=["m", 0], latent_image=["masked", 0], denoise=0.9),
        m=("DifferentialDiffusion", {"model": ["checkpoint", 0]}),
        latent=PICTURE,
        soft=("Fixed", {"kind": "soft mask", "seed": 6, "shape": "1, 64, 64"}),
        masked=("SetLatentNoiseMask", {"samples": ["latent", 0], "mask": ["soft", 0]}),
    ),
}

_SAMPLERS: dict[str, tuple[str, dict[str, Any]]] = {
    "euler ancestral": ("SamplerEulerAncestral", {"eta": 0.7, "s_noise": 1.05}),
    "euler ancestral cfg++": ("SamplerEulerAncestralCFGPP", {"eta": 0.6, "s_noise": 0.95}),
    "lms": ("SamplerLMS", {"order": 3}),
    "3m sde": ("SamplerDPMPP_3M_SDE", {"eta": 0.8, "s_noise": 1.02, "noise_device": "cpu"}),
    "2m sde heun": (
        "SamplerDPMPP_2M_SDE",
        {"solver_type": "heun", "eta": 0.6, "s_noise": 1.0, "noise_device": "cpu"},
    ),
    "sde": ("SamplerDPMPP_SDE", {"eta": 0.9, "s_noise": 1.0, "r": 0.4, "noise_device": "cpu"}),
    "2s ancestral": ("SamplerDPMPP_2S_Ancestral", {"eta": 0.5, "s_noise": 1.0}),
    "er sde": ("SamplerER_SDE", {"solver_type": "ER-SDE", "max_stage": 2, "eta": 1.0, "s_noise": 1.0}),
}

CASES |= {f"options|{name}": custom(sampler, KARRAS) for name, sampler in _SAMPLERS.items()}
CASES |= {
    "sigmas|upper half": _split(0),
    "sigmas|lower half without noise": _split(1, add_noise=False, latent_image=["given", 0]),
    "sigmas|flipped": _flipped(),
}
