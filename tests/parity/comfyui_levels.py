"""ComfyUI's levels and schedules by training, and what it makes of conditionings: run by its own interpreter.

    python comfyui_levels.py ASKED.json FOLDER OUT.npz

In its directory. ASKED is the cases of `conditioning`, or the names and schedules of `model_sampling`; given.npz in
FOLDER has the arrays that they name.
"""

from __future__ import annotations

import json
import os
import sys
import uuid
from pathlib import Path
from types import SimpleNamespace
from typing import Any

ASKED, FOLDER, OUT = sys.argv[1:4]
sys.argv = ["main.py", "--cpu"]
sys.path.insert(0, os.getcwd())

import comfy.options  # noqa: E402

comfy.options.enable_args_parsing()

import comfy.conds  # noqa: E402
import comfy.model_base  # noqa: E402
import comfy.model_patcher  # noqa: E402
import comfy.samplers  # noqa: E402
import comfy.supported_models_base  # noqa: E402
import comfy_extras.nodes_model_advanced as advanced  # type: ignore[import-not-found]  # noqa: E402
import numpy as np  # noqa: E402
import torch  # noqa: E402

CPU = torch.device("cpu")
BASE = comfy.supported_models_base.BASE({})
Given = dict[str, torch.Tensor]


class Network(torch.nn.Module):
    """One that is never asked."""

    dtype = torch.float32

    def __init__(self, **_: Any) -> None:
        super().__init__()


def trained(name: str) -> Any:
    """Return the model_sampling of a training: discrete, edm or v, what is predicted, and for the first zero SNR."""
    model = comfy.model_base.BaseModel(BASE, comfy.model_base.ModelType.EPS, unet_model=Network)
    patcher = comfy.model_patcher.ModelPatcher(model, CPU, CPU)
    kind, predicted, *zsnr = name.split(" ")
    if kind == "discrete":
        [patched] = advanced.ModelSamplingDiscrete().patch(patcher, predicted, zsnr == ["True"])
    elif kind == "edm":
        [patched] = advanced.ModelSamplingContinuousEDM().patch(patcher, predicted, 120.0, 0.002)
    else:
        [patched] = advanced.ModelSamplingContinuousV().patch(patcher, predicted, 500.0, 0.03)
    return patched.get_model_object("model_sampling")


def model_sampling(asked: dict[str, Any], given: Given) -> Given:
    made = {}
    for name in asked["names"]:
        levels = trained(name)
        sigma = given[f"{name}|sigma"]
        made |= {
            f"{name}|sigmas": levels.sigmas[::37] if len(levels.sigmas) > 100 else levels.sigmas,
            f"{name}|timestep": levels.timestep(sigma),
            f"{name}|input": levels.calculate_input(sigma, given["x"]),
            f"{name}|denoised": levels.calculate_denoised(sigma, given["output"], given["x"]),
            f"{name}|progress": torch.tensor([levels.percent_to_sigma(share) for share in (0.1, 0.35, 0.9)]),
        }
        for schedule in asked["schedules"]:
            made[f"{name}|{schedule}"] = comfy.samplers.calculate_sigmas(levels, schedule, asked["steps"])
    return made


class Control:
    """A control that says one number."""

    multigpu_clones: dict[Any, Any] = {}  # noqa: RUF012

    def __init__(self, number: float) -> None:
        self.number = number

    def pre_run(self, model: Any, progress: Any) -> None: ...

    def get_control(self, *_: Any) -> float:
        return self.number


class Phased:
    """A model of one formula, of whose phase an entry says a part and a control ten times its number."""

    model_sampling = comfy.model_base.model_sampling(BASE, comfy.model_base.ModelType.EPS)
    current_patcher = SimpleNamespace(
        prepare_state=lambda timestep, options: None,
        get_free_memory=lambda device: 1e18,
        apply_hooks=lambda hooks: {},
        get_additional_models_with_key=lambda key: [],
    )

    def memory_required(self, shape: Any, cond_shapes: Any) -> float:
        return 0.0

    def apply_model(
        self, x: torch.Tensor, sigma: torch.Tensor, phase: torch.Tensor, control: float = 0, **_: Any
    ) -> Any:
        level = sigma.view(-1, 1, 1, 1)
        return x / (1 + level**2) + 0.3 * torch.sin(x / (1 + level) + phase + 10 * control)


def conditioning(asked: dict[str, Any], given: Given) -> Given:
    made = {}
    model = Phased()
    for index, case in enumerate(asked["cases"]):
        generator = torch.Generator().manual_seed(case["seed"])
        x = torch.randn(case["rows"], 2, case["height"], case["width"], generator=generator)
        conds: dict[str, list[Any]] = {}
        count = 0
        for role, listed in case["roles"].items():
            conds[role] = []
            for options in listed:
                count += 1
                phase = comfy.conds.CONDRegular(torch.full((1, 1, 1, 1), 0.1 * count))
                entry = {**options, "model_conds": {"phase": phase}, "uuid": uuid.uuid4()}
                if "mask" in options:
                    entry["mask"] = given[options["mask"]].float() / 255
                if "control" in options:
                    entry["control"] = Control(options["control"])
                conds[role].append(entry)
        conds = comfy.samplers.process_conds(model, x, conds, CPU)
        sigma = torch.full((case["rows"],), case["sigma"])
        branches = comfy.samplers.calc_cond_batch(model, [conds["positive"], conds["negative"]], x, sigma, {})
        made[f"{index}|out"] = torch.stack(branches)
    return made


def main() -> None:
    asked = json.loads(Path(ASKED).read_text())
    given = {name: torch.from_numpy(array) for name, array in np.load(f"{FOLDER}/given.npz").items()}
    with torch.inference_mode():
        made = conditioning(asked, given) if "cases" in asked else model_sampling(asked, given)
    arrays: dict[str, Any] = {name: tensor.numpy() for name, tensor in made.items()}
    np.savez(OUT, **arrays)


main()
