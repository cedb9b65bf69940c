"""Whole workflows against the latents that a ComfyUI beside us gave (golden/beside.npz, written by `beside`)."""

from __future__ import annotations

import pytest

from serve_app.sampling.samplers import SAMPLERS
from serve_app.sampling.sigmas import SCHEDULES
from tests.parity.beside import Fixed, ours
from tests.parity.cases import CASES
from tests.parity.checkpoints import models_dir
from tests.parity.figures import Figures
from tests.parity.stack import Stack

FIGURES = Figures("beside")
FEATURES = [name for name in CASES if not name.startswith("sampler|")]
EVERY_SAMPLER = [f"sampler|{s}|{list(SCHEDULES)[i % len(SCHEDULES)]}" for i, s in enumerate(SAMPLERS)]
"""Each sampler once, the schedules in turn. The table beside.md has every pair."""

AMPLIFIED = {"sampler|lms|linear_quadratic": 3e-4}
"""LMS extrapolates over four levels, which multiplies the rounding of the convolutions before it."""


@pytest.fixture(scope="module")
def stack(tmp_path_factory):
    stack = Stack(models_dir("mini15", "lora", "controlnet"), tmp_path_factory.mktemp("files"), {"Fixed": Fixed})
    yield stack
    stack.engine.close()


@pytest.mark.parametrize("name", [*FEATURES, *EVERY_SAMPLER])
async def test_a_workflow_gives_what_comfyui_gives(stack, name):
    FIGURES.assert_agrees(await ours(stack, CASES[name]), name, AMPLIFIED.get(name, 1e-4))
