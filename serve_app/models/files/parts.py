"""Finds which tensors of one or more files make up a part of a model, and its family. Pure: names and shapes alone."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import NamedTuple

from serve_app.errors import ModelFileError
from serve_app.models.families import (
    AUDIO_VAES,
    BACKBONES,
    BACKGROUND_REMOVERS,
    DEPTH_ESTIMATORS,
    FRAME_INTERPOLATORS,
    GEOMETRY_ESTIMATORS,
    IMAGE_ENCODERS,
    LATENT_UPSCALERS,
    STYLE_MODELS,
    TEXT_ENCODERS,
    TEXT_ENSEMBLES,
    TEXT_READERS,
    UNSUPPORTED_TYPES,
    VAES,
)
from serve_app.models.families.family import Family, Located
from serve_app.models.families.text_family import TextFamily
from serve_app.models.files.layout import Place, places
from serve_app.models.files.tensors import Tensors
from serve_app.recipe.recipe import Part

PART_NAMES: Mapping[Part, str] = {
    "backbone": "diffusion network",
    "vae": "VAE",
    "audio_vae": "audio VAE",
    "latent_upscaler": "latent upscaler",
    "depth_estimator": "depth estimator",
    "geometry_estimator": "geometry estimator",
    "background_remover": "background remover",
    "frame_interpolator": "frame interpolator",
    "clip": "text encoder",
    "clip_vision": "image encoder",
    "style_model": "style model",
}
"""Names of the parts in errors."""

_FAMILIES: Mapping[Part, Sequence[type[Family]]] = {
    "backbone": BACKBONES,
    "vae": (*VAES, *AUDIO_VAES),
    "audio_vae": AUDIO_VAES,
    "latent_upscaler": LATENT_UPSCALERS,
    "depth_estimator": DEPTH_ESTIMATORS,
    "geometry_estimator": GEOMETRY_ESTIMATORS,
    "background_remover": BACKGROUND_REMOVERS,
    "frame_interpolator": FRAME_INTERPOLATORS,
    "clip_vision": IMAGE_ENCODERS,
    "style_model": STYLE_MODELS,
}


class Source(NamedTuple):
    """Where a tensor of a network comes from: the file's number, the name there, and the place."""

    file: int
    name: str
    place: Place


@dataclass(frozen=True, slots=True)
class FoundPart:
    """A part found in files. sources: by the network's names. unused: names that the network has no place for.

    located: the networks that it consists of.
    """

    family: Family
    sources: Mapping[str, Source]
    unused: tuple[str, ...]
    located: tuple[Located, ...]


def find_part(part: Part, files: Sequence[Tensors], loaded_as: str = "") -> FoundPart:
    """Find a part in files. loaded_as: type of text encoders, as `recipe.LoadedAs`.

    Errors: ModelFileError if they have none, or one of another family.
    """
    if part == "clip":
        return _text(files, loaded_as)
    for family in _FAMILIES[part]:
        if found := list(family.find(files)):
            return _merged(found[0].family, found)
    raise _absent(part, files[0])


def as_type(encoder: TextFamily, loaded_as: str) -> TextFamily:
    """Return an encoder as a loader's type configures it, "" for none."""
    for kind in TEXT_READERS:
        if issubclass(kind, type(encoder)) and kind.replaces(encoder, loaded_as):
            encoder = kind(**{field.name: getattr(encoder, field.name) for field in fields(kind)})  # type: ignore[arg-type]
    return encoder.as_type(loaded_as)


def _absent(part: Part, whole: Tensors) -> ModelFileError:
    titles = sorted(title for family in _FAMILIES[part] if (title := getattr(family, "title", "")))
    known = f"; supported are {', '.join(titles)}" if titles else ""
    return whole.unsupported(f"holds no {PART_NAMES[part]} of a known layout{whole.family()}{known}")


def _merged(family: Family, found: Sequence[Located]) -> FoundPart:
    sources: dict[str, Source] = {}
    unused: list[str] = []
    for one in found:
        table = one.family.table(one.tensors)
        for name in one.tensors.shapes:
            here = places(name, table)
            sources |= {one.module + place.name: Source(one.file, one.prefix + name, place) for place in here}
            if not here:
                unused.append(one.prefix + name)
    return FoundPart(family, sources, tuple(unused), tuple(found))


def _text(files: Sequence[Tensors], loaded_as: str) -> FoundPart:
    found = [one for family in TEXT_ENCODERS for one in family.find(files)]
    for number, whole in enumerate(files):
        if not any(one.file == number for one in found):
            known = ", ".join(family.name for family in TEXT_ENCODERS)
            raise ModelFileError(
                f"{whole.where} holds no text encoder of a known layout{whole.family()}; known are {known}"
            )
    encoders = [one.family for one in found if isinstance(one.family, TextFamily)]
    for one, encoder in zip(found, encoders, strict=True):
        if (other := UNSUPPORTED_TYPES.get(loaded_as)) is not None and isinstance(encoder, other[0]):
            raise files[one.file].unsupported(
                f"is {encoder.title}, which type '{loaded_as}' reads as {other[1]} does, a family that is not supported"
            )
    titles = [family.title for family in encoders]
    for ensemble in TEXT_ENSEMBLES:
        if ensemble.fits(titles, loaded_as):
            names = [ensemble.takes[title] for title in titles]
            placed = [one._replace(module=f"{name}.") for one, name in zip(found, names, strict=True)]
            return _merged(ensemble(**dict(zip(names, encoders, strict=True))), placed)
    if len(found) == 1:
        return _merged(as_type(encoders[0], loaded_as), found)
    known = ", ".join(f"{' and '.join(ensemble.takes)} ({ensemble.name})" for ensemble in TEXT_ENSEMBLES)
    where = " and ".join(whole.where for whole in files)
    asked = f", which type '{loaded_as}' does not read together" if loaded_as else ""
    raise ModelFileError(f"{where} hold {' and '.join(titles)}{asked}; text encoders that go together are {known}")
