"""Context windows of a video's frames: which there are, and how what is made in them is blended."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import pytest
import torch
from torch import Tensor

from serve_app.errors import NodeError
from serve_app.recipe.context import ContextWindows
from serve_app.sampling.forward import Piece
from serve_app.sampling.guidance.windows import Window, WindowedEvaluation, needed_windows, shuffled, windows

STATIC = ContextWindows(4, 2, "standard_static", 1, False, "pyramid", True)


def runs(patch: ContextWindows, total: int, step: int = 0) -> list[str]:
    return [" ".join(map(str, frames)) for frames in windows(patch, total, step)]


@pytest.mark.parametrize(
    ("changes", "total", "step", "expected"),
    [
        ({}, 7, 0, ["0 1 2 3", "2 3 4 5", "3 4 5 6"]),
        ({"schedule": "batched"}, 7, 0, ["0 1 2 3", "4 5 6"]),
        ({"schedule": "looped_uniform", "closed": True}, 6, 0, ["0 1 2 3", "2 3 4 5", "4 5 0 1"]),
        ({"schedule": "looped_uniform"}, 6, 1, ["3 4 5 0", "5 0 1 2"]),
        ({"schedule": "standard_uniform"}, 6, 1, ["2 3 4 5", "0 1 2 3"]),
    ],
)
def test_the_windows_of_a_schedule(changes: dict[str, Any], total: int, step: int, expected: list[str]) -> None:
    assert runs(replace(STATIC, **changes), total, step) == expected


def test_a_video_of_one_window_is_not_cut() -> None:
    assert needed_windows(STATIC, torch.zeros(1, 16, 4, 2, 2)) is None
    assert needed_windows(STATIC, torch.zeros(1, 16, 5, 2, 2)) is not None


def test_an_image_has_no_windows() -> None:
    with pytest.raises(NodeError, match="no video's"):
        needed_windows(STATIC, torch.zeros(1, 16, 8, 8))


@dataclass(frozen=True)
class Steered:
    """Inputs with a number for each frame."""

    by_frame: Tensor

    def within(self, area: Any) -> Steered:
        return self

    def in_window(self, window: Window, kept: Any) -> Steered:
        return Steered(window.cut(self.by_frame, kept))


@pytest.mark.parametrize("fuse", ["pyramid", "relative", "flat", "overlap-linear"])
@pytest.mark.parametrize("anchored", [False, True])
def test_a_network_that_takes_each_frame_by_itself_makes_the_same_in_windows(fuse: str, anchored: bool) -> None:
    x, told = torch.randn(2, 3, 11, 2, 2), torch.randn(2, 1, 11, 1, 1)
    piece = Piece(backbone=None, x=x, sigma=1.0, inputs=Steered(told))  # type: ignore[arg-type]
    cut = WindowedEvaluation(replace(STATIC, fuse=fuse, anchored=anchored), 0, 11)
    parts = cut.cut(piece)
    assert [part.x.shape[2] for part in parts] == [4] + [5 if anchored else 4] * 4
    blended = cut.blended([part.x * part.inputs.by_frame for part in parts])  # type: ignore[attr-defined]
    torch.testing.assert_close(blended, x * told)


def test_every_window_has_the_frames_that_are_kept_in_its_first_places() -> None:
    whole = torch.arange(8.0).view(1, 1, 8)
    assert Window((3, 4, 5), 8, anchor=2).cut(whole, [0, 2]).flatten().tolist() == [0, 3, 2, 5]


def test_inputs_that_cannot_be_cut_are_refused() -> None:
    piece = Piece(backbone=None, x=torch.zeros(1, 1, 5, 1, 1), sigma=1.0, inputs=object())  # type: ignore[arg-type]
    with pytest.raises(NodeError, match="context windows are for Wan's"):
        WindowedEvaluation(STATIC, 0, 5).cut(piece)


def test_later_noise_is_that_of_earlier_frames_in_another_order() -> None:
    noise = torch.arange(10.0).view(1, 1, 10, 1, 1)
    made = shuffled(noise, STATIC, 3).flatten().tolist()
    assert made[:4] == [0, 1, 2, 3]
    assert sorted(made[4:6]) == [0, 1]
    assert sorted(made[6:8]) == [2, 3]
    assert noise.flatten().tolist() == list(range(10))
