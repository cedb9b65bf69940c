"""That the measuring of a GPU works, on any machine; what it measures there is of no interest."""

from __future__ import annotations

import os
import sys
from math import isfinite
from pathlib import Path

import pytest
import torch

from tests.gpu.bench import Bench
from tests.gpu.beside import SAMPLERS, of_files
from tests.gpu.measure import measured
from tests.gpu.models import SMALL
from tests.gpu.predictions import PREDICTED
from tests.parity.comfyui import ComfyUI

OF_A_CARD_ALONE = {"context of another process"}
"""What a CPU has not got."""
BESIDE_COMFYUI = {"SD 1.5, euler, eight jobs over ComfyUI's speed", "SDXL, loaded by ComfyUI"}
"""What is measured where a ComfyUI is named."""
SAME = 1e-6
"""How far a CPU's results may be from its own, where rows of a forward are others."""


# `python -m tests.gpu.measure --check` is the same by hand.
pytestmark = pytest.mark.long


@pytest.fixture(scope="module")
def found():
    figures = list(measured(Bench(torch.device("cpu"), small=True)))
    assert len({figure.name for figure in figures}) == len(figures)
    return {figure.name: figure for figure in figures}


def test_every_prediction_has_its_measurement(found):
    assert all(isfinite(figure.value) for figure in found.values())
    assert set(PREDICTED) - set(found) == OF_A_CARD_ALONE | BESIDE_COMFYUI
    for name, (predicted, goal) in PREDICTED.items():
        assert name not in found or (found[name].predicted, found[name].goal) == (predicted, goal)


def test_the_goals_of_one_h100_are_beside_what_is_measured():
    goals = {name: goal for name, (_, goal) in PREDICTED.items()}
    assert goals["SD 1.5, image of 1 job"] == "0.22 s"
    assert goals["SD 1.5, images a second of 8 jobs"] == "9"
    assert goals["SD 1.5, euler, eight jobs over ComfyUI's speed"] == "3.5"
    assert goals["SDXL, images a second of 8 jobs"] == "1.5"
    assert goals["SDXL, loaded from the page cache beside another's job"] == "0.6 s"


def test_where_both_are_this_cpu_nothing_is_off(found):
    rows = (", 16 rows in another order", ", 2 rows alone and among 16")
    compared = [figure.value for name, figure in found.items() if ", off a CPU's" in name or name.endswith(rows)]
    assert compared
    assert max(compared) <= SAME


@pytest.mark.comfyui
def test_comfyui_samples_the_same_files_beside():
    home = Path(os.environ["COMFYUI_HOME"])
    comfyui = ComfyUI(home, Path(os.environ.get("COMFYUI_PYTHON", sys.executable)))
    found = {f.name: f.value for f in of_files(Bench(torch.device("cpu"), small=True, comfyui=comfyui))}
    assert set(found) >= BESIDE_COMFYUI
    for model in SMALL:
        assert found[f"{model.name}, euler, eight jobs over ComfyUI's speed"] > 0
        for sampler in SAMPLERS:
            assert found[f"{model.name}, {sampler}, one job over ComfyUI's speed"] > 0
            assert found[f"{model.name}, {sampler}, latents off ComfyUI's"] <= 1e-3
