"""`comfy.clip_vision` for node packs: a CLIP_VISION, and what it sees in images.

Source: the facts of ComfyUI 0.33's module of this name.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor

from serve_app.nodes.compat.missing import MissingMemberError
from serve_app.nodes.compat.sd import place_of
from serve_app.nodes.compat.waiting import runtime, wait
from serve_app.values import ClipVisionOutput, Recipe


class Output:
    """What is seen in images, by name, as attributes and as items: those of `ClipVisionOutput`.

    Packs make their own and set what they like; what goes on a link needs all three.
    """

    last_hidden_state: Tensor
    penultimate_hidden_states: Tensor
    image_embeds: Tensor

    @classmethod
    def of(cls, seen: ClipVisionOutput) -> Output:
        """Return what an encoder sees as packs see it."""
        made = cls()
        for name in cls.__annotations__:
            made[name] = getattr(seen, name)
        return made

    def plain(self) -> ClipVisionOutput:
        """Return what goes on a link. Errors: MissingMemberError where a pack has set less."""
        return ClipVisionOutput(*(getattr(self, name) for name in type(self).__annotations__))

    def __getitem__(self, key: str) -> Any:
        return getattr(self, key)

    def __setitem__(self, key: str, item: Any) -> None:
        setattr(self, key, item)

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_"):
            raise AttributeError(name)
        raise MissingMemberError(f"comfy.clip_vision.Output.{name}")


class ClipVisionModel:
    """An image encoder."""

    def __init__(self, recipe: Recipe) -> None:
        self.recipe = recipe

    @property
    def image_size(self) -> int:
        """Pixels along the sides of what it looks at."""
        size: int = wait(runtime("ClipVisionModel").family(self.recipe), "ClipVisionModel").image_size
        return size

    def encode_image(self, image: Tensor, crop: bool = True) -> Output:
        """Return what is seen in images (B,H,W,C) in 0…1. crop: their middle, else all, squeezed."""
        caller = "ClipVisionModel.encode_image"
        return Output.of(wait(runtime(caller).see(self.recipe, image, crop=crop), caller))

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_"):
            raise AttributeError(name)
        raise MissingMemberError(f"comfy.clip_vision.ClipVisionModel.{name}")


def load(ckpt_path: Any) -> ClipVisionModel:
    """Return the image encoder of a file."""
    return ClipVisionModel(Recipe("clip_vision", *place_of(ckpt_path, "clip_vision", "checkpoints")))


# What is loaded is there to be asked what it sees.
load._asks_for_runtime = True  # type: ignore[attr-defined]
