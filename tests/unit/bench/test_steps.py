"""A step's kernels and bytes at full size, beside what ComfyUI's networks were counted to take."""

from __future__ import annotations

import pytest

from bench.step_jobs import JOBS
from bench.steps import TARGET, counted, ratios, recorded

USUAL = ("Z-Image", "Flux.1 dev fp8", "Wan")
"""What the titles begin with of those that have all kinds of block."""


@pytest.mark.parametrize(
    "title", [title if title.startswith(USUAL) else pytest.param(title, marks=pytest.mark.long) for title in JOBS]
)
def test_a_step_takes_no_more_kernels_and_bytes_than_comfyuis(title: str) -> None:
    pytest.importorskip("comfy_kitchen")
    kernels, nbytes = ratios(counted(JOBS[title]), recorded()[title])
    assert kernels <= TARGET
    assert nbytes <= TARGET
