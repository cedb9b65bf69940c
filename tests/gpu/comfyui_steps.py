"""How long a step of ComfyUI's own module takes: run by its interpreter, in its directory.

    python comfyui_steps.py ASKED.json OUT.npz

ASKED: the job's title, how often it is repeated, and whether it is a small one. OUT: the median seconds.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from statistics import median
from time import perf_counter

import numpy as np
import torch

ASKED, OUT = sys.argv[1:3]
# Not this folder, whose modules have names of packages.
sys.path[0] = str(Path(__file__).parents[2])

from bench.step_jobs import GPU_JOBS, SMALL_JOBS  # noqa: E402
from bench.steps_comfyui import draw, forward, network  # noqa: E402

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")


def main() -> None:
    asked = json.loads(Path(ASKED).read_text())
    job = (SMALL_JOBS if asked["small"] else GPU_JOBS)[asked["title"]]
    made = network(job, DEVICE).eval().requires_grad_(False)
    draw(made)
    equal = len(set(job.texts)) == 1
    seconds = []
    for _ in range(asked["repeats"] + 1):
        began = perf_counter()
        for texts in [job.texts] if equal else [(length,) for length in job.texts]:
            forward(made, job, texts, DEVICE)
        if DEVICE.type == "cuda":
            torch.cuda.synchronize()
        seconds.append(perf_counter() - began)
    np.savez(OUT, seconds=median(seconds[1:]))


with torch.inference_mode():
    main()
