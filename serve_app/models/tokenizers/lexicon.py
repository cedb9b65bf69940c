"""Textual inversion embeddings and tokeniser vocabularies, from the user's files.

Textual inversion: vectors that replace tokens, read from small files in models/embeddings. Source: Gal et al. 2022,
arXiv:2208.01618. Layouts: one tensor of any name, `emb_params`, or one for each text encoder (`clip_l`, `clip_g`,
`t5xxl` and so on); in pickles also these in `string_to_param`, or a list of dicts that is one inversion.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import ParameterDict

from serve_app import log
from serve_app.errors import ModelFileError
from serve_app.models.files.checkpoint import Checkpoint
from serve_app.models.files.tensor_pickle import load_tensors
from serve_app.store.models.catalog import SUFFIXES, TENSOR_PICKLES, Catalog

_log = log.get("models")


class Lexicon:
    """A catalog's files for text encoders."""

    def __init__(self, catalog: Catalog) -> None:
        self._catalog = catalog

    def vocabulary(self, name: str) -> Path | None:
        """Return the path of a tokeniser file among the text encoders, None if it is missing."""
        return self._catalog.sibling("text_encoders", name)

    def vectors(self, name: str, width: int, key: str = "clip_l") -> Tensor | None:
        """Return an embedding's vectors (N, width); None, with a warning, if it is missing or has another width.

        name: with or without its suffix. key: of the text encoder. Errors: ModelFileError for a file that cannot be
        read.
        """
        path = self._path(name)
        if path is None:
            _log.warning("embedding '%s' does not exist and is left out of the text", name)
            return None
        tensors = _tensors(path)
        order = [*(known for known in (key, "emb_params") if known in tensors), *tensors]
        fitting = [tensor for tensor in order if tensors[tensor].shape[-1:] == (width,)]
        if not fitting:
            found = ", ".join(f"'{tensor}' {tuple(value.shape)}" for tensor, value in tensors.items())
            _log.warning("embedding '%s' holds %s, no vectors %d wide, and is left out", name, found, width)
            return None
        return tensors[fitting[0]].reshape(-1, width)

    def conditioning(self, name: str) -> tuple[dict[str, Tensor], dict[str, str]]:
        """Return a saved conditioning's tensors and its metadata. Errors: ModelFileError."""
        path = self._catalog.path("embeddings", name)
        file = Checkpoint(path)
        return {key: file.raw(key) for key in file.shapes}, dict(file.metadata)

    def _path(self, name: str) -> Path | None:
        for suffix in ("", *SUFFIXES, *TENSOR_PICKLES["embeddings"]):
            try:
                return self._catalog.path("embeddings", name + suffix)
            except ModelFileError:
                continue
        return None


def _tensors(path: Path) -> dict[str, Tensor]:
    """Return an embedding's tensors by name, mapped from the file if it is a safetensors file."""
    if path.suffix.lower() in SUFFIXES:
        file = Checkpoint(path)
        return {name: file.tensor(name) for name in file.shapes}
    held = load_tensors(path)
    if isinstance(held, Mapping) and "string_to_param" in held:
        held = held["string_to_param"]
    if isinstance(held, list):
        held = _joined(held)
    named = dict(held.items()) if isinstance(held, Mapping | ParameterDict) else {}
    tensors = {str(name): value.detach() for name, value in named.items() if isinstance(value, Tensor)}
    if not tensors:
        raise ModelFileError(f"'{path.name}' holds no tensors of a textual inversion in a known layout")
    return tensors


def _joined(parts: list[Any]) -> dict[str, Tensor]:
    """Return the tensors of a list of dicts, concatenated by width."""
    widths: dict[str, list[Tensor]] = {}
    for tensor in (value for part in parts if isinstance(part, Mapping) for value in part.values()):
        if isinstance(tensor, Tensor) and tensor.ndim:
            widths.setdefault(str(tensor.shape[-1]), []).append(tensor.reshape(-1, tensor.shape[-1]))
    return {width: torch.cat(found) for width, found in widths.items()}
