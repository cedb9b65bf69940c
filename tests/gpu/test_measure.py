"""That the measuring of a GPU works, on any machine; what it measures there is of no interest."""

from __future__ import annotations

from math import isfinite

import torch

from tests.gpu.measure import PREDICTED, Bench, measured


def test_every_prediction_has_its_measurement():
    found = list(measured(Bench(torch.device("cpu"), small=True)))
    assert all(isfinite(figure.value) for figure in found)
    names = [figure.name for figure in found]
    assert len(set(names)) == len(names)
    assert set(names) >= set(PREDICTED)
    assert {figure.name: (figure.predicted, figure.goal) for figure in found if figure.predicted} == PREDICTED
