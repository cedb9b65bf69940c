"""Counts one denoising step of this project's networks at full size: kernels and bytes moved, beside ComfyUI's.

`python -m bench.steps --comfyui DIR --comfyui-python PYTHON`. It needs no GPU, no weights and little memory, and takes
half a minute: `counted` says what is counted. comfy_kitchen must be installed. It prints a table, and exits with 1 if
a job here takes more than TARGET of ComfyUI's kernels or bytes. `--job` counts one job, by operation.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor, nn

from bench.counted import Counting, Counts
from bench.step_jobs import JOBS, StepJob
from serve_app.models.families import Flux, QwenImage, Sd, Sdxl, Wan, ZImage
from serve_app.models.families.dit.flux import FluxInputs
from serve_app.models.families.dit.qwen_image import QwenImageInputs
from serve_app.models.families.family import BackboneFamily, Rows
from serve_app.models.families.shared.one_stream import TextInputs
from serve_app.models.families.unet.unet import UnetInputs
from serve_app.models.families.video.wan import WanInputs
from serve_app.models.kernels import comfy_kitchen
from serve_app.models.quantization.eight_bit import EightBitWeight
from serve_app.models.quantization.quantized_linear import QuantizedLinear

ROOT = Path(__file__).parents[1]
RECORDED = ROOT / "bench" / "results" / "steps-comfyui.json"
META = torch.device("meta")
TARGET = 1.05
FAMILIES: dict[str, BackboneFamily] = {
    "sd15": Sd((320, 640, 1280, 1280), (2, 2, 2, 2), (1, 1, 1, 0), 1, 768),
    "sdxl": Sdxl((320, 640, 1280), (2, 2, 2), (0, 2, 10), 10, 2048, linear=True, vector_dim=2816),
    "flux": Flux(3072, 24, 19, 38, 4096, 768),
    "zimage": ZImage(3840, 30, 30, 2, 2560),
    "qwen": QwenImage(3072, 24, 60, 3584),
    "wan": Wan(5120, 40, 13824, 4096),
}


def counted(job: StepJob) -> Counts:
    """Return the counts of a job's step."""
    with as_on_a_card(), torch.inference_mode():
        made, given = network(job), [rows(job, length) for length in job.texts]
        with Counting() as counting:
            step(job, made, given)
    counts: Counts = counting.counts
    return counts


def as_on_a_card() -> AbstractContextManager[object]:
    """Have the kernels of a GPU counted, for tensors that are on none."""
    return patch.object(comfy_kitchen, "DEVICES", {META.type})


