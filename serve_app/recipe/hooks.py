"""Weight changes of some conditioning entries alone, with keyframes of their strength."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal, TypeAlias

from serve_app.recipe.recipe import Part, Recipe
from serve_app.recipe.weights import Lora, Towards

HookChange: TypeAlias = "Lora | Towards"
"""The weight change of a hook, resolved for one part."""


@dataclass(frozen=True, slots=True)
class Keyframe:
    """A factor of a hook's strength from a share of the sampling on. steps: the minimum number of levels it lasts."""

    factor: float
    start_percent: float = 0.0
    steps: int = 1


@dataclass(frozen=True, slots=True)
class Hook:
    """A LoRA of some conditioning entries alone, with strengths for the backbone and the text encoder.

    keyframes: by start_percent; without any the factor is 1. folder: of its file; a file of "checkpoints" is a whole
    model, and the LoRA is its difference.
    """

    name: str
    strength: float
    clip_strength: float
    keyframes: tuple[Keyframe, ...] = field(default=(), compare=False)
    folder: Literal["loras", "checkpoints"] = "loras"

    def change(self, part: Part, strength: float) -> HookChange:
        """Return its weight change at a strength."""
        if self.folder == "loras":
            return Lora(self.name, strength)
        return Towards(Recipe(part, self.folder, self.name), strength)


Hooks: TypeAlias = tuple[Hook, ...]
"""HOOKS: each hook once, whatever its keyframes."""


@dataclass(frozen=True, slots=True)
class ClipHooks:
    """Change a text encoder's weights by hooks.

    scheduled: follow their keyframes, so that a text becomes an entry for each range. passed_on: entries carry the
    hooks too.
    """

    hooks: Hooks
    scheduled: bool
    passed_on: bool
