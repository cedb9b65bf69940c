"""Numbers outside their declared range, which links alone bring, make what they make in ComfyUI 0.33.0."""

from __future__ import annotations

import pytest
import torch

from serve_app.nodes.image.scale import image_scale_to_total_pixels
from serve_app.nodes.image.transform import resize_and_pad_image
from serve_app.nodes.sampling.schedules import gits_scheduler
from serve_app.nodes.sampling.sigmas import split_sigmas_denoise
from serve_app.nodes.text.strings import regex_replace

SIGMAS = torch.tensor([10.0, 5.0, 1.0, 0.0])


@pytest.mark.parametrize(
    ("denoise", "high", "low"),
    [(2.0, [], [10.0, 5.0, 1.0, 0.0]), (-1.0, [10.0, 5.0, 1.0], [1.0, 0.0]), (0.0, [], [0.0])],
)
def test_sigmas_are_split_at_a_share_beyond_their_ends(denoise: float, high: list[float], low: list[float]) -> None:
    assert [part.tolist() for part in split_sigmas_denoise(SIGMAS, denoise)] == [high, low]


def test_a_single_step_of_gits_is_the_last_of_twenty() -> None:
    assert torch.equal(gits_scheduler(1.2, 1, 1.0), gits_scheduler(1.2, 20, 1.0)[-2:])


def test_a_negative_count_of_replacements_is_none() -> None:
    assert regex_replace("a b a", "a", "c", True, False, False, -1) == "a b a"


def test_sides_are_multiples_of_a_negative_step() -> None:
    image = torch.rand(1, 24, 20, 3)
    three, minus = (image_scale_to_total_pixels(image, "area", 0.001, step) for step in (3, -3))
    assert torch.equal(three, minus)


def test_an_image_too_narrow_for_a_pixel_leaves_the_bars() -> None:
    bars = resize_and_pad_image(torch.rand(1, 24, 20, 3), 512, 1, "white", "area")
    assert torch.equal(bars, torch.ones(1, 1, 512, 3))
