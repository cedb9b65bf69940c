"""Work that is too much, as a graph's constants have it."""

from __future__ import annotations

from typing import Any

import pytest

from serve_app.config import AppConfig
from serve_app.config.limits import LatentBounds, SizeLimits
from serve_app.config.pool import PoolConfig
from serve_app.graph.bounds import within_bounds
from serve_app.graph.parse import parse
from serve_app.graph.validate import Validated, validate
from serve_app.limits import REFUSALS
from serve_app.nodes.registry import specs

SPECS = specs()
MOST = LatentBounds(4096, 4096**2)


SAMPLER = {
    **{name: ["l", slot] for slot, name in enumerate(("model", "positive", "negative"))},
    "seed": 1,
    "steps": 1,
    "cfg": 1.0,
    "sampler_name": "euler",
    "scheduler": "normal",
    "denoise": 1.0,
}


def checked(
    empty: dict[str, Any], class_type: str = "EmptyLatentImage", most: LatentBounds = MOST, **more: Any
) -> Validated:
    """Validate a workflow that samples an empty latent and saves another output that needs none."""
    prompt = {
        "l": {"class_type": "CheckpointLoaderSimple", "inputs": {"ckpt_name": "a"}},
        "e": {"class_type": class_type, "inputs": empty},
        "s": {"class_type": "KSampler", "inputs": SAMPLER | {"latent_image": ["e", 0]}},
        "o": {"class_type": "SaveLatent", "inputs": {"samples": ["s", 0], "filename_prefix": "x"}},
        "p": {"class_type": "PreviewAny", "inputs": {"source": "apart"}},
        **more,
    }
    validated = validate(parse(prompt), SPECS, lambda folder: [])
    wrong = {problem.node_id for problem in validated.problems} - {"s", "s2", "l"}
    assert not wrong
    right = Validated(validated.graph, ("o", "p"), ())
    return within_bounds(right, SPECS, SizeLimits(), most)


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


def test_a_number_that_comes_by_a_link_is_left_to_the_sampler_unless_it_is_a_constant() -> None:
    given = {"width": 512, "height": 512, "batch_size": ["n", 0]}
    computed: Any = {"n": {"class_type": "StringLength", "inputs": {"string": "nine"}}}
    assert checked(given, **computed).problems == ()
    constant: Any = {"n": {"class_type": "PrimitiveInt", "inputs": {"value": 9}}}
    [problem] = checked(given, **constant).problems
    assert "batch_size 9 make latents of 36,864 cells" in problem.message


def test_empty_latents_that_no_sampler_takes_whole_may_be_larger() -> None:
    picked: Any = {
        "f": {"class_type": "LatentFromBatch", "inputs": {"samples": ["e", 0], "batch_index": 0, "length": 1}},
        "e2": {"class_type": "EmptyLatentImage", "inputs": {"width": 512, "height": 512, "batch_size": 9}},
        "f2": {"class_type": "LatentFromBatch", "inputs": {"samples": ["e2", 0], "batch_index": 0, "length": 1}},
    }
    assert checked({"width": 512, "height": 512, "batch_size": 1}, **picked).problems == ()


def test_latents_that_other_nodes_repeat_and_enlarge_count_as_large_as_they_become() -> None:
    larger: Any = {
        "r": {"class_type": "RepeatLatentBatch", "inputs": {"samples": ["e", 0], "amount": 3}},
        "u": {
            "class_type": "LatentUpscaleBy",
            "inputs": {"samples": ["s", 0], "upscale_method": "area", "scale_by": 2},
        },
    }
    for name, cells in (("r", "3,072"), ("u", "4,096")):
        sampler = {"class_type": "KSampler", "inputs": SAMPLER | {"latent_image": [name, 0]}}
        fits = {"width": 256, "height": 256, "batch_size": 1}
        given = {
            **larger,
            "s2": sampler,
            "o": {"class_type": "SaveLatent", "inputs": {"samples": ["s2", 0], "filename_prefix": "x"}},
        }
        assert checked(fits, **given).problems == ()
        [problem] = checked(fits | {"batch_size": 2}, **given).problems
        assert problem.node_id == name
        assert f"make latents of {int(cells.replace(',', '')) * 2:,} cells" in problem.message


def test_one_large_image_is_refused_where_its_cells_make_too_many_pairs() -> None:
    def pairs(empty: dict[str, Any]) -> Validated:
        return checked(empty, most=LatentBounds(10**6, 10**6))

    assert pairs({"width": 256, "height": 128, "batch_size": 3}).problems == ()
    [problem] = pairs({"width": 512, "height": 256, "batch_size": 1}).problems
    assert "make latents of 4,194,304 pairs of cells" in problem.message
    assert "latent_pairs of the pools here allows 1,000,000" in problem.message


def graph(**nodes: tuple[str, dict[str, Any]]) -> Validated:
    """Return a graph of nodes by id that is taken as right, of which the last is the output."""
    prompt = {node_id: {"class_type": class_type, "inputs": inputs} for node_id, (class_type, inputs) in nodes.items()}
    return Validated(parse(prompt), (list(nodes)[-1],), ())


def said(validated: Validated, **limits: int) -> str:
    """Return what is wrong with a graph, with the node; "" if nothing is."""
    found = within_bounds(validated, SPECS, SizeLimits(**limits), None)
    assert bool(found.problems) != bool(found.outputs), "what costs too much is no output any more"
    return "; ".join(map(str, found.problems))


