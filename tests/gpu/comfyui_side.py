"""ComfyUI's samplings of a file with a UNet alone: run by its own interpreter, in its directory.

    python comfyui_side.py ASKED.json FOLDER OUT.npz

ASKED: the family, the sampler's settings and how often. FOLDER: has model.safetensors, and in given.npz the
latents and conditionings. OUT: for each sampler the latents and the seconds of every run, and those of loading.
"""

from __future__ import annotations

import json
import os
import sys
from time import perf_counter
from typing import Any

import torch

ASKED, FOLDER, OUT = sys.argv[1:4]
sys.argv = ["main.py"] if torch.cuda.is_available() else ["main.py", "--cpu"]
# Not this folder, whose modules have names of packages.
sys.path[0] = os.getcwd()

import comfy.options  # noqa: E402

comfy.options.enable_args_parsing()

import comfy.model_base  # noqa: E402
import comfy.model_detection  # noqa: E402
import comfy.model_management as management  # noqa: E402
import comfy.model_patcher  # noqa: E402
import comfy.sample  # noqa: E402
import comfy.supported_models  # noqa: E402
import numpy as np  # noqa: E402
from safetensors.torch import load_file  # noqa: E402

FAMILIES: dict[str, tuple[Any, Any]] = {
    "SD 1.5": (comfy.supported_models.SD15, comfy.model_base.BaseModel),
    "SDXL": (comfy.supported_models.SDXL, comfy.model_base.SDXL),
}
PREFIX = "model.diffusion_model."


def loaded(family: str) -> Any:
    """Return the file's model on the device, in the dtype that ComfyUI has there."""
    tensors = load_file(f"{FOLDER}/model.safetensors")
    known, made = FAMILIES[family]
    device = management.get_torch_device()
    config = known(comfy.model_detection.detect_unet_config(tensors, PREFIX))
    dtype = management.unet_dtype(supported_dtypes=config.supported_inference_dtypes)
    config.set_inference_dtype(dtype, management.unet_manual_cast(dtype, device))
    config.unet_config["dtype"] = dtype
    model = made(config, comfy.model_base.ModelType.EPS, device=device)
    own = {key.removeprefix(PREFIX): tensor for key, tensor in tensors.items()}
    model.diffusion_model.load_state_dict(own)
    patcher = comfy.model_patcher.ModelPatcher(model, load_device=device, offload_device=torch.device("cpu"))
    management.load_models_gpu([patcher])
    return patcher


def main() -> None:
    with open(ASKED) as file:
        asked = json.load(file)
    given = {name: torch.from_numpy(array) for name, array in np.load(f"{FOLDER}/given.npz").items()}
    conds = [
        [[given[role], {"pooled_output": given[f"{role} pooled"]} if f"{role} pooled" in given else {}]]
        for role in ("positive", "negative")
    ]
    latent = given["latents"]
    noise = comfy.sample.prepare_noise(latent, asked["seed"])
    made: dict[str, Any] = {}
    began = perf_counter()
    model = loaded(asked["family"])
    made["load_s"] = perf_counter() - began
    for sampler in asked["samplers"]:
        settings = (asked["steps"], asked["cfg"], sampler, asked["schedule"], *conds)
        seconds = []
        for _ in range(asked["repeats"] + 1):
            began = perf_counter()
            out = comfy.sample.sample(model, noise, *settings, latent, seed=asked["seed"], disable_pbar=True)
            made[f"{sampler}|latents"] = out.float().cpu().numpy()
            seconds.append(perf_counter() - began)
        made[f"{sampler}|seconds"] = seconds[1:]
    np.savez(OUT, **made)


with torch.inference_mode():
    main()
