"""`comfy.clip_vision` for node packs: a CLIP_VISION and its outputs.

Source: the facts of ComfyUI 0.33's module of this name.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from serve_app.images import vision_pixels
from serve_app.packs.comfy.model_patcher import ModelPatcher
from serve_app.packs.comfy.sd import place_of
from serve_app.packs.missing import MissingMemberError
from serve_app.packs.waiting import run_on_loop, runtime
from serve_app.recipe.recipe import Recipe
from serve_app.values import ClipVisionOutput

PENULTIMATE = -2
"""The layer whose states are kept beside the last one's, counted from the end."""
CLIP_MEAN, CLIP_SPREAD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
"""Of the colours that CLIP was trained on."""


class Output:
    """An image encoder's outputs, as attributes and as items: those of `ClipVisionOutput`.

    Packs make their own and set any members; a value on a link needs all three.
    """

    last_hidden_state: Tensor
    penultimate_hidden_states: Tensor
    image_embeds: Tensor

    @classmethod
    def of(cls, seen: ClipVisionOutput) -> Output:
        """Convert a ClipVisionOutput for packs."""
        made = cls()
        for name in cls.__annotations__:
            made[name] = getattr(seen, name)
        return made

    def plain(self) -> ClipVisionOutput:
        """Convert to a ClipVisionOutput. Errors: MissingMemberError if a pack has not set all members."""
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
        """The sides of its input in pixels."""
        size: int = run_on_loop(runtime("ClipVisionModel").family(self.recipe), "ClipVisionModel").image_size
        return size

    @property
    def load_device(self) -> torch.device:
        """The device for inputs from packs; the runtime moves them."""
        return torch.device("cpu")

    @property
    def patcher(self) -> ModelPatcher:
        """The object with which packs load it."""
        made = ModelPatcher(None)
        made.recipe = self.recipe
        return made

    @property
    def model(self) -> Network:
        """The network, for pixels that a pack has preprocessed."""
        return Network(self.recipe)

    def encode_image(self, image: Tensor, crop: bool = True) -> Output:
        """Return the outputs for images (B,H,W,C) in 0…1. crop: center crop, else resize to a square."""
        caller = "ClipVisionModel.encode_image"
        return Output.of(run_on_loop(runtime(caller).see(self.recipe, image, crop=crop), caller))

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_"):
            raise AttributeError(name)
        raise MissingMemberError(f"comfy.clip_vision.ClipVisionModel.{name}")


class Network:
    """The network of an image encoder."""

    def __init__(self, recipe: Recipe) -> None:
        self._recipe = recipe

    def __call__(
        self, pixel_values: Tensor, attention_mask: Any = None, intermediate_output: Any = PENULTIMATE
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Return (last states, those of the layer before, embeds) of pixels (B,3,S,S).

        Errors: MissingMemberError for the states of other layers, or a mask.
        """
        if intermediate_output != PENULTIMATE or attention_mask is not None:
            raise MissingMemberError("comfy.clip_vision.ClipVisionModel.model() of other layers, or with a mask,")
        seen = run_on_loop(
            runtime("ClipVisionModel.model").see_pixels(self._recipe, pixel_values), "ClipVisionModel.model"
        )
        return seen.last_hidden_state, seen.penultimate_hidden_states, seen.image_embeds


def clip_preprocess(
    image: Tensor,
    size: int = 224,
    mean: Sequence[float] = CLIP_MEAN,
    std: Sequence[float] = CLIP_SPREAD,
    crop: bool = True,
) -> Tensor:
    """Return images (B,H,W,C) in 0…1 preprocessed for an encoder, (B,3,size,size)."""
    return vision_pixels(image, size, mean, std, crop=crop)


def load(ckpt_path: Any) -> ClipVisionModel:
    """Return the image encoder of a file."""
    return ClipVisionModel(Recipe("clip_vision", *place_of(ckpt_path, "clip_vision", "checkpoints")))


# Whoever loads an encoder will run it.
load._asks_for_runtime = True  # type: ignore[attr-defined]
