"""Stacks of layers are composed as ComfyUI 0.33.0 composes them (golden/layers.npz, by `layers_figures`)."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from serve_app.nodes.layers.blending import MODES
from serve_app.nodes.layers.layers import image_compositor
from tests.parity.figures import GOLDEN
from tests.parity.layer_cases import MODES as THEIRS
from tests.parity.layer_cases import STACKS
from tests.parity.layers_figures import drawn

FIGURES = dict(np.load(GOLDEN / "layers.npz"))
TOLERANCE = 1e-4


class Shown:
    """Keeps what is shown nowhere."""

    async def save(self, area: str, prefix: str, suffix: str, contents: list[bytes], **_: Any) -> list[dict[str, Any]]:
        return [{"filename": f"{number}{suffix}", "subfolder": "", "type": area} for number in range(len(contents))]


def test_the_modes_are_comfyuis() -> None:
    assert tuple(THEIRS) == MODES


@pytest.mark.parametrize("name", STACKS)
async def test_a_stack_is_composed_as_by_comfyui(name: str) -> None:
    case = STACKS[name]
    document: dict[str, Any] = {"version": 1, "layers": list(map(drawn, case["items"]))}
    document |= {"canvas": case["canvas"]} if "canvas" in case else {}
    digests = FIGURES[f"{name}|digests"].tolist()
    state = {**case["state"], "inputs": digests} if "state" in case else ""
    made = await image_compositor(document, {}, {}, Shown(), state)  # type: ignore[arg-type]
    assert made["ui"]["compositor_inputs"] == digests
    assert len(made["ui"]["compositor_layers"]) == len(digests)
    assert "compositor_state_stale" not in made["ui"]
    for value, slot in zip(made["result"], ("image", "mask"), strict=True):
        torch.testing.assert_close(value, torch.from_numpy(FIGURES[f"{name}|{slot}"]), atol=TOLERANCE, rtol=TOLERANCE)