@pytest.mark.parametrize("class_type", ["KSampler", "BasicScheduler"])
def test_a_schedule_of_too_many_levels_is_refused_by_what_its_denoise_makes_of_its_steps(class_type: str) -> None:
    latent = {"latent_image": ["e", 0]} if class_type == "KSampler" else {}

    def of(steps: Any, denoise: Any) -> str:
        empty = ("EmptyLatentImage", {"width": 64, "height": 64, "batch_size": 1})
        number = ("PrimitiveFloat", {"value": 1e-7})
        return said(graph(e=empty, n=number, s=(class_type, {"steps": steps, "denoise": denoise, **latent})))

    before = REFUSALS["limits.levels"]
    allowed = "levels; limits.levels of the configuration allows 100,000"
    assert of(10, 1e-7) == f"{class_type} s: steps 10 and denoise 1e-07 make a schedule of 100,000,000 {allowed}"
    assert of(10, 5e-324).endswith(f"of 1,000,000,000,000,000 {allowed}"), "more digits than can be shown"
    assert "100,000,000 levels" in of(10, ["n", 0])
    assert REFUSALS["limits.levels"] == before + 3
    assert of(10_000, 0.1) == of(20, 0.01) == of(10, 0.0) == of(10, ["e", 0]) == ""


def test_sigmas_that_are_extended_again_and_again_are_counted() -> None:
    chain: dict[str, tuple[str, dict[str, Any]]] = {"a": ("KarrasScheduler", {"steps": 1000})}
    chain["b"] = ("ExtendIntermediateSigmas", {"sigmas": ["a", 0], "steps": 99})
    assert said(graph(**chain)) == ""
    chain["c"] = ("ExtendIntermediateSigmas", {"sigmas": ["b", 0], "steps": 1})
    assert "c: 1 steps between every two sigmas make a schedule of 200,000 levels" in said(graph(**chain))


def combined(times: int, class_type: str = "ConditioningCombine", names: Any = None) -> Validated:
    nodes: dict[str, tuple[str, dict[str, Any]]] = {"0": ("CLIPTextEncode", {"text": "a"})}
    nodes |= {"first": ("PairConditioningSetProperties", {"positive_NEW": ["0", 0], "negative_NEW": ["0", 0]})}
    for n in range(times):
        source = "first" if n == 0 else str(n)
        slots = names or {"conditioning_1": 0, "conditioning_2": 0}
        nodes[str(n + 1)] = (class_type, {name: [source, slot] for name, slot in slots.items()})
    return graph(**nodes)


def test_conditionings_that_double_from_node_to_node_are_refused_once() -> None:
    allowed = "limits.conditionings of the configuration allows 1,000"
    assert said(combined(9)) == ""
    assert said(combined(18)) == f"ConditioningCombine 10: it would make CONDITIONING of 1,024 conditionings; {allowed}"
    pairs = {"positive_A": 0, "positive_B": 0, "negative_A": 1, "negative_B": 1}
    assert said(combined(9, "PairConditioningCombine", pairs)) == "", "positives and negatives are counted apart"
    assert "1,024" in said(combined(10, "PairConditioningCombine", pairs))


def test_batches_of_too_many_images_and_of_too_many_bytes_are_refused() -> None:
    def repeated(*amounts: int, **limits: int) -> str:
        nodes: dict[str, tuple[str, dict[str, Any]]] = {
            "e": ("EmptyImage", {"width": 8, "height": 8, "batch_size": 1}),
            "s": ("ImageScaleBy", {"image": ["e", 0], "scale_by": 8.0, "upscale_method": "area"}),
        }
        for n, amount in enumerate(amounts):
            nodes[f"r{n}"] = (
                "RepeatImageBatch",
                {"image": [["s", *(f"r{m}" for m in range(n))][-1], 0], "amount": amount},
            )
        return said(graph(**nodes), **limits)

    assert repeated(4096) == ""
    allowed = "limits.batch of the configuration allows 16,384"
    assert repeated(4096, 5) == f"RepeatImageBatch r1: with amount 5 it would make 20,480 images; {allowed}"
    bytes_ = 64 * 64 * 12 * 4096
    assert f"it would make images of {bytes_:,} bytes" in repeated(4096, value_bytes=bytes_ - 1)
    assert repeated(4096, value_bytes=bytes_) == ""


def test_a_sound_of_too_high_a_rate_is_refused() -> None:
    def empty(rate: int) -> str:
        return said(graph(a=("EmptyAudio", {"duration": 1.0, "sample_rate": rate, "channels": 1})), sample_rate=48_000)

    assert empty(48_000) == ""
    assert "EmptyAudio a: it would make AUDIO of 96,000 Hz; limits.sample_rate" in empty(96_000)


def test_what_real_workflows_ask_for_is_within_the_default_bounds_of_a_gpu() -> None:
    gpu = AppConfig(pools=(PoolConfig(name="gpu", num_gpus=1),)).latents
    assert gpu is not None
    for width, height, frames in ((640, 640, 81), (1280, 720, 121), (3840, 2160, 1), (4096, 4096, 1)):
        video = {"width": width, "height": height, "length": frames, "batch_size": 1}
        assert checked(video, "EmptyHunyuanLatentVideo", most=gpu).problems == ()
    assert checked({"width": 1024, "height": 1024, "batch_size": 64}, most=gpu).problems == ()
