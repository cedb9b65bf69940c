"""The nodes of datasets: texts, lists, videos, and what they refuse. Images: tests/unit/nodes/today_cases.py."""

from __future__ import annotations

import asyncio
from fractions import Fraction
from typing import Any

import pytest
import torch

from serve_app.errors import NodeError
from serve_app.nodes.registry import BUILTIN
from serve_app.nodes.video.value import VideoComponents, VideoFromComponents
from serve_app.recipe.recipe import Recipe


def run(class_type: str, **inputs: Any) -> Any:
    node: Any = BUILTIN[class_type]()
    return getattr(node, node.FUNCTION)(**inputs)


@pytest.mark.parametrize(
    ("class_type", "inputs", "text"),
    [
        ("TextToLowercase", {}, " a cat "),
        ("TextToUppercase", {}, " A CAT "),
        ("StripWhitespace", {}, "A Cat"),
        ("TruncateText", {"max_length": 3}, " A "),
        ("AddTextPrefix", {"prefix": "x"}, "x A Cat "),
        ("AddTextSuffix", {"suffix": "x"}, " A Cat x"),
        ("ReplaceText", {"find": "Cat", "replace": "dog"}, " A dog "),
    ],
)
def test_a_text_is_changed(class_type: str, inputs: dict[str, Any], text: str) -> None:
    assert run(class_type, texts=" A Cat ", **inputs) == (text,)


def test_lists_of_texts_are_merged() -> None:
    assert run("MergeTextLists", texts=["a", "b"]) == (["a", "b"],)


def test_videos_are_shuffled_with_their_texts_as_numpy_does() -> None:
    # numpy.random.seed(1); numpy.random.permutation(4)
    order = [3, 2, 0, 1]
    videos, texts = ["v0", "v1", "v2", "v3"], ["a", "b", "c", "d"]
    shuffled = [videos[place] for place in order]
    assert run("ShuffleVideoDataset", videos=videos, seed=[1]) == (shuffled,)
    made = run("ShuffleVideoTextDataset", videos=videos, texts=texts, seed=[1])
    assert made == (shuffled, [texts[place] for place in order])


def test_lists_that_do_not_belong_together_are_an_error() -> None:
    with pytest.raises(NodeError, match="images has 1, texts has 2"):
        run("ShuffleImageTextDataset", images=[torch.zeros(1, 1, 1, 3)], texts=["a", "b"], seed=[0])
    latents = [{"samples": torch.zeros(2, 4, 1, 1)}]
    with pytest.raises(NodeError, match="1 latents and 2 conditionings"):
        run("ResolutionBucket", latents=latents, conditioning=[[], []])
    with pytest.raises(NodeError, match="2 latents and 1 entries"):
        run("ResolutionBucket", latents=latents, conditioning=[[("a", {})]])


def _video(frames: int) -> VideoFromComponents:
    images = torch.arange(frames).float().reshape(-1, 1, 1, 1).expand(-1, 2, 2, 3) / 100
    return VideoFromComponents(VideoComponents(images, Fraction(10), None))


def _numbers(video: Any) -> list[int]:
    return [round(value) for value in (video.get_components().images[:, 0, 0, 0] * 100).tolist()]


@pytest.mark.parametrize(
    ("strategy", "count", "frames"),
    [
        ("uniform", 4, [0, 3, 6, 9]),
        ("uniform", 1, [5]),
        ("uniform", 99, list(range(10))),
        ("head", 3, [0, 1, 2]),
        ("tail", 3, [7, 8, 9]),
    ],
)
def test_frames_are_sampled(strategy: str, count: int, frames: list[int]) -> None:
    [sampled] = run("VideoFrameSample", video=_video(10), num_frames=count, strategy=strategy, seed=0)
    assert _numbers(sampled) == frames
    assert sampled.get_frame_rate() == 10


def test_frames_are_sampled_by_a_seed_in_their_order() -> None:
    one, other = (
        _numbers(run("VideoFrameSample", video=_video(10), num_frames=4, strategy="random", seed=seed)[0])
        for seed in (1, 2)
    )
    assert one == sorted(set(one))
    assert len(one) == 4
    assert one != other


def test_a_part_of_a_video_is_cut_out() -> None:
    assert _numbers(run("VideoTemporalCrop", video=_video(10), start_frame=4, length=3)[0]) == [4, 5, 6]
    assert _numbers(run("VideoTemporalCrop", video=_video(10), start_frame=40, length=3)[0]) == [9]
    [cut] = run("VideoRandomTemporalCrop", video=_video(10), length=4, seed=1)
    first = _numbers(cut)[0]
    assert _numbers(cut) == list(range(first, first + 4))
    assert _numbers(run("VideoRandomTemporalCrop", video=_video(3), length=4, seed=1)[0]) == [0, 1, 2]


class _Models:
    async def encode(self, vae: Recipe, images: torch.Tensor) -> torch.Tensor:
        return images[:, :1, :1].movedim(-1, 1)

    async def encode_text(self, clip: Recipe, text: str) -> Any:
        return [(text, {})]


@pytest.mark.parametrize(("texts", "encoded"), [(None, ["", ""]), (["a"], ["a", "a"]), (["a", "b"], ["a", "b"])])
def test_a_dataset_is_encoded(texts: list[str] | None, encoded: list[str]) -> None:
    images = [torch.full((1, 8, 8, 4), value) for value in (0.0, 1.0)]
    models = {name: [Recipe("vae", "vae", "a.safetensors")] for name in ("vae", "clip")}
    made = asyncio.run(run("MakeTrainingDataset", images=images, **models, runtime=[_Models()], texts=texts))
    latents, conditioning = made
    assert [latent["samples"].shape for latent in latents] == [(1, 3, 1, 1)] * 2
    assert [entries[0][0] for entries in conditioning] == encoded


def test_texts_of_another_number_are_an_error() -> None:
    models = {name: [Recipe("vae", "vae", "a.safetensors")] for name in ("vae", "clip")}
    images = [torch.zeros(1, 8, 8, 3)]
    with pytest.raises(NodeError, match="1 images and 2 texts"):
        asyncio.run(run("MakeTrainingDataset", images=images, **models, runtime=[_Models()], texts=["a", "b"]))
