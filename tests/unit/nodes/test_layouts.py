"""The nodes of layouts, cameras, colours and saved conditionings: what they refuse, and what ComfyUI 0.33 has not."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest
import torch

from serve_app.errors import ModelFileError, NodeError
from serve_app.models.tokenizers.lexicon import Lexicon
from serve_app.nodes.registry import BUILTIN
from serve_app.recipe.recipe import Recipe
from serve_app.store.models.catalog import Catalog


def run(class_type: str, **inputs: Any) -> Any:
    node: Any = BUILTIN[class_type]()
    return getattr(node, node.FUNCTION)(**inputs)


@pytest.mark.parametrize(
    ("angles", "words"),
    [
        ((0, 0, 5.0), "front view eye-level shot medium shot"),
        ((22, -16, 1.9), "front view low-angle shot wide shot"),
        ((23, -15, 2.0), "front-right quarter view eye-level shot medium shot"),
        ((180, 44, 6.0), "back view elevated shot close-up"),
        ((337, 45, 10.0), "front-left quarter view high-angle shot close-up"),
        ((338, 60, 0.0), "front view high-angle shot wide shot"),
        ((360, 15, 5.9), "front view elevated shot medium shot"),
    ],
)
def test_a_camera_says_in_words_where_it_stands(angles: tuple[int, int, float], words: str) -> None:
    around, up, zoom = angles
    assert run("CameraAngle", horizontal_angle=around, vertical_angle=up, zoom=zoom)[1] == words


def test_a_camera_looks_at_the_subject_from_its_side() -> None:
    camera, _ = run("CameraAngle", horizontal_angle=90, vertical_angle=30, zoom=10.0)
    assert camera["position"] == pytest.approx({"x": 3.2 * 0.75**0.5, "y": 0.5 + 1.6, "z": 0.0})
    assert camera["target"] == {"x": 0.0, "y": 0.5, "z": 0.0}
    far, _ = run("CameraAngle", horizontal_angle=0, vertical_angle=0, zoom=0.0)
    assert far["position"] == pytest.approx({"x": 0.0, "y": 0.5, "z": 6.0})


@pytest.mark.parametrize("bboxes", ["{", '"x"', [1], [{"x": 1}], [{"bbox": ["a", 1, 2, 3]}], 5])
def test_what_holds_no_boxes_is_an_error(bboxes: Any) -> None:
    with pytest.raises(NodeError, match="bbox"):
        run("CreateBoundingBoxes", width=64, height=64, editor_state=[], bboxes=bboxes)


def test_the_page_is_shown_the_canvas_and_what_is_linked() -> None:
    box = {"x": 1, "y": 2, "width": 3, "height": 4}
    made = run("CreateBoundingBoxes", width=64, height=96, editor_state=[], bboxes=[{**box, "score": 1}])
    assert made["ui"] == {"dims": [64, 96], "input_bboxes": [box]}
    assert run("CreateBoundingBoxes", width=64, height=96, editor_state=[box])["ui"] == {"dims": [64, 96]}


@pytest.mark.parametrize("class_type", ["DrawBBoxes", "CropByBBoxes"])
def test_boxes_without_sides_are_an_error(class_type: str) -> None:
    more = {"output_width": 64, "output_height": 64, "padding": 0} if class_type == "CropByBBoxes" else {}
    with pytest.raises(NodeError, match="width and height"):
        run(class_type, image=torch.zeros(1, 8, 8, 3), bboxes=[[{"x": 1}]], **more)


def test_images_without_boxes_are_not_cut() -> None:
    images = torch.rand(2, 8, 9, 3)
    sizes = {"output_width": 64, "output_height": 64, "padding": 0}
    for none in ([], [[]], [[], []]):
        assert run("CropByBBoxes", image=images, bboxes=none, **sizes)[0] is images


def test_a_box_outside_an_image_of_few_pixels_is_black() -> None:
    sizes = {"output_width": 64, "output_height": 72, "padding": 0, "keep_aspect": "pad"}
    box = {"x": 30, "y": 0, "width": 4, "height": 4}
    (crops,) = run("CropByBBoxes", image=torch.rand(2, 3, 9, 3), bboxes=[[box], [{**box, "x": 0}]], **sizes)
    assert (crops.shape, crops[0].any().item(), crops[1].any().item()) == ((2, 72, 64, 3), False, True)


def test_colours_are_transferred_between_images_without_alpha() -> None:
    images = torch.rand(1, 4, 4, 4)
    common = {"method": "mkl_lab", "source_stats": {"source_stats": "uniform"}}
    with pytest.raises(NodeError, match="4 and 3 channels"):
        run("ColorTransfer", image_target=images, image_ref=images[..., :3], strength=1.0, **common)
    assert run("ColorTransfer", image_target=images, image_ref=images, strength=0, **common)[0] is images


def test_masks_are_one_or_as_many_as_the_images() -> None:
    images, masks = torch.rand(3, 8, 8, 3), torch.ones(2, 8, 8)
    sizes = {"width": 64, "height": 64, "pad_factor": 1.0, "grow_mask": 0, "background": "#000000"}
    with pytest.raises(NodeError, match="3 images and 2 masks"):
        run("ImageCropToMask", images=images, masks=masks, **sizes)
    empty, _ = (run("ImageCropToMask", images=images, masks=torch.full((1, 8, 8), m), **sizes)[0] for m in (0.0, 1.0))
    # A mask that marks nothing marks everything, turned around.
    assert empty.shape == (3, 64, 64, 3)
    assert empty.max() > 0.5


def test_a_histogram_is_shown_beneath_the_curve() -> None:
    (curve,) = run("CurveEditor", curve={"points": [[1, 1], [0, 0.5]], "interpolation": "linear"})
    assert run("CurveEditor", curve=curve, histogram=[1, 2]) == {"ui": {"histogram": [1, 2]}, "result": (curve,)}


@pytest.mark.parametrize(
    ("drawn", "shown"),
    [
        ({"points": [[1, 1], [0, 0.5]], "interpolation": "linear"}, "LinearCurve(points=[(0.0, 0.5), (1.0, 1.0)])"),
        ({"points": [[0, 0]]}, "MonotoneCubicCurve(points=[(0.0, 0.0)])"),
        ([[0, 0]], "MonotoneCubicCurve(points=[(0.0, 0.0)])"),
    ],
)
def test_a_curve_is_shown_as_comfyui_shows_its_own(drawn: Any, shown: str) -> None:
    (curve,) = run("CurveEditor", curve=drawn)
    assert run("PreviewAny", source=curve)["ui"]["text"] == (shown,)


@pytest.mark.parametrize("drawn", [{}, 3, "x", [[1]]])
def test_a_curve_without_points_is_an_error(drawn: Any) -> None:
    with pytest.raises(NodeError, match="must have points"):
        run("CurveEditor", curve=drawn)


@pytest.mark.parametrize(
    ("class_type", "name", "more"),
    [
        ("SelectModelDevice", "model", {"device": "cpu"}),
        ("SelectCLIPDevice", "clip", {"device": "default"}),
        ("SelectVAEDevice", "vae", {"device": "default"}),
        ("MultiGPU_WorkUnits", "model", {"max_gpus": 2}),
    ],
)
def test_where_a_model_runs_is_not_a_workflows_to_say(class_type: str, name: str, more: dict[str, Any]) -> None:
    recipe = Recipe("backbone", "checkpoints", "a.safetensors")
    assert run(class_type, **{name: recipe}, **more) == (recipe,)


class _Files:
    """Keeps what is saved in a folder of embeddings."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    async def save(self, area: str, prefix: str, suffix: str, contents: list[bytes], **_: Any) -> list[dict[str, Any]]:
        [data] = contents
        (self.folder / f"saved{suffix}").write_bytes(data)
        return [{"filename": f"saved{suffix}", "subfolder": prefix, "type": area}]


