"""Saves recipes' weights as model files, under the names by which ComfyUI writes and reads them.

Facts: ComfyUI 0.33.0. Changes of weights are included; what a file cannot express (guidance, FreeU, clip skip) is not
saved.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence

import torch
from torch import Tensor

from serve_app.errors import ModelFileError
from serve_app.models.families.family import BackboneFamily
from serve_app.models.families.text_family import TextEnsemble, TextFamily
from serve_app.models.files.checkpoint import Checkpoint
from serve_app.models.files.layout import Place, Table, joined, origins
from serve_app.models.files.safetensors_file import SafetensorsFile, Written
from serve_app.models.weights.loading import mixture
from serve_app.models.weights.mixture import Mixture
from serve_app.models.weights.recipes import part_files
from serve_app.recipe.recipe import Recipe
from serve_app.recipe.training import ContinuousEdm, Discrete, Training
from serve_app.store.models.catalog import Catalog

PREFIX = "model.diffusion_model."
"""ComfyUI's prefix of a backbone."""

Progress = Callable[[int, int], None]


def checkpoint_file(
    catalog: Catalog,
    model: Recipe,
    clip: Recipe | None,
    vae: Recipe | None,
    metadata: Mapping[str, str],
    progress: Progress,
) -> SafetensorsFile:
    """Return the file of a backbone, optionally with a text encoder and a VAE. Errors: ModelFileError."""
    backbone = mixture_of(catalog, model)
    family = backbone.family
    assert isinstance(family, BackboneFamily)
    tensors = list(tensors_of(backbone, backbone.names, family.table(), PREFIX))
    if clip is not None:
        encoders = mixture_of(catalog, clip)
        for member, module in members(encoders):
            prefix = family.text_prefixes.get(member.key, f"text_encoders.{member.key}.transformer.")
            tensors += encoder_tensors(encoders, member, module, prefix)
    if vae is not None:
        tensors += _vae(catalog, vae, family.vae_prefix)
    own = Checkpoint(part_files(catalog, model).paths[0]).training()
    said, extra = _said_of_training(own, model.last(Training) or own)
    tensors += [Written(name, tuple(value.shape), value.dtype, _giving(value)) for name, value in extra.items()]
    return SafetensorsFile(tensors, {**family.saved_as(), **said, **metadata}, progress)


def text_files(
    catalog: Catalog, clip: Recipe, metadata: Mapping[str, str], progress: Progress
) -> dict[str, SafetensorsFile]:
    """Return a file for each text encoder, by "_" and its key. Errors: ModelFileError."""
    encoders = mixture_of(catalog, clip)
    said = {"format": "pt", **metadata}
    return {
        f"_{member.key}": SafetensorsFile(encoder_tensors(encoders, member, module, ""), said, progress)
        for member, module in members(encoders)
    }


def vae_file(catalog: Catalog, vae: Recipe, metadata: Mapping[str, str], progress: Progress) -> SafetensorsFile:
    """Return the file of a VAE. Errors: ModelFileError."""
    return SafetensorsFile(_vae(catalog, vae, ""), metadata, progress)


def mixture_of(catalog: Catalog, recipe: Recipe) -> Mixture:
    """Return the weights of a recipe with all their changes. Errors: ModelFileError."""
    return mixture(recipe, part_files(catalog, recipe, whole=True))


def members(encoders: Mixture) -> list[tuple[TextFamily, str]]:
    """Return the text encoders in a network by submodule name with a dot; "" for the whole."""
    family = encoders.family
    if isinstance(family, TextEnsemble):
        return [(member, f"{module}.") for module, member in family.members.items()]
    assert isinstance(family, TextFamily)
    return [(family, "")]


def encoder_tensors(encoders: Mixture, member: TextFamily, module: str, prefix: str) -> list[Written]:
    """Return the tensors of one of the text encoders in a network, as a file has them under a prefix."""
    names = [name.removeprefix(module) for name in encoders.names if name.startswith(module)]
    return list(tensors_of(encoders, names, member.published(prefix), prefix, module))


def tensors_of(
    weights: Mixture, names: Sequence[str], table: Table, prefix: str, module: str = ""
) -> Iterator[Written]:
    """Yield tensors under a file's names. names: the network's, within a module; table: the file's -> the network's."""
    for theirs, places in origins(names, table).items():
        inside = [f"{module}{place.name}" for place in places]
        parts = [(torch.empty(weights.shape(name), device="meta"), p) for name, p in zip(inside, places, strict=True)]
        make = _joining(weights, inside, places)
        yield Written(prefix + theirs, tuple(joined(parts).shape), weights.dtype(inside[0]), make)


def _joining(weights: Mixture, names: Sequence[str], places: Sequence[Place]) -> Callable[[], Tensor]:
    return lambda: joined([(weights.tensor(name), place) for name, place in zip(names, places, strict=True)])


def _giving(tensor: Tensor) -> Callable[[], Tensor]:
    return lambda: tensor


def _vae(catalog: Catalog, recipe: Recipe, prefix: str) -> list[Written]:
    """Return a VAE's tensors as in its own file: nothing changes them, and ComfyUI reads every layout of ours."""
    paths = part_files(catalog, recipe).paths
    file = Checkpoint(paths[0])
    if len(paths) > 1:
        raise ModelFileError(f"{file.where} is a half of a VAE in two files, which is not saved as one")
    [found] = file.find("vae").located
    raw = {name: file.raw(found.prefix + name) for name in found.tensors.shapes}
    return [Written(prefix + name, tuple(t.shape), t.dtype, _giving(t)) for name, t in raw.items()]


def _said_of_training(own: Training, training: Training) -> tuple[dict[str, str], dict[str, Tensor]]:
    """Return the metadata and tensors by which a file states its backbone's training.

    own: the training stated by the model's file; training: the recipe's.
    """
    extra: dict[str, Tensor] = {}
    if isinstance(training, ContinuousEdm) and training.prediction == "v_prediction":
        for end, level in (("max", training.sigma_max), ("min", training.sigma_min)):
            extra[f"edm_vpred.sigma_{end}"] = torch.tensor(level, dtype=torch.float32)
    match own:
        case Discrete(prediction="eps"):
            return {"modelspec.predict_key": "epsilon"}, extra
        case Discrete(prediction="v_prediction"):
            extra["v_pred"] = torch.tensor([])
            if isinstance(training, Discrete) and training.zsnr:
                extra["ztsnr"] = torch.tensor([])
            return {"modelspec.predict_key": "v"}, extra
    return {}, extra
