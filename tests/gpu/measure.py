"""Measures stages of one GPU: what forwards, decodes and jobs take there, beside what was predicted without one.

    python -m tests.gpu.measure parity curves       # these stages, in this process; `python -m tests.gpu` runs them all
    python -m tests.gpu.measure --rehearse jobs     # small networks, on a card that only claims to be one

A stage has several measures, and one that fails keeps no other from being taken. Weights are random: speed does not
depend on them, so no file is needed. Neither is Ray, but for `servers`. bench/README.md has what the stages measure.
"""

from __future__ import annotations

import argparse
import gc
import platform
import sys
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from time import monotonic

import torch

from tests.gpu import rehearsal
from tests.gpu.bench import Bench
from tests.gpu.beside import of_files
from tests.gpu.curves import of_card, of_ends, of_forwards
from tests.gpu.images import of_images
from tests.gpu.jobs import of_jobs
from tests.gpu.parity import of_process, of_rows, of_workflows
from tests.gpu.predictions import PREDICTED
from tests.gpu.results import Failure, Figure, Results, Stage, arguments, out_of
from tests.gpu.servers import of_servers
from tests.gpu.transformers import of_transformers
from tests.parity.comfyui import ComfyUI

STAGES: Mapping[str, Sequence[Callable[[Bench], Iterator[Figure]]]] = {
    "card": (of_card, of_process, of_rows),
    "parity": (of_workflows,),
    "curves": (of_forwards, of_ends),
    "transformers": (of_transformers,),
    "jobs": (of_jobs, of_images, of_files),
    "servers": (of_servers,),
}


def measured(bench: Bench, stage: str, until: float | None = None) -> Iterator[Figure | Failure]:
    """Yield every figure of a stage, beside what was predicted. until: by `monotonic`, when nothing more begins."""
    for measure in STAGES[stage]:
        try:
            with torch.inference_mode(), bench.timeline.enqueueing():
                for figure in measure(bench):
                    predicted, goal = PREDICTED.get(figure.name, (figure.predicted, figure.goal))
                    yield replace(figure, predicted=predicted, goal=goal)
                    if until is not None and monotonic() > until:
                        return
        except Exception as error:
            traceback.print_exc()
            yield Failure(measure.__name__, f"{type(error).__name__}: {error}")
        # What it has left, with its error's frames, is no room of the next.
        gc.collect()
        if bench.device.type == "cuda":
            torch.cuda.empty_cache()


def main(given_arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.gpu.measure", description="Measure stages of one GPU.")
    parser.add_argument("stages", nargs="+", choices=STAGES)
    parser.add_argument("--minutes", type=float, default=60.0, help="after which nothing more begins")
    arguments(parser)
    given = parser.parse_args(given_arguments)
    if given.rehearse:
        rehearsal.begin()
    if not torch.cuda.is_available():
        print("torch finds no GPU here; --rehearse needs none", file=sys.stderr)
        return 2
    beside = ComfyUI(Path(given.comfyui).absolute(), Path(given.comfyui_python).absolute()) if given.comfyui else None
    python = rehearsal.PROGRAM if given.rehearse else Bench.python
    bench = Bench(torch.device("cuda", 0), small=given.rehearse, comfyui=beside, python=python)
    results, until, failures = Results(out_of(given)), monotonic() + 60 * given.minutes, 0
    for stage in given.stages:
        device = torch.cuda.get_device_name()
        results.add(Stage(stage, f"{device}, {platform.machine()}", torch.__version__, given.rehearse))
        for row in measured(bench, stage, until):
            results.add(row)
            failures += isinstance(row, Failure)
            print(row, flush=True)
    if monotonic() > until:
        print(f"the {given.minutes:g} minutes are over, and not all was measured", file=sys.stderr)
    return int(failures > 0 or monotonic() > until)


if __name__ == "__main__":
    sys.exit(main())
