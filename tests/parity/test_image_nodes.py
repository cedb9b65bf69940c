"""What the image nodes make of the same images as ComfyUI's."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from serve_app.nodes.registry import BUILTIN
from tests.parity.figures import Figures
from tests.parity.image_cases import CASES, drawn

FIGURES = Figures("nodes_image")

THROUGH_BYTES = ("lanczos", "colours", "matched")
"""Cases that Pillow resizes or recolours in 8 bits, where a last bit can turn a value by one."""

ROUNDED = {"blur 12 10.0": 2e-6, "sharpen 1 1.0 1.0": 2e-6, "sharpen 3 5.0 5.0": 2e-5}
"""Cases where ComfyUI's one sum over all taps rounds by so much: float64 lies on ours, within a third of it."""


def made(name: str) -> list[Any]:
    class_type, inputs = CASES[name]
    node_class: Any = BUILTIN[class_type]
    arguments = {key: drawn(value) for key, value in inputs.items()}
    given = {key: value.clone() for key, value in arguments.items() if isinstance(value, torch.Tensor)}
    outputs = getattr(node_class(), node_class.FUNCTION)(**arguments)
    assert all(torch.equal(arguments[key], value) for key, value in given.items()), "an input was changed in place"
    return list(outputs)


@pytest.mark.parametrize("name", CASES)
def test_a_node_makes_of_images_what_comfyui_makes(name: str) -> None:
    outputs = made(name)
    assert len(outputs) == sum(key.startswith(f"{name}|") for key in FIGURES.names)
    for i, ours in enumerate(outputs):
        theirs = FIGURES[f"{name}|{i}"]
        if not isinstance(ours, torch.Tensor):
            assert ours == theirs
            continue
        assert ours.dtype == theirs.dtype
        assert ours.shape == theirs.shape
        through_bytes = any(word in name for word in THROUGH_BYTES)
        tolerance = 1 / 255 + 1e-6 if through_bytes else ROUNDED.get(name, 1e-6)
        assert (ours - theirs).abs().max() <= tolerance
