"""The nodes of conditioning, custom sampling, guiders and model patches give ComfyUI's values on mini15.

golden/custom.npz holds what ComfyUI's own nodes make of the workflows in `custom_cases`, by `make_figures`; the others
are figures of mini15.npz.
"""

from __future__ import annotations

import numpy as np
import pytest
import torch

from tests.parity.beside import ours, relative_error
from tests.parity.cases import MINI15, Case, sampled
from tests.parity.checkpoints import models_dir
from tests.parity.custom_cases import CUSTOM
from tests.parity.figures import GOLDEN, TOLERANCE, Figures
from tests.parity.stack import Stack

CUSTOM_FIGURES = dict(np.load(GOLDEN / "custom.npz"))
MINI15_FIGURES = Figures("mini15")


class MiddleMask:
    """A mask of the middle of 64×64 pixels."""

    RETURN_TYPES = ("MASK",)
    FUNCTION = "get"

    @classmethod
    def INPUT_TYPES(cls):
        return {"required": {}}

    def get(self):
        mask = torch.zeros(1, 64, 64)
        mask[:, 16:48, 16:48] = 1
        return (mask,)


@pytest.fixture(scope="module")
def stack(tmp_path_factory):
    stack = Stack(models_dir("mini15"), tmp_path_factory.mktemp("files"), {"MiddleMask": MiddleMask})
    yield stack
    stack.engine.close()


def test_every_workflow_has_its_figure():
    assert CUSTOM.keys() == CUSTOM_FIGURES.keys()


@pytest.mark.parametrize("name", CUSTOM)
async def test_a_workflow_gives_comfyuis_value(stack, name):
    assert relative_error(await ours(stack, CUSTOM[name]), CUSTOM_FIGURES[name]) < TOLERANCE


def area():
    # Of pixels the node takes no less than 64; the figure's area, the middle 32, was set without it.
    region = {"conditioning": ["positive", 0], "width": 0.5, "height": 0.5, "x": 0.25, "y": 0.25, "strength": 0.8}
    combined = {"conditioning_1": ["positive", 0], "conditioning_2": ["r", 0]}
    return 31, {"r": ("ConditioningSetAreaPercentage", region), "c": ("ConditioningCombine", combined)}


def average():
    both = {"conditioning_to": ["positive", 0], "conditioning_from": ["negative", 0], "conditioning_to_strength": 0.3}
    return 32, {"c": ("ConditioningAverage", both)}


def concat():
    both = {"conditioning_to": ["positive", 0], "conditioning_from": ["negative", 0]}
    return 33, {"c": ("ConditioningConcat", both)}


def timestep_range():
    early = {"conditioning": ["positive", 0], "start": 0.0, "end": 0.5}
    late = {"conditioning": ["negative", 0], "start": 0.5, "end": 1.0}
    combined = {"conditioning_1": ["a", 0], "conditioning_2": ["b", 0]}
    ranged = "ConditioningSetTimestepRange"
    return 34, {"a": (ranged, early), "b": (ranged, late), "c": ("ConditioningCombine", combined)}


def setmask():
    masked = {"conditioning": ["negative", 0], "mask": ["mask", 0], "strength": 1.0, "set_cond_area": "default"}
    combined = {"conditioning_1": ["positive", 0], "conditioning_2": ["m", 0]}
    nodes = {"mask": ("MiddleMask", {}), "m": ("ConditioningSetMask", masked)}
    return 35, {**nodes, "c": ("ConditioningCombine", combined)}


@pytest.mark.parametrize("figure", [area, average, concat, timestep_range, setmask], ids=lambda f: f.__name__)
async def test_a_positive_made_of_several_gives_comfyuis_latents(stack, figure):
    seed, nodes = figure()
    case = Case({**MINI15, **nodes, "k": sampled("euler", "karras", seed, positive=["c", 0])})
    MINI15_FIGURES.assert_agrees(await ours(stack, case), figure.__name__)
