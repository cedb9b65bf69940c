"""Measure one GPU: what forwards, decodes and jobs take there, beside what was predicted without one.

    python -m tests.gpu.measure parity                        # a card against this CPU; then the other two calls,
    python -m tests.gpu.measure curves                        # each of at most nine minutes
    python -m tests.gpu.measure jobs --comfyui DIR --comfyui-python PYTHON
    python -m tests.gpu.measure --check                       # every stage on this CPU with small networks

Each prints a table and writes JSON: measured-<stage>.json, or --out. Weights are random and full size: speed does not
depend on them, so no file is needed. Neither is Ray. bench/README.md has what the stages measure.
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

import torch

from tests.gpu.bench import Bench, Figure
from tests.gpu.beside import of_files
from tests.gpu.curves import of_card, of_ends, of_forwards
from tests.gpu.images import of_images
from tests.gpu.jobs import of_jobs
from tests.gpu.parity import of_process, of_rows, of_workflows
from tests.gpu.predictions import PREDICTED
from tests.parity.comfyui import ComfyUI

STAGES: Mapping[str, Sequence[Callable[[Bench], Iterator[Figure]]]] = {
    "parity": (of_card, of_workflows, of_rows, of_process),
    "curves": (of_forwards, of_ends),
    "jobs": (of_jobs, of_images, of_files),
}


def measured(bench: Bench, stages: Sequence[str] = tuple(STAGES)) -> Iterator[Figure]:
    """Yield every figure of the stages, beside what was predicted."""
    for stage in stages:
        for measure in STAGES[stage]:
            with torch.inference_mode():
                for figure in measure(bench):
                    predicted, goal = PREDICTED.get(figure.name, (figure.predicted, figure.goal))
                    yield replace(figure, predicted=predicted, goal=goal)


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.gpu.measure", description="Measure one GPU.")
    parser.add_argument("stages", nargs="*", choices=(*STAGES, []), help="all, if none is named")
    parser.add_argument("--check", action="store_true", help="small networks on the CPU: that measuring works")
    parser.add_argument("--comfyui", type=Path, metavar="DIR", help="a ComfyUI to measure beside")
    parser.add_argument("--comfyui-python", type=Path, default=Path(sys.executable), metavar="PYTHON")
    parser.add_argument("--out", type=Path, help="default: measured-<stages>.json")
    given = parser.parse_args(arguments)
    if not given.check and not torch.cuda.is_available():
        print("torch finds no GPU here; --check runs every stage on the CPU, with small networks", file=sys.stderr)
        return 2
    beside = ComfyUI(given.comfyui.absolute(), given.comfyui_python.absolute()) if given.comfyui else None
    bench = Bench(torch.device("cpu" if given.check else "cuda"), small=given.check, comfyui=beside)
    stages = given.stages or tuple(STAGES)
    out = given.out or Path(f"measured-{'-'.join(stages)}.json")
    device = torch.cuda.get_device_name() if bench.device.type == "cuda" else platform.processor()
    about = {"device": device, "torch": torch.__version__, "small": bench.small}
    found: list[Figure] = []
    print(f"{'':64} {'measured':>12} {'':8} {'predicted':38} goal")
    for figure in measured(bench, stages):
        found.append(figure)
        print(f"{figure.name:64} {figure.value:12.4g} {figure.unit:8} {figure.predicted:38} {figure.goal}", flush=True)
        # After each, for a call that is cut off.
        out.write_text(json.dumps({**about, "figures": [asdict(one) for one in found]}, indent=1) + "\n")
    return 0 if all(isfinite(figure.value) for figure in found) else 1


if __name__ == "__main__":
    sys.exit(main())