class _Models:
    def __init__(self, models: Path) -> None:
        self.lexicon = Lexicon(Catalog(models))

    async def saved_conditioning(self, name: str) -> Any:
        return self.lexicon.conditioning(name)


def test_a_saved_conditioning_is_loaded_as_it_was(tmp_path: Path) -> None:
    (tmp_path / "embeddings").mkdir()
    references = [torch.rand(1, 4, 2, 2), torch.rand(1, 4, 3, 2)]
    options: dict[str, Any] = {
        "pooled_output": torch.rand(1, 5),
        "reference_latents": references,
        "guidance": 3.5,
        "control": None,
    }
    cond = torch.rand(1, 7, 5).half()
    saving = run(
        "SaveConditioning",
        conditioning=[[(cond, options)]],
        filename_prefix=["c"],
        store=[_Files(tmp_path / "embeddings")],
    )
    shown = asyncio.run(saving)
    assert shown["ui"]["conditioning"] == [{"filename": "saved.safetensors", "subfolder": "c", "type": "output"}]
    loading = run("ConditioningLoader", conditioning_name="saved.safetensors", runtime=_Models(tmp_path))
    [(loaded, of)] = asyncio.run(loading)[0]
    assert torch.equal(loaded, cond)
    assert loaded.dtype == cond.dtype
    assert of.keys() == {"pooled_output", "reference_latents", "guidance"}
    assert torch.equal(of["pooled_output"], options["pooled_output"])
    assert all(map(torch.equal, of["reference_latents"], references))
    assert of["guidance"] == 3.5


def test_what_no_file_holds_is_not_saved(tmp_path: Path) -> None:
    entry = (torch.rand(1, 7, 5), {"control": object()})
    with pytest.raises(NodeError, match="'control', a object"):
        asyncio.run(run("SaveConditioning", conditioning=[[entry]], filename_prefix=["c"], store=[_Files(tmp_path)]))
    with pytest.raises(NodeError, match="2 entries"):
        asyncio.run(
            run("SaveConditioning", conditioning=[[entry] * 2], filename_prefix=["c"], store=[_Files(tmp_path)])
        )


def test_a_file_of_another_kind_is_no_conditioning(tmp_path: Path) -> None:
    class Other:
        async def saved_conditioning(self, name: str) -> Any:
            return {"emb_params": torch.rand(2, 3)}, {}

    with pytest.raises(NodeError, match="no saved conditioning"):
        asyncio.run(run("ConditioningLoader", conditioning_name="e.safetensors", runtime=Other()))
    with pytest.raises(ModelFileError):
        Lexicon(Catalog(tmp_path)).conditioning("missing.safetensors")
