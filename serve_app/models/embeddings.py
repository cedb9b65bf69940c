"""Textual inversion: vectors that take the place of tokens, read from small files in models/embeddings.

Source: Gal et al. 2022, arXiv:2208.01618. Layouts: one tensor of any name, `emb_params`, or one for each text encoder
(`clip_l`, `clip_h`, `clip_g`).
"""

from __future__ import annotations

from pathlib import Path

from torch import Tensor

from serve_app import log
from serve_app.errors import ModelFileError
from serve_app.models.checkpoint import Checkpoint
from serve_app.store.catalog import SUFFIXES, Catalog

_log = log.get("models")


class Embeddings:
    """The embeddings of a catalog."""

    def __init__(self, catalog: Catalog) -> None:
        self._catalog = catalog

    def vectors(self, name: str, width: int, kind: str = "l") -> Tensor | None:
        """Return an embedding's vectors (N, width); None, with a warning, if there is none or it is of another width.

        name: with or without its suffix. kind: the text encoder they are for. Errors: ModelFileError for a file that
        cannot be read.
        """
        path = self._path(name)
        if path is None:
            _log.warning("embedding '%s' does not exist and is left out of the text", name)
            return None
        file = Checkpoint(path)
        order = [*(known for known in (f"clip_{kind}", "emb_params") if known in file.shapes), *file.shapes]
        fitting = [tensor for tensor in order if file.shapes[tensor] and file.shapes[tensor][-1] == width]
        if not fitting:
            found = ", ".join(f"'{tensor}' {shape}" for tensor, shape in file.shapes.items())
            _log.warning("embedding '%s' holds %s, no vectors %d wide, and is left out", name, found, width)
            return None
        return file.tensor(fitting[0]).reshape(-1, width)

    def _path(self, name: str) -> Path | None:
        for suffix in ("", *SUFFIXES):
            try:
                return self._catalog.path("embeddings", name + suffix)
            except ModelFileError:
                continue
        return None
