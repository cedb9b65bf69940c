"""ComfyUI's samplers on an analytic denoiser: run by its own interpreter, in its directory, knowing nothing of ours.

    python comfyui_samplers.py CASES.json OUT.npz

A case is a sampler with options by our names, a seed, a shape and either sigmas or the steps of a KSampler; "flow" or
"flux" in it is the shift of such a model's levels, without one they are Stable Diffusion 1's. Kept of each, by its
place in the list: `sigmas`, `out`, `denoised` (what the callback last took for the image), `evaluations`.
"""

from __future__ import annotations

import asyncio
import json
import os
import sys
from pathlib import Path
from typing import Any

CASES, OUT = sys.argv[1:3]
sys.argv = ["main.py", "--cpu"]
sys.path.insert(0, os.getcwd())

import comfy.options  # noqa: E402

comfy.options.enable_args_parsing()

import comfy.model_sampling  # noqa: E402
import comfy.samplers  # noqa: E402
import nodes  # noqa: E402
import numpy as np  # noqa: E402
import torch  # noqa: E402
from comfy.k_diffusion import sa_solver  # noqa: E402

THEIR_NAMES = {
    "clip": "noise_clip_std",
    "d": "dcoeff",
    "evaluate_corrected": "use_pece",
    "gamma": "ge_gamma",
    "i": "icoeff",
    "p": "pcoeff",
    "safety": "accept_safety",
    "solver": "solver_type",
    "stages": "max_stage",
}
"""Of options that have another name there."""


class EpsSampling(comfy.model_sampling.ModelSamplingDiscrete, comfy.model_sampling.EPS):  # type: ignore[misc]
    """The levels of Stable Diffusion 1."""


class FlowSampling(comfy.model_sampling.ModelSamplingDiscreteFlow, comfy.model_sampling.CONST):  # type: ignore[misc]
    """The levels of Stable Diffusion 3 and others."""


class FluxSampling(comfy.model_sampling.ModelSamplingFlux, comfy.model_sampling.CONST):  # type: ignore[misc]
    """The levels of FLUX and others."""


class Model:
    """What ComfyUI's samplers take for a guider with its model; cfg is 2."""

    def __init__(self) -> None:
        self.model_sampling: Any = EpsSampling()
        self.inner_model = self.model_patcher = self.model = self
        self.load_device = torch.device("cpu")
        self.cfg = 2.0
        self.evaluations = 0

    def trained_as(self, case: dict[str, Any]) -> Model:
        """Take a case's levels."""
        self.model_sampling = EpsSampling()
        for name, kind in (("flow", FlowSampling), ("flux", FluxSampling)):
            if name in case:
                self.model_sampling = kind()
                self.model_sampling.set_parameters(shift=case[name])
        return self

    def get_model_object(self, name: str) -> Any:
        return getattr(self, name)

    def __call__(self, x: torch.Tensor, sigma: torch.Tensor, model_options: Any = None, seed: Any = None) -> Any:
        self.evaluations += 1
        level = sigma.view(-1, *[1] * (x.ndim - 1))
        low = x / (1 + level**2) - 0.2 * torch.cos(x / (1 + level))
        high = x / (1 + level**2) + 0.3 * torch.sin(x / (1 + level))
        denoised = low + self.cfg * (high - low)
        for function in (model_options or {}).get("sampler_post_cfg_function", []):
            told = {"denoised": denoised, "uncond_denoised": low, "cond_denoised": high, "sigma": sigma, "input": x}
            denoised = function({**told, "cond_scale": self.cfg, "model": self, "model_options": model_options})
        return denoised


def noise(shape: list[int], seed: int) -> torch.Tensor:
    return torch.randn(shape, generator=torch.manual_seed(seed))


def sampler_of(name: str, options: dict[str, Any]) -> Any:
    if not options:
        return comfy.samplers.sampler_object(name)
    theirs = {THEIR_NAMES.get(option, option): value for option, value in options.items()}
    if "alternative" in theirs:
        return made("SamplerEulerCFGpp", version="alternative" if theirs["alternative"] else "regular")
    if name == "lms":
        return made("SamplerLMS", **theirs)
    if name == "er_sde":
        solver = "ER-SDE" if "eta" not in theirs else "Reverse-time SDE" if theirs["eta"] else "ODE"
        defaults = {"max_stage": 3, "eta": 1.0, "s_noise": 1.0}
        return made("SamplerER_SDE", solver_type=solver, **{**defaults, **theirs})
    if name in ("ipndm", "ipndm_v", "deis"):
        theirs["max_order"] = theirs.pop("order")
    if "interval" in theirs:
        theirs["tau_func"] = sa_solver.get_tau_interval_func(*theirs.pop("interval"), eta=theirs.pop("eta", 1.0))
    return comfy.samplers.ksampler(name, theirs)


def made(node: str, **inputs: Any) -> Any:
    node_class = nodes.NODE_CLASS_MAPPINGS[node]
    result = getattr(node_class(), node_class.FUNCTION)(**inputs)
    return getattr(result, "result", result)[0]


def run(model: Model, case: dict[str, Any]) -> dict[str, Any]:
    kept: dict[str, Any] = {}
    started, latents = noise(case["shape"], case["seed"]), noise(case["shape"], case["seed"] + 1) * case["latents"]

    def sample(sampler: Any, sigmas: torch.Tensor) -> torch.Tensor:
        # Copied: some samplers write into theirs.
        kept["sigmas"] = sigmas.clone()
        extra = {"model_options": {}, "seed": case["seed"]}
        model.evaluations = 0
        told = lambda i, image, *_: kept.update(denoised=image)  # noqa: E731
        return sampler.sample(model, sigmas, extra, told, started, latents, disable_pbar=True)

    if "sigmas" in case:
        kept["out"] = sample(sampler_of(case["sampler"], case["options"]), torch.tensor(case["sigmas"]))
    else:
        # Its own KSampler cuts the window of steps, and hands over what it would sample.
        comfy.samplers.sample = lambda *given, **more: sample(sampler_of(case["sampler"], case["options"]), given[7])
        ksampler = comfy.samplers.KSampler(
            model, case["steps"], model.load_device, case["sampler"], case["schedule"], case["denoise"]
        )
        window = {"start_step": case["start"], "last_step": case["end"], "force_full_denoise": case["full_denoise"]}
        kept["out"] = ksampler.sample(started, [], [], model.cfg, latent_image=latents, **window)
    return {**{name: value.numpy() for name, value in kept.items()}, "evaluations": np.array(model.evaluations)}


def main() -> None:
    asyncio.run(nodes.init_extra_nodes(init_custom_nodes=False, init_api_nodes=False))
    model, arrays = Model(), {}
    with torch.inference_mode():
        for i, case in enumerate(json.loads(Path(CASES).read_text())):
            arrays |= {f"{i}|{name}": array for name, array in run(model.trained_as(case), case).items()}
    np.savez(OUT, **arrays)


main()