def family_of(job: StepJob) -> Any:
    """Return the job's family, with as many blocks as the job has."""
    family: Any = FAMILIES[job.family]
    blocks = [name for name in ("doubles", "singles", "layers") if hasattr(family, name)]
    return replace(family, **{name: getattr(family, name) // job.part for name in blocks})


def network(job: StepJob) -> nn.Module:
    """Return the job's network on the meta device, as it is on a GPU with fp8 products."""
    family = family_of(job)
    made: nn.Module = family.empty().to(family.dtypes[0] if job.family != "wan" else torch.bfloat16)
    if job.fp8:
        put_in_fp8(made)
    return made


def put_in_fp8(network: nn.Module) -> None:
    """Have the linear layers of a network's blocks keep their weights in fp8 with a scale, and multiply in fp8.

    The scales are 1: what a step takes does not depend on them.
    """
    for name, layer in list(network.named_modules()):
        if isinstance(layer, nn.Linear) and "blocks" in name:
            stored, ones = layer.weight.data.to(torch.float8_e4m3fn), partial(torch.ones, device=layer.weight.device)
            weight = EightBitWeight(stored, ones(1, 1), inputs=ones(()), may=True, largest=1.0)
            quantized = QuantizedLinear(weight, layer.bias)
            quantized.in_eight_bits = True
            network.set_submodule(name, quantized)


def step(job: StepJob, network: nn.Module, given: Sequence[Rows]) -> None:
    """Run the forwards of one step."""
    for together in [[row] for row in given] if job.apart else [given]:
        family_of(job).forward(network, together)


def rows(job: StepJob, length: int, device: torch.device = META) -> Rows:
    """Return one row of a job with a text of a length, of random numbers."""

    def numbers(*shape: int) -> Tensor:
        return torch.randn(1, *shape, device=device)

    inputs: Any
    match job.family:
        case "sd15":
            inputs = UnetInputs(numbers(length, 768))
        case "sdxl":
            inputs = UnetInputs(numbers(length, 2048), numbers(2816))
        case "flux":
            inputs = FluxInputs(numbers(length, 4096), numbers(768), numbers())
        case "zimage":
            inputs = TextInputs(numbers(length, 2560))
        case "qwen":
            inputs = QwenImageInputs(numbers(length, 3584))
        case "wan":
            inputs = WanInputs(numbers(length, 4096))
    return Rows(numbers(*job.latents), 0.5, numbers(), inputs)


def comfyui(directory: Path, python: Path) -> dict[str, Counts]:
    """Return the counts of ComfyUI's networks, by job, and record them."""
    command = [str(python), "-m", "bench.steps_comfyui"]
    printed = subprocess.run(
        command, cwd=directory, env=os.environ | {"PYTHONPATH": str(ROOT)}, stdout=subprocess.PIPE, check=True
    ).stdout
    RECORDED.write_bytes(printed.splitlines()[-1] + b"\n")
    return recorded()


def recorded() -> dict[str, Counts]:
    """Return the counts of ComfyUI's networks of the last time that they were counted, by job."""
    return {title: Counts.of(found) for title, found in json.loads(RECORDED.read_text()).items()}


def table(ours: dict[str, Counts], theirs: dict[str, Counts]) -> str:
    """Return the counts as a table in Markdown."""
    lines = [
        "| one step of | kernels here | ComfyUI | ratio | GB moved here | ComfyUI | ratio |",
        "|---|---|---|---|---|---|---|",
    ]
    for title, counts in ours.items():
        row = [title, f"{counts.kernels:,}", "", "", f"{counts.nbytes / 1e9:.1f}", "", ""]
        if beside := theirs.get(title):
            kernels, nbytes = ratios(counts, beside)
            row = [
                *row[:2],
                f"{beside.kernels:,}",
                f"{kernels:.2f}",
                row[4],
                f"{beside.nbytes / 1e9:.1f}",
                f"{nbytes:.2f}",
            ]
        lines.append(f"| {' | '.join(row)} |")
    return "\n".join(lines)


def ratios(ours: Counts, theirs: Counts) -> tuple[float, float]:
    """Return kernels and bytes as multiples of another's."""
    return ours.kernels / theirs.kernels, ours.nbytes / theirs.nbytes


def details(of: Sequence[Counts]) -> str:
    """Return the counts by operation, a column for each, the most bytes first."""
    names = sorted(set().union(*(c.kernels_of for c in of)), key=lambda name: -max(c.nbytes_of[name] for c in of))
    return "\n".join(
        f"{name:32}" + "".join(f"{c.kernels_of[name]:8} {c.nbytes_of[name] / 1e9:9.3f} GB" for c in of)
        for name in names
    )


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m bench.steps", description=__doc__)
    parser.add_argument(
        "--comfyui", type=Path, metavar="DIR", help="a ComfyUI to count anew; default: its recorded counts"
    )
    parser.add_argument("--comfyui-python", type=Path, default=Path(sys.executable), metavar="PYTHON")
    parser.add_argument("--job", choices=JOBS, help="one job, by operation")
    arguments = parser.parse_args()
    theirs = comfyui(arguments.comfyui, arguments.comfyui_python) if arguments.comfyui else recorded()
    titles = [arguments.job] if arguments.job else list(JOBS)
    ours = {title: counted(JOBS[title]) for title in titles}
    print(table(ours, theirs))
    for title in titles if arguments.job else ():
        print(details([of[title] for of in (ours, theirs) if title in of]))
    compared = [ratio for title in titles if title in theirs for ratio in ratios(ours[title], theirs[title])]
    return 1 if any(ratio > TARGET for ratio in compared) else 0


if __name__ == "__main__":
    sys.exit(main())
