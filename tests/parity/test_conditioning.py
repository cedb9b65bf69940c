"""Areas, masks, ranges, defaults and controls against ComfyUI's own `process_conds` and `calc_cond_batch`.

golden/conditioning.json lists drawn cases: the rows and cells of x, a level, and the options of each entry of both
branches; conditioning.npz holds the masks, in 255ths, and what ComfyUI makes of both branches. The case's seed draws x.
Entry k of a case (positive first) adds 0.1 k, and a control ten times its number, to the phase of the denoiser
x / (1 + σ²) + 0.3 sin(x / (1 + σ) + phase). Relative error at most 1e-5; where ComfyUI's result is zero, so is ours.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import cast

import numpy as np
import pytest
import torch

from serve_app.models.families.unet.unet import UnetInputs
from serve_app.sampling.forward import Backbone, Canvas
from serve_app.sampling.guidance.guidance import Guidance
from serve_app.sampling.guidance.guidance_patches import GuidancePatches
from serve_app.sampling.lazy_sum import value
from serve_app.sampling.samplers.evaluation import Evaluation
from serve_app.sampling.schedules.levels import TableLevels

GOLDEN = Path(__file__).parent / "golden"
CASES = json.loads((GOLDEN / "conditioning.json").read_text())
FIGURES = np.load(GOLDEN / "conditioning.npz")


class Phased:
    """A backbone whose inputs are the phase that an entry adds."""

    device = torch.device("cpu")
    levels = TableLevels()

    def inputs(self, cond, options, role, canvas):
        phase = cond + 10 * options.get("control", 0)
        return UnetInputs(phase.expand(canvas.rows, 1, 1))


class BothBranches:
    """A rule whose denoised is the positive branch and whose uncond is the negative one."""

    patches = GuidancePatches()
    linear = True
    ends = ("positive", "negative")

    def asks(self, evaluation):
        return self.ends

    def combine(self, means, evaluation, branches=None):
        return means["positive"], means["negative"]


def options_of(entry):
    options = dict(entry)
    if "mask" in options:
        options["mask"] = torch.from_numpy(FIGURES[options["mask"]].astype(np.float32)) / 255
    return options


@pytest.mark.parametrize("index", range(len(CASES)))
def test_branches_are_what_comfyui_makes_of_the_same_entries(index):
    case = CASES[index]
    generator = torch.Generator().manual_seed(case["seed"])
    x = torch.randn(case["rows"], 2, case["height"], case["width"], generator=generator)
    conds, count = {}, 0
    for role, listed in case["roles"].items():
        conds[role] = []
        for entry in listed:
            count += 1
            conds[role].append((torch.full((1, 1, 1), 0.1 * count), options_of(entry)))
    guidance = Guidance(cast(Backbone, Phased()), conds, BothBranches(), Canvas(x, x))
    evaluation = Evaluation(x, case["sigma"], 0)
    answers = []
    for piece in guidance.pieces(evaluation):
        phase = cast(UnetInputs, piece.inputs).context.view(-1, 1, 1, 1)
        s = piece.sigma
        answers.append(piece.x / (1 + s**2) + 0.3 * torch.sin(piece.x / (1 + s) + phase))
    assert guidance.take(evaluation, answers) == ()
    for combined, theirs in zip(guidance.combine(evaluation), FIGURES[f"{index}|out"], strict=True):
        ours, wanted = value(combined), torch.from_numpy(theirs)
        assert torch.equal(ours == 0, wanted == 0)
        assert float((ours - wanted).norm()) <= 1e-5 * float(wanted.norm())
