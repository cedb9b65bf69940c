"""The nodes of SAM 3 and of SCAIL 2's masks: values in, values out. What its networks make is in tests/parity."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
import torch
from torch import Tensor

from serve_app.errors import NodeError
from serve_app.nodes.registry import BUILTIN
from serve_app.recipe.recipe import Recipe
from serve_app.values import Detected, Detection, Tracking

MODEL = Recipe("backbone", "checkpoints", "sam3.1_multiplex_fp16.safetensors")
IMAGES = torch.rand(2, 4, 8, 3)
BLUE, RED, GREEN = [0.0, 0.0, 1.0], [1.0, 0.0, 0.0], [0.0, 1.0, 0.0]
WHITE = [1.0, 1.0, 1.0]


class Runtime:
    """A runtime that finds the left half and the top of each image, and notes what it was asked."""

    asked: Any = None

    async def search(self, backbone: Recipe, request: Detection | Tracking) -> Any:
        self.asked = request
        if isinstance(request, Tracking):
            return {"packed_masks": None, "n_frames": len(request.images), "scores": []}
        masks = torch.zeros(2, 4, 8)
        masks[0, :, :4] = masks[1, 0] = 1
        return [Detected(masks, [{"x": 0.0, "score": 0.9}]) for _ in request.images]


def called(name: str, *given: Any, **named: Any) -> Any:
    node = BUILTIN[name]
    made = getattr(node(), node.FUNCTION)(*given, **named)  # type: ignore[attr-defined]
    made = asyncio.run(made) if asyncio.iscoroutine(made) else made
    return made[0] if len(made) == 1 else made


def detected(runtime: Runtime, **given: Any) -> Any:
    usual = {"threshold": 0.5, "refine_iterations": 2, "individual_masks": False}
    return called("SAM3_Detect", model=MODEL, image=IMAGES, runtime=runtime, **{**usual, **given})


def test_masks_are_of_all_that_is_found_in_an_image_or_of_each_thing() -> None:
    masks, boxes = detected(Runtime())
    assert masks.shape == (2, 4, 8)
    assert masks[0].sum() == 16 + 4
    assert [len(of_image) for of_image in boxes] == [1, 1]
    assert detected(Runtime(), individual_masks=True)[0].shape == (4, 4, 8)


def test_points_and_boxes_are_given_in_shares_of_the_image() -> None:
    runtime = Runtime()
    box = {"x": 2, "y": 1, "width": 4, "height": 2}
    detected(runtime, positive_coords='[{"x": 4, "y": 1}]', bboxes=[[box], []])
    assert list(runtime.asked.inside) == [(0.5, 0.25)]
    first, second = runtime.asked.boxes
    assert first.tolist() == [[0.5, 0.5, 0.5, 0.5]]
    assert second is None
    detected(runtime, bboxes=box)
    assert [of_image.tolist() for of_image in runtime.asked.boxes] == [[[0.5, 0.5, 0.5, 0.5]]] * 2


@pytest.mark.parametrize("given", ["10, 20", '[{"x": 1}]', "7"])
def test_points_that_are_none_are_refused(given: str) -> None:
    with pytest.raises(NodeError, match="negative_coords is"):
        detected(Runtime(), negative_coords=given)


def test_boxes_that_are_none_are_refused() -> None:
    with pytest.raises(NodeError, match="a box has x, y, width and height"):
        detected(Runtime(), bboxes=[{"x": 1}])


def test_what_is_followed_must_be_said() -> None:
    with pytest.raises(NodeError, match="neither initial_mask nor conditioning"):
        called("SAM3_VideoTrack", IMAGES, MODEL, 0.5, 4, 1, Runtime())
    tracks = called("SAM3_VideoTrack", IMAGES, MODEL, 0.5, 4, 1, Runtime(), initial_mask=torch.ones(4, 8))
    assert tracks["orig_size"] == (4, 8)
    assert not called("SAM3_TrackToMask", tracks, "").any()


def tracks() -> dict[str, Any]:
    """Return three things in two images: one at the right, one at the left later, a small one in the middle."""
    masks = torch.zeros(2, 3, 4, 16, dtype=torch.bool)
    masks[:, 0, :, 12:] = masks[1, 1, :, :4] = masks[:, 2, 0, 6:8] = True
    bits = (masks.unflatten(-1, (-1, 8)) * torch.tensor([1 << bit for bit in range(8)])).sum(-1).to(torch.uint8)
    return {"packed_masks": bits, "n_frames": 2, "scores": [0.9, 0.8, 0.7], "orig_size": (4, 16)}


def test_things_are_chosen_by_their_numbers() -> None:
    all_of_them = called("SAM3_TrackToMask", tracks(), "")
    assert all_of_them.shape == (2, 4, 16)
    assert all_of_them.sum(dim=(1, 2)).tolist() == [18, 34]
    assert called("SAM3_TrackToMask", tracks(), "1, x, 7").sum(dim=(1, 2)).tolist() == [0, 16]


@pytest.mark.parametrize(
    ("by", "colours"), [("none", (BLUE, RED)), ("left_to_right", (RED, None)), ("area", (BLUE, None))]
)
def test_people_have_the_colours_of_their_order(by: str, colours: tuple[Any, Any]) -> None:
    video, reference = called("SCAIL2ColoredMask", tracks(), "", by, False)
    assert video.shape == (2, 4, 16, 3)
    assert reference.tolist() == torch.ones(1, 4, 16, 3).tolist()
    right, left = colours
    assert video[0, 3, 15].tolist() == right
    assert video[0, 3, 8].tolist() == [0.0, 0.0, 0.0]
    if left is not None:
        assert video[1, 3, 0].tolist() == left


def test_in_a_replacement_the_video_is_white_around_people_and_references_black() -> None:
    mask: Tensor = torch.zeros(2, 4, 16)
    mask[:, :, 0] = 1
    video, reference = called("SCAIL2ColoredMask", tracks(), "0", "none", True, ref_track_data=mask)
    assert video[0, 3, 0].tolist() == WHITE
    assert reference.shape == (2, 4, 16, 3)
    assert reference[1, 2, 0].tolist() == BLUE
    assert not reference[:, :, 1:].any()
