"""Steps of Flux.1, Qwen-Image and Wan at full width, with some of their blocks, beside the planner's and ComfyUI's.

Weights are random. Networks have a part of their blocks, so that they fit a card of 24 GB; both sides have the same.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import torch

from bench.step_jobs import GPU_JOBS, SMALL_JOBS, StepJob
from bench.steps import as_on_a_card, family_of, network, put_in_fp8, rows, step
from serve_app.models.forward_cost import Counting, ForwardCost
from serve_app.models.weights.memory_plan import ACTIVATIONS_MARGIN
from tests.gpu.bench import Bench
from tests.gpu.models import random_weights
from tests.gpu.predictions import at_least, goal, least_s
from tests.gpu.results import Figure

SIDE = Path(__file__).with_name("comfyui_steps.py")
DTYPE = torch.bfloat16


def of_transformers(bench: Bench) -> Iterator[Figure]:
    """Measure a step of each, its activations, and how long ComfyUI's modules take, where one is named."""
    for title, job in (SMALL_JOBS if bench.small else GPU_JOBS).items():
        cost = step_cost(job)
        floor_s = least_s(cost, bench.device)
        module = random_weights(family_of(job), bench.device, DTYPE)
        if job.fp8:
            put_in_fp8(module)
        work = partial(step, job, module, [rows(job, length, bench.device) for length in job.texts])
        took_s, asked_s = bench.seconds(work)
        yield Figure(f"{title}, step", 1000 * took_s, "ms", at_least(floor_s), goal(floor_s))
        yield Figure(f"{title}, host asks for a step", 1000 * asked_s, "ms", "less than the step")
        peak = ACTIVATIONS_MARGIN * cost.peak_bytes / 2**20
        yield Figure(f"{title}, activations", bench.peak_bytes(work) / 2**20, "MiB", f"{peak:.0f} MiB at most")
        del module, work
        if bench.comfyui is not None:
            asked: dict[str, Any] = {"title": title, "repeats": bench.repeats, "small": bench.small}
            theirs = float(bench.comfyui.run(str(SIDE), asked)["seconds"])
            yield Figure(f"{title}, step of ComfyUI", 1000 * theirs, "ms")
            yield Figure(f"{title}, over ComfyUI's speed", theirs / took_s, "", "", "1.0")


def step_cost(job: StepJob) -> ForwardCost:
    """Return the cost of a job's step, as the planner counts it."""
    made, given = network(job), [rows(job, length) for length in job.texts]
    with as_on_a_card(), torch.inference_mode(), Counting() as counting:
        step(job, made, given)
    return ForwardCost(counting.peak_bytes, dict(counting.kernels))
