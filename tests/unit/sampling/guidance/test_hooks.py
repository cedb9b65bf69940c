"""What keyframes make of hooks along a run, and for a text encoder."""

from __future__ import annotations

from typing import Any

import pytest

from serve_app.recipe.hooks import Hook, HookChange, Keyframe
from serve_app.sampling.guidance.hooks import HookSchedule, clip_ranges, combined, hooks_of
from serve_app.sampling.schedules.levels import FlowLevels

LEVELS = FlowLevels(1.0, 1.0)
"""Of which a share of the sampling is as far below 1."""


def hook(*keyframes: Keyframe, name: str = "a", strength: float = 2.0) -> Hook:
    return Hook(name, strength, 3.0, keyframes)


def strengths(hooks: tuple[Hook, ...], sigmas: list[float]) -> list[Any]:
    """Return the strengths of each level's backbone in turn."""
    asked: list[Any] = []

    def variant(loras: tuple[HookChange, ...]) -> Any:
        asked.append(loras)
        return len(asked) - 1

    schedule = HookSchedule(LEVELS, sigmas[0], variant)
    used: list[Any] = [schedule.backbone(hooks, sigma) for sigma in sigmas]
    assert len(asked) == len(dict.fromkeys(used)), "a backbone is asked for when strengths change, and then alone"
    return [[lora.strength for lora in asked[place]] for place in used]


def test_without_keyframes_the_strength_stays() -> None:
    assert strengths((hook(),), [1.0, 0.5, 0.1]) == [[2.0]] * 3


def test_a_keyframe_acts_from_its_share_on() -> None:
    keyed = hook(Keyframe(0.5, 0.0), Keyframe(1.5, 0.4))
    assert strengths((keyed,), [0.9, 0.7, 0.5, 0.1]) == [[1.0], [1.0], [3.0], [3.0]]


def test_a_keyframe_is_sure_of_its_steps_unless_it_is_before_the_sampling() -> None:
    first, second, third = Keyframe(0.5, 0.2, steps=2), Keyframe(1.5, 0.3), Keyframe(2.5, 0.35, steps=0)
    # All begin above the second level; each waits until the one before has had its steps.
    assert strengths((hook(first, second, third),), [0.85, 0.6, 0.5, 0.4]) == [[1.0], [1.0], [3.0], [5.0]]
    assert strengths((hook(first, second, third),), [0.5, 0.4, 0.3]) == [[5.0]] * 3


def test_evaluations_of_one_level_are_one_step() -> None:
    keyed = hook(Keyframe(0.5, 0.0), Keyframe(1.5, 0.1))
    assert strengths((keyed,), [0.95, 0.95, 0.5]) == [[1.0], [1.0], [3.0]]


def test_a_strength_of_nothing_asks_for_no_lora() -> None:
    assert strengths((hook(Keyframe(0.0, 0.0)), hook(name="b")), [0.9]) == [[2.0]]


def test_hooks_are_combined_once_whatever_their_keyframes() -> None:
    keyed, plain, other = hook(Keyframe(0.5)), hook(), hook(name="b")
    assert combined((keyed,), None, (other, plain)) == (keyed, other)
    first = combined((keyed,), (plain,)) or ()
    assert [one.keyframes for one in first] == [keyed.keyframes]
    assert combined(None, None) is None


def test_the_groups_of_conditionings_are_each_once() -> None:
    both = {"positive": [(None, {"hooks": (hook(),)}), (None, {})], "negative": [(None, {"hooks": (hook(),)})]}
    assert hooks_of(both) == ((hook(),),)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("hooks", "expected"),
    [
        ((hook(),), [(0.0, 1.0, [3.0])]),
        ((hook(Keyframe(0.5, 0.0), Keyframe(2.0, 0.4)),), [(0.0, 0.4, [1.5]), (0.4, 1.0, [6.0])]),
        ((hook(Keyframe(0.5, 0.3)),), [(0.0, 0.3, [3.0]), (0.3, 1.0, [1.5])]),
        ((hook(Keyframe(0.5, 0.0), Keyframe(0.5, 0.4)),), [(0.0, 1.0, [1.5])]),
        (
            (hook(Keyframe(0.5, 0.0), Keyframe(2.0, 0.4)), hook(Keyframe(0.0, 0.0), Keyframe(1.0, 0.6), name="b")),
            [(0.0, 0.4, [1.5]), (0.4, 0.6, [6.0]), (0.6, 1.0, [6.0, 3.0])],
        ),
    ],
)
def test_a_text_encoder_is_the_same_between_keyframes(
    hooks: tuple[Hook, ...], expected: list[tuple[float, float, list[float]]]
) -> None:
    ranges = [(start, end, [lora.strength for lora in loras]) for start, end, loras in clip_ranges(hooks)]
    assert ranges == expected
