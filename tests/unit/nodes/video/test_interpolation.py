"""What FrameInterpolate asks of a network, and what it refuses; its figures are in `tests/parity/seeing`."""

from __future__ import annotations

from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from serve_app.errors import NodeError
from serve_app.nodes.video.interpolation import frame_interpolate, frame_interpolation_model_loader

MODEL = frame_interpolation_model_loader("a.safetensors")


class Runtime:
    """RUNTIME of a network that shows between two frames which share of the way it is."""

    def __init__(self) -> None:
        self.asked: list[torch.Size] = []

    async def family(self, recipe: Any) -> Any:
        return SimpleNamespace(title="FILM", smallest=8, multiple=16)

    async def ask_image_model(
        self, model: Any, batches: Sequence[Tensor], shares: Sequence[float]
    ) -> list[dict[str, Tensor]]:
        self.asked = [batch.shape for batch in batches]
        between = [
            torch.cat([torch.full_like(batch[:1], share) for _ in batch[1:] for share in shares]) for batch in batches
        ]
        return [{"frames": one} for one in between]


async def test_each_frame_is_followed_by_those_between_and_looked_at_in_parts() -> None:
    frames, runtime = torch.rand(7, 12, 20, 3), Runtime()
    made = await frame_interpolate(MODEL, frames, 4, runtime)  # type: ignore[arg-type]
    assert made.shape == (25, 12, 20, 3)
    assert torch.equal(made[::4], frames)
    assert made[1::4].unique().tolist() == [0.25]
    assert made[3::4].unique().tolist() == [0.75]
    assert runtime.asked == [(5, 3, 16, 32), (3, 3, 16, 32)]


async def test_one_frame_stays_as_it_is_and_small_ones_are_refused() -> None:
    frames = torch.rand(2, 7, 20, 3)
    runtime: Any = Runtime()
    assert await frame_interpolate(MODEL, frames[:1], 2, runtime) is not None
    with pytest.raises(NodeError, match="the images are 20×7; FILM takes sides of 8 pixels and more"):
        await frame_interpolate(MODEL, frames, 2, runtime)
    assert runtime.asked == []
