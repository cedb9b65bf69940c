"""A part of a model as a value: its file and its ordered changes."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from types import UnionType
from typing import TYPE_CHECKING, Any, Literal, TypeAlias, TypeVar, overload

from serve_app.recipe.text import LoadedAs
from serve_app.recipe.weights import Lora

if TYPE_CHECKING:
    from serve_app.recipe.patch import Patch

P = TypeVar("P")
Part: TypeAlias = Literal[
    "backbone",
    "clip",
    "vae",
    "audio_vae",
    "upscaler",
    "latent_upscaler",
    "depth_estimator",
    "geometry_estimator",
    "background_remover",
    "frame_interpolator",
    "controlnet",
    "model_patch",
    "clip_vision",
    "style_model",
]


@dataclass(frozen=True, slots=True)
class Recipe:
    """How to make one part of a model: which file, which part of it, which changes in which order.

    folder, name: the model file in the catalog, e.g. ("checkpoints", "sd15.safetensors"). extra_files: further files of
    the folder that belong to the same part, such as a second text encoder.
    """

    part: Part
    folder: str
    name: str
    patches: tuple[Patch, ...] = ()
    extra_files: tuple[str, ...] = ()

    def with_patch(self, patch: Patch) -> Recipe:
        """Return a recipe with one more change at the end."""
        return replace(self, patches=(*self.patches, patch))

    def with_lora(self, name: str, strength: float) -> Recipe:
        """Return a recipe with a LoRA at the end; the same recipe at strength 0."""
        return self.with_patch(Lora(name, strength)) if strength else self

    def with_bypass_lora(self, name: str, strength: float) -> Recipe:
        """Return a recipe with a bypass LoRA, which replaces an earlier one."""
        patches = tuple(patch for patch in self.patches if not (isinstance(patch, Lora) and patch.bypass))
        return replace(self, patches=(*patches, *([Lora(name, strength, bypass=True)] if strength else [])))

    def with_patches(self, patches: Iterable[Patch]) -> Recipe:
        """Return a recipe with more changes at the end."""
        return replace(self, patches=(*self.patches, *patches))

    @property
    def files(self) -> tuple[str, ...]:
        """The names of its files in their folder, without those of changes."""
        return (self.name, *self.extra_files)

    @property
    def loaded_as(self) -> str:
        """The type that its text encoders are loaded as; "" if unset."""
        said = self.last(LoadedAs)
        return "" if said is None else said.type

    @overload
    def all(self, kind: type[P]) -> tuple[P, ...]: ...
    @overload
    def all(self, kind: UnionType) -> tuple[Any, ...]: ...
    def all(self, kind: Any) -> tuple[Any, ...]:
        """Return its changes of a kind, in order."""
        return tuple(patch for patch in self.patches if isinstance(patch, kind))

    @overload
    def last(self, kind: type[P]) -> P | None: ...
    @overload
    def last(self, kind: UnionType) -> Any: ...
    def last(self, kind: Any) -> Any:
        """Return the last of its changes of a kind, the one in effect; None if there is none."""
        found = self.all(kind)
        return found[-1] if found else None


ENCODER_TYPE = "stable_diffusion"
"""Default type of text encoders."""


def encoders(type: str, name: str, *extra_files: str, folder: str = "text_encoders") -> Recipe:
    """Return the recipe of text encoders for a type. Files that do not suit it raise when they are opened."""
    recipe = Recipe("clip", folder, name, extra_files=extra_files)
    return recipe if type == ENCODER_TYPE else recipe.with_patch(LoadedAs(type))


def tiny_vae(name: str) -> Recipe:
    """Return the recipe of a tiny autoencoder of images, which is published as two files.

    name: their prefix ("taesd").
    """
    encoder, decoder = (f"{name}_{half}.safetensors" for half in ("encoder", "decoder"))
    return Recipe("vae", "vae_approx", encoder, extra_files=(decoder,))


def tiny_video_vae(name: str) -> Recipe:
    """Return the recipe of a tiny autoencoder of videos. name: its file's ("taehv.safetensors")."""
    return Recipe("vae", "vae_approx", name)
