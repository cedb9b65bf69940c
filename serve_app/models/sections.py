"""Which tensors of one or more files make up a part of a model, and what the part is. Pure: names and shapes alone."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from serve_app.errors import ModelFileError
from serve_app.models.families import (
    SD_LATENTS,
    SDXL_LATENTS,
    Architecture,
    DualTextArchitecture,
    TextArchitecture,
    TextKind,
    TinyVaeArchitecture,
    UNetArchitecture,
    VaeArchitecture,
)
from serve_app.models.layout import Place, layout_of, places, table
from serve_app.models.tensors import Tensors
from serve_app.values import Part


class Source(NamedTuple):
    """Where a tensor of a network comes from: which of the files, under which name, and how it is placed."""

    file: int
    name: str
    place: Place


@dataclass(frozen=True, slots=True)
class Section:
    """A part found. sources: by the network's names. unused: names of the part that the network has no place for."""

    architecture: Architecture
    sources: Mapping[str, Source]
    unused: tuple[str, ...]


_NAMES: dict[Part, str] = {"backbone": "diffusion network", "vae": "VAE", "clip": "text encoder"}
_BACKBONE = (
    ("model.diffusion_model.", "input_blocks.0.0.weight"),
    ("", "input_blocks.0.0.weight"),
    ("", "conv_in.weight"),
)
_VAE = (("first_stage_model.", "decoder.conv_in.weight"), ("", "decoder.conv_in.weight"))
_TRANSFORMERS, _OPEN_CLIP = "embeddings.token_embedding.weight", "token_embedding.weight"
_TEXT: tuple[tuple[str, str, TextKind | None], ...] = (
    ("cond_stage_model.transformer.text_model.", _TRANSFORMERS, "l"),
    ("cond_stage_model.transformer.", _TRANSFORMERS, "l"),
    ("cond_stage_model.model.", _OPEN_CLIP, "h"),
    ("conditioner.embedders.0.transformer.text_model.", _TRANSFORMERS, "l"),
    ("conditioner.embedders.1.model.", _OPEN_CLIP, "g"),
    ("", f"text_model.{_TRANSFORMERS}", None),
    ("", _OPEN_CLIP, None),
)
_FIRST_OPEN_CLIP = "conditioner.embedders.0.model."
_SCALED = ("scaled_fp8", ".scale_weight", ".weight_scale")
_TINY = {latents.tiny: latents for latents in (SD_LATENTS, SDXL_LATENTS)}


class _Found(NamedTuple):
    """One network found: in which file, under which prefix, and where in the part's network it goes."""

    architecture: Architecture
    tensors: Tensors
    file: int = 0
    prefix: str = ""
    module: str = ""


def section(part: Part, files: Sequence[Tensors]) -> Section:
    """Return what the files hold of a part. Errors: ModelFileError if they hold none, or one of another family."""
    for whole in files:
        if scaled := [name for name in whole.shapes if name.endswith(_SCALED)]:
            raise whole.unsupported(f"has weights with scales of their own ('{scaled[0]}'), which are not read")
    if part == "clip":
        return _text(files)
    if part == "vae" and len(files) > 1:
        return _tiny_vae(files)
    whole = files[0]
    for prefix, mark in _BACKBONE if part == "backbone" else _VAE:
        if prefix + mark in whole.shapes:
            tensors = _inside(whole, prefix)
            found = UNetArchitecture.probe(tensors) if part == "backbone" else VaeArchitecture.probe(tensors)
            return _merged(found, [_Found(found, tensors, prefix=prefix)])
    raise _absent(part, whole)


def _absent(part: Part, whole: Tensors) -> ModelFileError:
    return whole.unsupported(f"holds no {_NAMES[part]} of a known layout{whole.family()}")


def _inside(whole: Tensors, prefix: str) -> Tensors:
    if not prefix:
        return whole
    shapes = {name[len(prefix) :]: shape for name, shape in whole.shapes.items() if name.startswith(prefix)}
    return Tensors(shapes, whole.where)


def _merged(architecture: Architecture, found: Sequence[_Found]) -> Section:
    sources: dict[str, Source] = {}
    unused: list[str] = []
    for one in found:
        prefixes = table(one.architecture, layout_of(one.tensors))
        for name in one.tensors.shapes:
            here = places(name, prefixes)
            sources |= {one.module + place.name: Source(one.file, one.prefix + name, place) for place in here}
            if not here:
                unused.append(one.prefix + name)
    return Section(architecture, sources, tuple(unused))


def _text(files: Sequence[Tensors]) -> Section:
    found = [encoder for file, whole in enumerate(files) for encoder in _encoders(whole, file)]
    if len(found) == 1:
        return _merged(found[0][0], [found[0][1]])
    kinds = [architecture.kind for architecture, _ in found]
    if sorted(kinds) != ["g", "l"]:
        given = " and ".join(f"CLIP-{kind.upper()}" for kind in kinds)
        where = " and ".join(whole.where for whole in files)
        raise ModelFileError(f"{where} hold {given}; text encoders that go together are CLIP-L and CLIP-G (SDXL)")
    by_kind = {architecture.kind: (architecture, one) for architecture, one in found}
    pair = DualTextArchitecture(by_kind["l"][0], by_kind["g"][0])
    return _merged(pair, [one._replace(module=f"{kind}.") for kind, (_, one) in by_kind.items()])


def _encoders(whole: Tensors, file: int) -> Iterator[tuple[TextArchitecture, _Found]]:
    first: TextKind = "g" if whole.has("model.diffusion_model.label_emb.") else "h"
    found = [known for known in (*_TEXT, (_FIRST_OPEN_CLIP, _OPEN_CLIP, first)) if known[0] + known[1] in whole.shapes]
    if not found:
        raise _absent("clip", whole)
    for prefix, _, kind in found:
        tensors = _inside(whole, prefix)
        architecture = TextArchitecture.probe(tensors, kind)
        yield architecture, _Found(architecture, tensors, file, prefix)


def _tiny_vae(files: Sequence[Tensors]) -> Section:
    """An encoder's file and a decoder's, as TAESD is published."""
    encoder, decoder = files
    name = encoder.where.strip("'").partition("_")[0]
    if name not in _TINY:
        raise encoder.unsupported(f"is no TAESD encoder for {' or '.join(_TINY)}")
    architecture = TinyVaeArchitecture(_TINY[name])
    return _merged(
        architecture,
        [_Found(architecture, encoder, 0, "", "encoder."), _Found(architecture, decoder, 1, "", "decoder.")],
    )
