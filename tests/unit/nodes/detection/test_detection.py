"""Nodes that find objects and poses: values in, values out. What their networks find is in tests/parity/seeing."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from serve_app.errors import NodeError
from serve_app.models.families.unet.sdpose import SdPose
from serve_app.nodes.registry import BUILTIN
from serve_app.recipe.recipe import Recipe
from serve_app.values import ObjectSearch, PoseSearch

MODEL = Recipe("backbone", "diffusion_models", "a.safetensors")
USUAL = {
    **dict.fromkeys(("draw_body", "draw_hands", "draw_face", "draw_feet", "draw_head"), True),
    "stick_width": 4,
    "face_point_size": 3,
    "score_threshold": 0.3,
}


class Runtime:
    """A runtime that finds two objects in each image, and people in the middle of what it sees."""

    def __init__(self) -> None:
        self.asked: list[Any] = []

    async def family(self, recipe: Recipe) -> SdPose:
        return SdPose((32, 64), (1, 1), (0, 1), 1, context_dim=1024, linear=True, vector_dim=4)

    async def encode(self, vae: Recipe, images: torch.Tensor) -> torch.Tensor:
        return torch.zeros(len(images), 4, images.shape[1] // 8, images.shape[2] // 8)

    async def search(self, backbone: Recipe, request: ObjectSearch | PoseSearch) -> Any:
        self.asked.append(request)
        if isinstance(request, ObjectSearch):
            boxes = torch.tensor([[0.0, 0.0, 0.5, 1.0], [0.25, 0.5, 0.75, 1.0]])
            return [(torch.tensor([0, 16]), boxes, torch.tensor([0.9, 0.4])) for _ in request.images]
        maps = torch.full((len(request.latents), 133, 256, 192), -1.0)
        maps[..., 128, 96] = 1.0
        return maps


async def found(runtime: Runtime, **given: Any) -> Any:
    node: Any = BUILTIN["RTDETR_detect"]
    usual = {"threshold": 0.1, "class_name": "all", "max_detections": 100}
    images = torch.zeros(2, 10, 20, 3)
    [boxes] = await getattr(node(), node.FUNCTION)(model=MODEL, image=images, runtime=runtime, **{**usual, **given})
    return boxes


async def poses(runtime: Runtime, images: torch.Tensor, **given: Any) -> Any:
    node: Any = BUILTIN["SDPoseKeypointExtractor"]
    called = getattr(node(), node.FUNCTION)
    [frames] = await called(model=MODEL, vae=MODEL, image=images, batch_size=16, runtime=runtime, **given)
    return frames


def called(name: str, *given: Any, **named: Any) -> Any:
    node: Any = BUILTIN[name]
    [made] = getattr(node(), node.FUNCTION)(*given, **named)
    return made


async def test_objects_are_boxes_in_pixels_of_the_kind_and_score_that_are_asked_for() -> None:
    first, second = await found(Runtime())
    assert first == second
    assert [(box["label"], box["x"], box["width"], box["height"]) for box in first] == [
        ("person", 0.0, 10.0, 10.0),
        ("dog", 5.0, 10.0, 5.0),
    ]
    assert [box["label"] for box in (await found(Runtime(), threshold=0.5))[0]] == ["person"]
    assert [box["label"] for box in (await found(Runtime(), class_name="dog"))[0]] == ["dog"]
    assert [len(boxes) for boxes in await found(Runtime(), max_detections=1)] == [1, 1]


async def test_poses_are_looked_for_in_each_box_of_an_image() -> None:
    runtime = Runtime()
    box = {"x": 10, "y": 0, "width": 10, "height": 10}
    frames = await poses(runtime, torch.zeros(2, 10, 20, 3), bboxes=[[box, {**box, "x": 30}], [box, box]])
    assert [len(frame["people"]) for frame in frames] == [1, 2], "a box beyond the image holds nothing"
    assert [request.done for request in runtime.asked] == [0, 1, 2]
    assert {request.total for request in runtime.asked} == {3}
    nose = frames[0]["people"][0]["pose_keypoints_2d"][:3]
    assert nose == pytest.approx([10 + 10 * 96 / 192, 10 * 128 / 256, 1.0], abs=0.1)


@pytest.mark.parametrize(
    ("frame", "why"),
    [
        ({"people": []}, "it must have canvas_width"),
        ({"canvas_width": 8, "canvas_height": 8, "people": [{}]}, "pose_keypoints_2d of a person has 0 numbers"),
        (
            {"canvas_width": 8, "canvas_height": 8, "people": [{"pose_keypoints_2d": [float("nan")] * 54}]},
            "a number that is not between",
        ),
    ],
)
def test_what_is_no_pose_is_refused(frame: dict[str, Any], why: str) -> None:
    with pytest.raises(NodeError, match=why):
        called("SDPoseDrawKeypoints", [frame], **USUAL)


def test_no_frames_are_drawn_as_one_black_image() -> None:
    assert called("SDPoseDrawKeypoints", [], **USUAL).shape == (1, 64, 64, 3)


def test_a_person_without_a_face_has_no_box() -> None:
    frames = [{"canvas_width": 8, "canvas_height": 8, "people": [{"face_keypoints_2d": []}, {}]}]
    assert called("SDPoseFaceBBoxes", frames, 1.5, True) == [[]]
