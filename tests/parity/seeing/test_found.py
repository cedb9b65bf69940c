"""SDPose and RT-DETR, and their nodes, against ComfyUI's (golden/found.npz, by `found_figures`), in float32."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from serve_app.errors import ModelFileError, NodeError
from serve_app.models.families.family import BackboneFamily, Family
from serve_app.models.families.unet.sdpose import SdPose
from serve_app.models.families.vision.rt_detr import RtDetr4
from serve_app.models.files.checkpoint import Checkpoint
from serve_app.models.files.tensors import Tensors
from serve_app.nodes.detection.heatmaps import keypoints_of
from serve_app.nodes.detection.objects import rtdetr_detect
from serve_app.nodes.detection.poses import sdpose_draw_keypoints, sdpose_face_b_boxes, sdpose_keypoint_extractor
from serve_app.nodes.image.layout_drawing import COCO
from serve_app.recipe.recipe import Recipe
from serve_app.values import Search
from tests.parity.figures import GOLDEN
from tests.parity.seeing import cases, found_cases

FIGURES = np.load(GOLDEN / "found.npz")
KEYS = json.loads((GOLDEN / "found_keys.json").read_text())
VAE = Recipe("vae", "vae", "none")
PIXELS, AMPLIFIED = 2e-3, 0.02
"""How far keypoints lie from ComfyUI's, but for this share of them: random weights draw some heatmaps that are almost
flat where they are highest, and there a step of Newton's amplifies their difference of 1e-6."""


class Runtime:
    """RUNTIME of the nodes here: networks of files in a folder, as recipes name them."""

    def __init__(self, folder: Path) -> None:
        self.networks: dict[str, tuple[BackboneFamily, Any]] = {}
        for name, shapes in KEYS.items():
            path = folder / f"{name}.safetensors"
            save_file(cases.positive(cases.weights(shapes)), path)
            family, network = Checkpoint(path).load("backbone")
            assert isinstance(family, BackboneFamily)
            self.networks[name] = family, network

    async def family(self, recipe: Recipe) -> Family:
        return self.networks[recipe.name][0]

    async def encode(self, vae: Recipe, images: Tensor) -> Tensor:
        return found_cases.encoded(images)

    async def search(self, backbone: Recipe, request: Search) -> Any:
        family, network = self.networks[backbone.name]
        family.check_search(request)
        work = family.searched(network, request)
        with torch.inference_mode():
            while True:
                try:
                    next(work)
                except StopIteration as end:
                    return end.value


@pytest.fixture(scope="module")
def runtime(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(SdPose, "image_size", found_cases.SDPOSE_SIZE)
        patch.setattr(RtDetr4, "image_size", found_cases.RT_DETR_SIDE)
        patch.setattr(RtDetr4, "queries", found_cases.RT_DETR_QUERIES)
        yield Runtime(tmp_path_factory.mktemp("found"))


def model(name: str) -> Recipe:
    return Recipe("backbone", "checkpoints", name)


@pytest.mark.parametrize("name", found_cases.BOXES)
async def test_poses_are_comfyuis(name: str, runtime: Any) -> None:
    given = found_cases.BOXES[name]
    frames = await sdpose_keypoint_extractor(model("sdpose"), VAE, found_cases.pictures(), 2, runtime, given)
    people = [person for frame in frames for person in frame["people"]]
    assert [len(frame["people"]) for frame in frames] == FIGURES[f"people|{name}"].tolist()
    assert {(frame["canvas_width"], frame["canvas_height"]) for frame in frames} == {(110, 150)}
    found = np.array([number for person in people for part in person.values() for number in part])
    difference = np.abs(found - FIGURES[f"poses|{name}"])
    assert difference[2::3].max() <= 1e-5, "of scores"
    assert np.quantile(difference, 1 - AMPLIFIED) <= PIXELS


def test_keypoints_of_heatmaps_are_comfyuis() -> None:
    points, scores = keypoints_of(found_cases.heatmaps("heatmaps"), found_cases.SDPOSE_SIZE)
    assert (scores == FIGURES["scores"]).all()
    assert np.abs(points - FIGURES["points"]).max() <= 1e-4
    assert (points[7] == -1).all(), "nothing of it is above 0"


@pytest.mark.parametrize("name", found_cases.DRAWN)
def test_drawings_are_comfyuis_to_the_pixel(name: str) -> None:
    drawn = sdpose_draw_keypoints(found_cases.people(), **{**found_cases.USUAL, **found_cases.DRAWN[name]})
    assert drawn.any()
    assert (drawn.mul(255).round().byte().numpy() == FIGURES[f"drawn|{name}"]).all()


@pytest.mark.parametrize(("scale", "square"), found_cases.FACES)
def test_boxes_of_faces_are_comfyuis(scale: float, square: bool) -> None:
    boxes = sdpose_face_b_boxes(found_cases.people(), scale, square)
    found = [[*box.values()] for frame in boxes for box in frame]
    assert found == FIGURES[f"faces|{scale} {square}"].tolist()


@pytest.mark.parametrize("name", found_cases.OBJECTS)
async def test_objects_are_comfyuis(name: str, runtime: Any) -> None:
    asked = found_cases.OBJECTS[name]
    boxes = await rtdetr_detect(model("rt_detr"), found_cases.pictures(), **asked, runtime=runtime)
    found = np.array([[*{**box, "label": COCO.index(box["label"])}.values()] for frame in boxes for box in frame])
    expected = FIGURES[f"objects|{name}"]
    assert [len(frame) for frame in boxes] == FIGURES[f"objects of|{name}"].tolist()
    assert (found[:, 4] == expected[:, 4]).all(), "the labels are others"
    assert np.abs(found[:, 5] - expected[:, 5]).max() <= 1e-5
    assert np.abs(found[:, :4] - expected[:, :4]).max() <= 1e-5 * 150


async def test_a_network_that_finds_something_else_is_refused(runtime: Any) -> None:
    with pytest.raises(NodeError, match="a backbone of RT-DETR v4 does not find poses; one of SDPose does"):
        await sdpose_keypoint_extractor(model("rt_detr"), VAE, found_cases.pictures(), 2, runtime)
    with pytest.raises(NodeError, match="SDPose does not find objects of known kinds; one of RT-DETR v4 does"):
        await rtdetr_detect(model("sdpose"), found_cases.pictures(), 0.5, "all", 100, runtime)


def test_a_network_of_other_kinds_than_cocos_is_refused() -> None:
    shapes = {name: tuple(shape) for name, shape in KEYS["rt_detr"].items()}
    shapes["decoder.enc_score_head.weight"] = (365, *shapes["decoder.enc_score_head.weight"][1:])
    with pytest.raises(ModelFileError, match="finds 365 kinds of objects; supported are 80"):
        RtDetr4.probe(Tensors(shapes, "'a.safetensors'"))
