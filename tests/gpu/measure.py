"""Measure one GPU: what forwards, decodes and jobs take there, beside what was predicted without one.

    python -m tests.gpu --comfyui DIR --comfyui-python PYTHON   # the tests of a GPU, and all of this
    python -m tests.gpu.measure parity                          # some stages
    python -m tests.gpu.measure --check                         # every stage on this CPU with small networks

It writes a table, measured.md, and JSON, measured.json, after each figure, and begins nothing more once --minutes are
over. Weights are random: speed does not depend on them, so no file is needed. Neither is Ray. bench/README.md has what
the stages measure.
"""

from __future__ import annotations

import argparse
import json
import platform
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, replace
from math import isfinite
from pathlib import Path
from time import monotonic

import torch

from tests.gpu.bench import Bench, Figure
from tests.gpu.beside import of_files
from tests.gpu.curves import of_card, of_ends, of_forwards
from tests.gpu.images import of_images
from tests.gpu.jobs import of_jobs
from tests.gpu.parity import of_process, of_rows, of_workflows
from tests.gpu.predictions import PREDICTED
from tests.gpu.transformers import of_transformers
from tests.parity.comfyui import ComfyUI

STAGES: Mapping[str, Sequence[Callable[[Bench], Iterator[Figure]]]] = {
    "parity": (of_card, of_workflows, of_rows, of_process),
    "curves": (of_forwards, of_ends),
    "transformers": (of_transformers,),
    "jobs": (of_jobs, of_images, of_files),
}
MINUTES = 45.0
"""How long all of it may take, with the tests before."""


def measured(bench: Bench, stages: Sequence[str] = tuple(STAGES), until: float | None = None) -> Iterator[Figure]:
    """Yield every figure of the stages, beside what was predicted. until: by `monotonic`, when nothing more begins."""
    for measure in (measure for stage in stages for measure in STAGES[stage]):
        with torch.inference_mode():
            for figure in measure(bench):
                predicted, goal = PREDICTED.get(figure.name, (figure.predicted, figure.goal))
                yield replace(figure, predicted=predicted, goal=goal)
                if until is not None and monotonic() > until:
                    return


def table(about: Mapping[str, object], found: Sequence[Figure]) -> str:
    """Return the figures as a table in Markdown; what is of ComfyUI has a name that says so."""
    lines = [f"{', '.join(f'{name}: {value}' for name, value in about.items())}", ""]
    lines += ["| what | measured | predicted | goal |", "|---|---|---|---|"]
    lines += [f"| {one.name} | {one.value:.4g} {one.unit} | {one.predicted} | {one.goal} |" for one in found]
    return "\n".join(lines) + "\n"


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.gpu.measure", description="Measure one GPU.")
    parser.add_argument("stages", nargs="*", choices=(*STAGES, []), help="all, if none is named")
    parser.add_argument("--check", action="store_true", help="small networks on the CPU: that measuring works")
    parser.add_argument("--comfyui", type=Path, metavar="DIR", help="a ComfyUI to measure beside")
    parser.add_argument("--comfyui-python", type=Path, default=Path(sys.executable), metavar="PYTHON")
    parser.add_argument("--minutes", type=float, default=MINUTES, help="after which nothing more begins")
    parser.add_argument("--out", type=Path, default=Path("measured.json"), help="the table is beside it, as .md")
    given = parser.parse_args(arguments)
    if not given.check and not torch.cuda.is_available():
        print("torch finds no GPU here; --check runs every stage on the CPU, with small networks", file=sys.stderr)
        return 2
    beside = ComfyUI(given.comfyui.absolute(), given.comfyui_python.absolute()) if given.comfyui else None
    bench = Bench(torch.device("cpu" if given.check else "cuda"), small=given.check, comfyui=beside)
    stages = given.stages or tuple(STAGES)
    until = monotonic() + 60 * given.minutes
    device = torch.cuda.get_device_name() if bench.device.type == "cuda" else platform.processor()
    about = {"device": device, "torch": torch.__version__, "small": bench.small}
    found: list[Figure] = []
    print(f"{'':64} {'measured':>12} {'':8} {'predicted':38} goal")
    for figure in measured(bench, stages, until):
        found.append(figure)
        print(f"{figure.name:64} {figure.value:12.4g} {figure.unit:8} {figure.predicted:38} {figure.goal}", flush=True)
        # After each, for a call that is cut off.
        given.out.write_text(json.dumps({**about, "figures": [asdict(one) for one in found]}, indent=1) + "\n")
        given.out.with_suffix(".md").write_text(table(about, found))
    if monotonic() > until:
        print(f"the {given.minutes:g} minutes are over, and not all was measured", file=sys.stderr)
        return 1
    return 0 if all(isfinite(figure.value) for figure in found) else 1


if __name__ == "__main__":
    sys.exit(main())
