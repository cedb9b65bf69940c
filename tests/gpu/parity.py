"""Whole workflows on a card against the same on a CPU, what rows share, and what a process costs a card."""

from __future__ import annotations

import asyncio
import subprocess
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path

import torch
from torch import Tensor

from serve_app.models.weights.weights import Weights
from serve_app.sampling.forward import denoise
from serve_app.store.models.catalog import Catalog
from tests.gpu.bench import Bench
from tests.gpu.results import Figure
from tests.parity.beside import Fixed
from tests.parity.cases import CASES, MINI15, Case
from tests.parity.checkpoints import models_dir
from tests.parity.stack import Stack
from tests.unit.engine.mixes import relative_error

WORKFLOWS: Mapping[str, Case] = {
    name: CASES[name]
    for name in (
        "image|decoded",
        "lora|both parts",
        "control|both",
        "conditioning|area",
        "conditioning|mask",
        "clip|long text",
        "image|to image",
        "inpaint|encoded for it",
        "steps|a window",
    )
} | {
    "image|decoded in tiles": Case(
        {
            **MINI15,
            "latent": ("Fixed", {"kind": "latent", "seed": 12, "shape": "1, 4, 96, 64"}),
            "k": ("VAEDecodeTiled", {"samples": ["latent", 0], "vae": ["checkpoint", 2], "tile_size": 512}),
        }
    )
}
"""What is run on both: a part of the engine each. None draws noise where it is sampled, which a card draws itself."""

CHECKED = ("conditioning|area", "image|decoded")
"""Those that show on any machine that comparing works."""

TOLERANCES = {"fp32": "1e-4 at most", "fp16": "1e-2 at most"}


def of_workflows(bench: Bench) -> Iterator[Figure]:
    """Measure how far a card's results are from a CPU's, relatively, in both dtypes."""
    models = models_dir("mini15", "lora", "controlnet")
    names = CHECKED if bench.small else tuple(WORKFLOWS)
    theirs = _results(models, torch.device("cpu"), "fp32", names)
    for dtype, tolerance in TOLERANCES.items():
        # A CPU's kernels for fp16 are slow and prove nothing.
        ours = _results(models, bench.device, "fp32" if bench.small else dtype, names)
        for name in names:
            error = relative_error(ours[name].float(), theirs[name])
            yield Figure(f"{name}, {dtype}, off a CPU's fp32", error, "", tolerance)


def _results(models: Path, device: torch.device, dtype: str, names: tuple[str, ...]) -> dict[str, Tensor]:
    weights = Weights(Catalog(models), device, dtype=dtype, vae_dtype=dtype, budget_bytes=8 * 2**30)
    with tempfile.TemporaryDirectory() as files:
        stack = Stack(models, Path(files), {"Fixed": Fixed}, weights)
        try:
            return {
                name: _tensor(asyncio.run(stack.run(WORKFLOWS[name].target, **WORKFLOWS[name].nodes))) for name in names
            }
        finally:
            stack.engine.close()


def _tensor(result: object) -> Tensor:
    tensor = result["samples"] if isinstance(result, dict) else result
    assert isinstance(tensor, Tensor), "a workflow that is compared ends with latents or images"
    return tensor


def of_rows(bench: Bench) -> Iterator[Figure]:
    """Measure what the order and the number of a forward's rows change in them, relatively."""
    for model in bench.models:
        backbone = model.backbone(bench.device, bench.dtype)
        pieces = model.pieces(backbone, 16)
        whole = torch.cat(denoise(pieces)).float().cpu()
        turned = torch.cat(denoise(pieces[::-1])[::-1]).float().cpu()
        few = torch.cat(denoise(pieces[:2])).float().cpu()
        yield Figure(f"{model.name}, 16 rows in another order", relative_error(turned, whole), "", "0")
        yield Figure(f"{model.name}, 2 rows alone and among 16", relative_error(few, whole[:2]), "", "1e-3 at most")
        del backbone


def of_process(bench: Bench) -> Iterator[Figure]:
    """Measure what a process that uses a card takes of it before its first tensor."""
    if bench.device.type != "cuda":
        return
    code = "import sys, torch; a = torch.randn(64, 64, device='cuda'); "
    code += "print((a @ a).sum().item(), flush=True); sys.stdin.read()"
    free, _ = torch.cuda.mem_get_info()
    with subprocess.Popen([*bench.python, code], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as other:
        assert other.stdout is not None
        assert other.stdin is not None
        other.stdout.readline()
        left, _ = torch.cuda.mem_get_info()
        other.stdin.close()
    yield Figure("context of another process", (free - left) / 2**20, "MiB")
