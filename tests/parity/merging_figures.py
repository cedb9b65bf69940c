"""Make golden/merging.npz: weights as ComfyUI's nodes merge them, of the cases of `merging_cases`.

Run it in ComfyUI's environment: COMFYUI_DIR=… python tests/parity/merging_figures.py.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

HERE = Path(__file__).parent
sys.path[:0] = [str(HERE.parents[1]), os.environ["COMFYUI_DIR"]]
sys.argv = [sys.argv[0], "--cpu"]

import comfy.options  # noqa: E402

comfy.options.enable_args_parsing()

import comfy.lora  # noqa: E402
import comfy.model_patcher  # noqa: E402
import comfy_extras.nodes_lora_extract as extraction  # type: ignore[import-not-found]  # noqa: E402
import comfy_extras.nodes_model_merging as merging  # type: ignore[import-not-found]  # noqa: E402
import comfy_extras.nodes_model_merging_model_specific as specific  # type: ignore[import-not-found]  # noqa: E402

from tests.parity.dit_cases import noise  # noqa: E402
from tests.parity.figures import thinned  # noqa: E402
from tests.parity.merging_cases import CASES, DIFFERENCES, LAYERS, RANK, Case, lora, model, shown  # noqa: E402

CPU = torch.device("cpu")


def network(weights: Mapping[str, Tensor]) -> torch.nn.Module:
    """Return modules that hold the weights under their names, as those of ComfyUI's network do."""
    root = torch.nn.Module()
    for name, tensor in weights.items():
        *path, leaf = f"diffusion_model.{name}".split(".")
        here: Any = root
        for part in path:
            if not hasattr(here, part):
                here.add_module(part, torch.nn.Module())
            here = getattr(here, part)
        here.register_parameter(leaf, torch.nn.Parameter(tensor, requires_grad=False))
    return root


def made(net: str, case: Case | str) -> Any:
    """Return the model that a case makes."""
    if isinstance(case, str):
        return comfy.model_patcher.ModelPatcher(network(model(net, case)), CPU, CPU)
    name, given = case
    models = [made(net, one) for one in given if not isinstance(one, dict)]
    settings = next((one for one in given if isinstance(one, dict)), {})
    if name == "lora":
        keys = {f"diffusion_model.{LAYERS[net]}": f"diffusion_model.{LAYERS[net]}.weight"}
        [patched] = [models[0].clone()]
        patched.add_patches(comfy.lora.load_lora(lora(net), keys), settings["strength"])
        return patched
    [merged] = {**merging.NODE_CLASS_MAPPINGS, **specific.NODE_CLASS_MAPPINGS}[name]().merge(*models, **settings)
    return merged


def main() -> None:
    arrays: dict[str, Any] = {}
    for name, (net, case) in CASES.items():
        patcher = made(net, case)
        for tensor in shown(net):
            weight = patcher.patch_weight_to_device(f"diffusion_model.{tensor}", CPU, return_weight=True)
            arrays[f"{name}|{tensor}"] = thinned(weight.float().numpy())
    for name, shape in DIFFERENCES.items():
        up, down = extraction.extract_lora(noise(name, shape), RANK)
        arrays[f"difference|{name}"] = (up.flatten(1) @ down.flatten(1)).numpy()
    np.savez_compressed(HERE / "golden" / "merging.npz", **arrays)


main()
