"""Hooks: weight changes for some conditioning entries alone, with strengths that change along the sampling.

Keyframe factors are evaluated level by level during a run. Nothing here knows weights: the caller supplies a function
that returns a backbone with further patches.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from itertools import pairwise
from math import isclose

from serve_app.recipe.hooks import HookChange, Hooks, Keyframe
from serve_app.recipe.recipe import Part
from serve_app.sampling.forward import Backbone
from serve_app.sampling.schedules.levels import Levels, single
from serve_app.values import Conditioning

Variant = Callable[[tuple[HookChange, ...]], Backbone]
"""Returns the run's backbone with further changes."""


def combined(*groups: Hooks | None) -> Hooks | None:
    """Return the union of several groups of hooks, each hook as in the first group that has it; None if empty."""
    there = [group for group in groups if group is not None]
    return tuple(dict.fromkeys(hook for group in there for hook in group)) if there else None


def changes(hooks: Hooks, factors: Sequence[float] | None = None, part: Part = "backbone") -> tuple[HookChange, ...]:
    """Return the weight changes of hooks for a backbone or text encoder, each with its factor, or 1."""
    strengths = (hook.strength if part == "backbone" else hook.clip_strength for hook in hooks)
    scaled = [strength * factor for strength, factor in zip(strengths, factors or [1.0] * len(hooks), strict=True)]
    return tuple(hook.change(part, strength) for hook, strength in zip(hooks, scaled, strict=True) if strength)


def hooks_of(conds: Mapping[str, Conditioning]) -> tuple[Hooks, ...]:
    """Return the distinct groups of hooks of entries."""
    groups = (options.get("hooks") for conditioning in conds.values() for _, options in conditioning)
    return tuple(dict.fromkeys(group for group in groups if group))


class HookSchedule:
    """The hooks of one run. highest: the level where its sampling begins."""

    def __init__(self, levels: Levels, highest: float, variant: Variant) -> None:
        self._levels = levels
        self._highest = highest
        self._variant = variant
        self._tracks: dict[tuple[Keyframe, ...], _Track] = {}
        self._latest: dict[Hashable, tuple[tuple[HookChange, ...], Backbone]] = {}

    def backbone(self, hooks: Hooks, sigma: float) -> Backbone:
        """Return the backbone for entries with these hooks at an evaluation's level."""
        wanted = changes(hooks, [self._factor(hook.keyframes, sigma) for hook in hooks])
        key = tuple((hook, hook.keyframes) for hook in hooks)
        latest = self._latest.get(key)
        if latest is None or latest[0] != wanted:
            self._latest[key] = latest = (wanted, self._variant(wanted))
        return latest[1]

    def _factor(self, keyframes: tuple[Keyframe, ...], sigma: float) -> float:
        if not keyframes:
            return 1.0
        if keyframes not in self._tracks:
            self._tracks[keyframes] = _Track(keyframes, self._levels, self._highest)
        return self._tracks[keyframes].factor(sigma)


class _Track:
    """The current keyframe of a hook in a run."""

    def __init__(self, keyframes: tuple[Keyframe, ...], levels: Levels, highest: float) -> None:
        self._keyframes = keyframes
        self._starts = [levels.at_progress(keyframe.start_percent) for keyframe in keyframes]
        # A keyframe from before the sampling began need not last any steps.
        self._steps = [
            0 if start > highest else keyframe.steps for keyframe, start in zip(keyframes, self._starts, strict=True)
        ]
        self._at = 0
        self._levels_met = 0
        self._sigma: float | None = None

    def factor(self, sigma: float) -> float:
        if single(sigma) != self._sigma:
            self._sigma = single(sigma)
            if self._levels_met >= self._steps[self._at]:
                self._go_on(self._sigma)
            self._levels_met += 1
        return self._keyframes[self._at].factor

    def _go_on(self, sigma: float) -> None:
        for following in range(self._at + 1, len(self._keyframes)):
            if self._starts[following] < sigma:
                return
            self._at, self._levels_met = following, 0
            if self._steps[following] > 0:
                return


def clip_ranges(hooks: Hooks) -> Iterator[tuple[float, float, tuple[HookChange, ...]]]:
    """Yield (start, end, changes) shares of the sampling with constant hooks, for a text encoder."""
    tracks = [list(_spans(hook.keyframes)) for hook in hooks]
    bounds = sorted({0.0, *(bound for track in tracks for start, end, _ in track for bound in (start, end))})
    for start, end in pairwise(bounds):
        factors = [next((f for s, e, f in track if s < end and e > start), 1.0) for track in tracks]
        yield start, end, changes(hooks, factors, "clip")


def _spans(keyframes: Sequence[Keyframe]) -> Iterator[tuple[float, float, float]]:
    """Yield (start, end, factor) of a hook; neighbours of nearly equal factors are one."""
    if not keyframes:
        yield 0.0, 1.0, 1.0
        return
    current = keyframes[0]
    for keyframe in keyframes:
        if keyframe.start_percent == current.start_percent:
            current = keyframe
        elif not isclose(keyframe.factor, current.factor):
            yield current.start_percent, keyframe.start_percent, current.factor
            current = keyframe
    if not isclose(current.start_percent, 1.0):
        yield current.start_percent, 1.0, current.factor
