"""`comfy.controlnet` for node packs: a CONTROL_NET, and its application to an entry of a conditioning.

Source: the facts of ComfyUI 0.33's module of this name.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor

from serve_app.errors import NodeError
from serve_app.packs.comfy.sd import VAE, place_of
from serve_app.packs.missing import MissingMemberError
from serve_app.recipe.recipe import Recipe
from serve_app.values import Control


class ControlNet:
    """A ControlNet or T2I-Adapter. cond_hint_original: its image (B,C,H,W) in 0…1, None before it is applied.

    timestep_percent_range: the range of noise levels in which it acts. previous_controlnet: the one applied before.
    """

    def __init__(self, recipe: Recipe) -> None:
        self.recipe = recipe
        self.cond_hint_original: Tensor | None = None
        self.strength = 1.0
        self.timestep_percent_range: tuple[float, float] = (0.0, 1.0)
        self.previous_controlnet: ControlNet | None = None
        self.vae: VAE | None = None
        self.extra_concat_orig: list[Tensor] = []

    @classmethod
    def of(cls, control: Control) -> ControlNet:
        """Convert an applied one for packs."""
        made = cls(control.recipe)
        made.cond_hint_original, made.strength = control.hint.movedim(-1, 1), control.strength
        made.timestep_percent_range = (control.start_percent, control.end_percent)
        made.previous_controlnet = None if control.previous is None else cls.of(control.previous)
        made.vae = None if control.vae is None else VAE(control.vae)
        made.extra_concat_orig = [] if control.mask is None else [control.mask]
        return made

    def plain(self) -> Control | Recipe:
        """Convert to a value for a link: the recipe, or the application if it has an image."""
        if self.cond_hint_original is None:
            return self.recipe
        start, end = self.timestep_percent_range
        previous = None if self.previous_controlnet is None else self.previous_controlnet.plain()
        if isinstance(previous, Recipe):
            raise NodeError("a ControlNet is set beneath another, but it is shown nothing; call set_cond_hint")
        return Control(
            self.recipe,
            self.cond_hint_original.movedim(1, -1),
            self.strength,
            start,
            end,
            previous,
            None if self.vae is None else self.vae.recipe,
            self.extra_concat_orig[0] if self.extra_concat_orig else None,
        )

    def copy(self) -> ControlNet:
        """Return a copy, with the same previous one."""
        made = type(self)(self.recipe)
        vars(made).update(vars(self))
        return made

    def set_cond_hint(
        self,
        cond_hint: Tensor,
        strength: float = 1.0,
        timestep_percent_range: tuple[float, float] = (0.0, 1.0),
        vae: Any = None,
        extra_concat: list[Tensor] | None = None,
    ) -> ControlNet:
        """Set its image (B,C,H,W), and return it."""
        self.cond_hint_original, self.strength = cond_hint, strength
        self.timestep_percent_range, self.vae = timestep_percent_range, vae
        self.extra_concat_orig = list(extra_concat or ())
        return self

    def set_previous_controlnet(self, controlnet: ControlNet | None) -> ControlNet:
        """Set the one applied before it, and return it."""
        self.previous_controlnet = controlnet
        return self

    def cleanup(self) -> None:
        """Do nothing: weights are the runtime's."""

    def get_models(self) -> list[Any]:
        """Return nothing: what is loaded is the runtime's affair."""
        return []

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_"):
            raise AttributeError(name)
        raise MissingMemberError(f"comfy.controlnet.ControlNet.{name}")


class T2IAdapter(ControlNet):
    """A type that no value has: on a link a T2I-Adapter is a ControlNet, whichever of the two its file holds."""


def load_controlnet(ckpt_path: Any, model: Any = None, model_options: Any = None) -> ControlNet:
    """Return the ControlNet of a file."""
    return ControlNet(Recipe("controlnet", *place_of(ckpt_path, "controlnet")))
