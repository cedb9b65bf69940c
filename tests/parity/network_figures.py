"""Makers of figures of small networks by a ComfyUI beside us: golden/families.npz, control.npz and others."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
from safetensors.torch import save_file
from torch import Tensor

from tests.parity import control_files, input_cases, lora_cases, wan_cases
from tests.parity import families as family_files
from tests.parity.comfyui import ComfyUI
from tests.parity.figures import GOLDEN
from tests.parity.make_checkpoint import normal


def _answers(
    comfyui: ComfyUI, part: str, write: Callable[[Path], object], given: Mapping[str, Tensor], **asked: Any
) -> dict[str, np.ndarray]:
    """Return what a part of comfyui_networks answers. write: puts the files that it reads into a folder."""
    with TemporaryDirectory() as folder:
        write(Path(folder))
        arrays: dict[str, Any] = {name: tensor.numpy() for name, tensor in given.items()}
        np.savez(Path(folder) / "given.npz", **arrays)
        return comfyui.run("comfyui_networks.py", {"part": part, **asked}, Path(folder))


def families(comfyui: ComfyUI) -> dict[str, np.ndarray]:
    """Return the answers of UNets, and the rows of texts by encoder, layer and text."""
    given = {}
    for name in family_files.UNETS:
        parts = zip(("x", "timesteps", "context", "vector"), family_files.unet_inputs(name), strict=True)
        given |= {f"{name}|{part}": tensor for part, tensor in parts if tensor is not None}
    width, layers = family_files.WIDTH, family_files.LAYERS
    small = {
        "hidden_size": width,
        "intermediate_size": 4 * width,
        "num_hidden_layers": layers,
        "num_attention_heads": 1,
        "projection_dim": width,
    }
    return _answers(
        comfyui,
        "families",
        family_files.write,
        given,
        unets=list(family_files.UNETS),
        sizes=dict.fromkeys("hlg", small),
        skips=family_files.SKIPS,
        texts=family_files.TEXTS,
        rows=family_files.ROWS,
        later_rows=family_files.LATER_ROWS,
    )


def family_runs(comfyui: ComfyUI) -> dict[str, np.ndarray]:
    """Return the latents that runs of small models end with."""
    asked = {"options": family_files.OPTIONS, "steps": family_files.STEPS, "seed": family_files.SEED}
    given = family_files.run_inputs()
    return _answers(comfyui, "family_runs", family_files.write, given, figures=family_files.RUNS, **asked)


def wan(comfyui: ComfyUI) -> dict[str, np.ndarray]:
    """Return the latents that runs of Wan's editions end with."""
    given, runs = {role: wan_cases.text(role) for role in ("positive", "negative")}, {}
    for run in wan_cases.RUNS:
        given[f"{run.name} latents"] = wan_cases.latents(run)
        if (mask := wan_cases.noise_mask(run)) is not None:
            given[f"{run.name} mask"] = mask
        told: dict[str, Any] = {}
        for key, value in wan_cases.options(run).items():
            name = f"{run.name} {key}"
            if isinstance(value, Tensor):
                given[name], told[key] = value, name
            elif isinstance(value, list) and isinstance(value[0], Tensor):
                given |= {f"{name} {i}": one for i, one in enumerate(value)}
                told[key] = [f"{name} {i}" for i in range(len(value))]
            else:
                told[key] = value
        runs[run.name] = {"net": run.net, "options": told}
    asked = {"steps": wan_cases.STEPS, "seed": wan_cases.SEED, "cfg": wan_cases.CFG}
    by = {"sampler": wan_cases.SAMPLER, "schedule": wan_cases.SCHEDULE}
    return _answers(comfyui, "wan", wan_cases.write, given, runs=runs, **asked, **by)


def inputs(comfyui: ComfyUI) -> dict[str, np.ndarray]:
    """Return the vectors and channels of `input_cases`, and the arrays that they are made of."""
    given = {
        "pooled": normal("pooled", [2, 1280]),
        "latents": normal("latents", [3, 4, 6, 8]),
        "image": normal("image", [2, 4, 9, 8]),
        "mask": normal("mask", [1, 1, 40, 64]).sigmoid(),
        "dmask": (normal("dmask", [3, 1, 6, 8]) > 0).float(),
    }
    asked = {"vectors": input_cases.VECTORS, "size": input_cases.SIZE, "concats": input_cases.CONCATS}
    made = _answers(comfyui, "inputs", lambda folder: None, given, **asked)
    return made | {name: tensor.numpy() for name, tensor in given.items()}


def control(comfyui: ComfyUI) -> dict[str, np.ndarray]:
    """Return what ControlNets and adapters add in a backbone, and what that answers with it."""
    asked, given = control_files.cases()
    return _answers(comfyui, "control", control_files.write_all, given, cases=asked, light=control_files.LIGHT)


def lora(comfyui: ComfyUI) -> dict[str, np.ndarray]:
    """Return weights under every LoRA of `lora_cases`."""
    cases = lora_cases.cases()

    def write(folder: Path) -> None:
        for i, (_, tensors) in enumerate(cases.values()):
            save_file({f"lora_unet_layer.{suffix}": t for suffix, t in tensors.items()}, folder / f"{i}.safetensors")

    given = {name: lora_cases.drawn(f"{name} weight", *shape) for name, (shape, _) in cases.items()}
    return _answers(comfyui, "lora", write, given, names=list(cases), strengths=lora_cases.STRENGTHS)


MAKERS = {make.__name__: make for make in (families, family_runs, wan, inputs, control, lora)}


def maker(name: str) -> Callable[[ComfyUI], None]:
    """Return what makes golden/NAME.npz."""

    def make(comfyui: ComfyUI) -> None:
        arrays: dict[str, Any] = MAKERS[name](comfyui)
        np.savez_compressed(GOLDEN / f"{name}.npz", **arrays)

    return make
