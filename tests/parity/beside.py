"""Compares us with a ComfyUI beside us, workflow by workflow, and writes the table of errors.

    python -m tests.parity.beside COMFYUI_DIRECTORY COMFYUI_PYTHON [NAME_PART …]

Both sides run the same nodes on the deterministic checkpoints. The latents ComfyUI gave are kept in golden/beside.npz
for the tests; errors are in beside.json, ‖ours − theirs‖ / ‖theirs‖, and beside.md shows the largest of each group.
"""

from __future__ import annotations

import asyncio
import json
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch

from serve_app.recipe.recipe import Recipe
from serve_app.sampling.latents.layout import LatentLayout
from serve_app.values import ClipVisionOutput
from tests.parity.cases import CASES, Case
from tests.parity.comfyui import ComfyUI
from tests.parity.custom_cases import CUSTOM
from tests.parity.patch_cases import PATCHES, models
from tests.parity.stack import Stack

HERE = Path(__file__).parent
FIGURES = HERE / "golden" / "beside.npz"
TABLE = HERE / "beside.md"
WORKFLOWS: dict[str, Case] = {**CASES, **CUSTOM, **PATCHES}


class Fixed:
    """A value that both sides are given."""

    RETURN_TYPES = ("*",)
    FUNCTION = "get"

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        return {"required": dict.fromkeys(("kind", "seed", "shape"), ("*",)), "optional": {"extra": ("*",)}}

    def get(self, kind: str, seed: int, shape: str, extra: Any = None) -> tuple[Any]:
        tensor = torch.randn([int(side) for side in shape.split(",")], generator=torch.Generator().manual_seed(seed))
        if kind == "latent":
            return ({"samples": tensor},)
        if kind == "image":
            return (tensor.sigmoid(),)
        if kind == "mask":
            return ((tensor > 0).float(),)
        if kind == "soft mask":
            return (tensor.sigmoid(),)
        if kind == "seen":
            return (ClipVisionOutput(tensor, tensor, tensor[:, 0]),)
        pooled = torch.randn(1, int(extra), generator=torch.Generator().manual_seed(9))
        return ([(tensor, {"pooled_output": pooled})],)


class SmallModel:
    """A MODEL of a file of a backbone alone."""

    RETURN_TYPES = ("MODEL",)
    FUNCTION = "get"

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        return {"required": {"name": ("STRING",)}}

    def get(self, name: str) -> tuple[Recipe]:
        return (Recipe("backbone", "checkpoints", name),)


OWN: dict[str, type] = {"Fixed": Fixed, "SmallModel": SmallModel}


async def ours(stack: Stack, case: Case) -> torch.Tensor:
    """Return what we make of a case, float32."""
    value = await stack.run(case.target, **case.nodes)
    samples: Any = value.get("samples", value.get("waveform")) if isinstance(value, dict) else value
    return LatentLayout.of(samples).pack(samples).float()


def relative_error(a: torch.Tensor, b: np.ndarray) -> float:
    """Return ‖a − b‖ / ‖b‖."""
    expected = torch.from_numpy(b)
    assert a.shape == expected.shape, (a.shape, expected.shape)
    return float((a - expected).norm() / expected.norm())


async def compare(cases: dict[str, Case], figures: dict[str, np.ndarray]) -> dict[str, float | str]:
    """Return each case's error, or the words of what failed."""
    errors: dict[str, float | str] = {}
    with tempfile.TemporaryDirectory() as files:
        stack = Stack(models(), Path(files), OWN)
        for name, case in cases.items():
            if name not in figures:
                errors[name] = "ComfyUI failed"
                continue
            try:
                errors[name] = relative_error(await ours(stack, case), figures[name])
            except Exception as error:
                errors[name] = f"{type(error).__name__}: {error}"
        stack.engine.close()
    return errors


def table(errors: dict[str, float | str]) -> str:
    """Return the errors by group as Markdown: how many cases, the median, the largest and which case has it."""
    groups: dict[str, dict[str, float | str]] = {}
    for name, error in errors.items():
        groups.setdefault(name.split("|")[0], {})[name] = error
    lines = [
        "# Errors against ComfyUI 0.33.0",
        "",
        "Relative error of the latents, ‖ours − theirs‖ / ‖theirs‖, float32 on a CPU. `tests.parity.beside` writes it.",
        "",
        "| group | cases | median | largest | in | failed |",
        "|---|---|---|---|---|---|",
    ]
    for group, found in groups.items():
        numbers = sorted((error, name) for name, error in found.items() if isinstance(error, float))
        failed = [name for name, error in found.items() if isinstance(error, str)]
        median = f"{numbers[len(numbers) // 2][0]:.1e}" if numbers else ""
        worst, where = (f"{numbers[-1][0]:.1e}", numbers[-1][1]) if numbers else ("", "")
        where = where.replace("|", " ")
        lines.append(f"| {group} | {len(found)} | {median} | {worst} | {where} | {len(failed)} |")
    return "\n".join(lines) + "\n"


def main(comfyui: ComfyUI, parts: list[str]) -> None:
    """Run the cases whose names hold one of the parts, or all; the files hold the others' figures unchanged."""
    chosen = {name: case for name, case in WORKFLOWS.items() if not parts or any(part in name for part in parts)}
    figures = comfyui.workflows(chosen, models())
    errors = asyncio.run(compare(chosen, figures))
    for name, error in errors.items():
        if isinstance(error, str) or error > 1e-5:
            print(name, error)
    kept = dict(np.load(FIGURES)) if FIGURES.exists() else {}
    np.savez_compressed(FIGURES, **{n: a for n, a in {**kept, **figures}.items() if n in WORKFLOWS})
    path = HERE / "beside.json"
    before = json.loads(path.read_text()) if path.exists() else {}
    whole = {name: error for name, error in {**before, **errors}.items() if name in WORKFLOWS}
    path.write_text(json.dumps(whole, indent=0) + "\n")
    TABLE.write_text(table(whole))
    print(TABLE.read_text())


if __name__ == "__main__":
    main(ComfyUI(Path(sys.argv[1]), Path(sys.argv[2])), sys.argv[3:])
