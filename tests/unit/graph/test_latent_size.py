"""Empty latents that no sampler here may work on, as a graph's constants have them."""

from __future__ import annotations

from typing import Any

import pytest

from serve_app.graph.latent_size import within_cells
from serve_app.graph.parse import parse
from serve_app.graph.validate import Validated, validate
from serve_app.nodes.registry import specs

SPECS = specs()
MOST = 4096


def checked(empty: dict[str, Any], class_type: str = "EmptyLatentImage", **more: Any) -> Validated:
    """Validate a workflow that samples an empty latent and saves another output that needs none."""
    sampler = {name: ["l", slot] for slot, name in enumerate(("model", "positive", "negative"))}
    settings = {"seed": 1, "steps": 1, "cfg": 1.0, "sampler_name": "euler", "scheduler": "normal", "denoise": 1.0}
    prompt = {
        "e": {"class_type": class_type, "inputs": empty},
        "s": {"class_type": "KSampler", "inputs": {**settings, **sampler, "latent_image": ["e", 0]}},
        "o": {"class_type": "SaveLatent", "inputs": {"samples": ["s", 0], "filename_prefix": "x"}},
        "p": {"class_type": "PreviewAny", "inputs": {"source": "apart"}},
        **more,
    }
    validated = validate(parse(prompt), SPECS, lambda folder: [])
    wrong = {problem.node_id for problem in validated.problems} - {"s"}
    assert not wrong
    right = Validated(validated.graph, ("o", "p"), ())
    return within_cells(right, MOST)


@pytest.mark.parametrize(
    ("width", "height", "batch", "input_name"),
    [(512, 512, 2, "batch_size"), (1024, 512, 1, "width"), (512, 16384, 4096, "height"), ("1024", "512", "1", "width")],
)
def test_empty_latents_that_no_sampler_may_take_are_refused_with_what_was_given_and_is_allowed(
    width: Any, height: Any, batch: Any, input_name: str
) -> None:
    validated = checked({"width": width, "height": height, "batch_size": batch})
    [problem] = validated.problems
    assert (problem.node_id, problem.extra["input_name"]) == ("e", input_name)
    assert f"width {width}, height {height}, batch_size {batch} make latents of " in problem.message
    assert "which KSampler s would sample at once; latent_cells of the pools here allows 4,096" in problem.message
    assert validated.outputs == ("p",), "only what needs them is left out"


@pytest.mark.parametrize(
    ("width", "length", "batch", "input_name"),
    [(512, 5, 1, "length"), (256, 5, 2, "batch_size"), (1024, 1, 1, "width")],
)
def test_a_video_has_cells_for_every_four_frames_after_the_first(
    width: int, length: int, batch: int, input_name: str
) -> None:
    given = {"width": width, "height": 512, "length": length, "batch_size": batch}
    [problem] = checked(given, "EmptyHunyuanLatentVideo").problems
    assert problem.extra["input_name"] == input_name
    assert "make latents of 8,192 cells" in problem.message
    fits = {"width": 256, "height": 512, "length": 8, "batch_size": 1}
    assert checked(fits, "EmptyHunyuanLatentVideo").problems == ()


def test_empty_latents_up_to_the_limit_are_taken() -> None:
    assert checked({"width": 512, "height": 512, "batch_size": 1}).problems == ()


def test_a_number_that_comes_by_a_link_is_left_to_the_sampler() -> None:
    number: Any = {"n": {"class_type": "PrimitiveInt", "inputs": {"value": 9}}}
    assert checked({"width": 512, "height": 512, "batch_size": ["n", 0]}, **number).problems == ()


def test_empty_latents_that_no_sampler_takes_whole_may_be_larger() -> None:
    picked: Any = {
        "f": {"class_type": "LatentFromBatch", "inputs": {"samples": ["e", 0], "batch_index": 0, "length": 1}},
        "e2": {"class_type": "EmptyLatentImage", "inputs": {"width": 512, "height": 512, "batch_size": 9}},
        "f2": {"class_type": "LatentFromBatch", "inputs": {"samples": ["e2", 0], "batch_index": 0, "length": 1}},
    }
    assert checked({"width": 512, "height": 512, "batch_size": 1}, **picked).problems == ()
