"""What text encoders read beside their weights: embeddings, and the vocabularies that the user has as files.

Textual inversion: vectors that take the place of tokens, read from small files in models/embeddings. Source: Gal et al.
2022, arXiv:2208.01618. Layouts: one tensor of any name, `emb_params`, or one for each text encoder (`clip_l`, `clip_g`,
`t5xxl` and so on).
"""

from __future__ import annotations

from pathlib import Path

from torch import Tensor

from serve_app import log
from serve_app.errors import ModelFileError
from serve_app.models.checkpoint import Checkpoint
from serve_app.store.catalog import SUFFIXES, Catalog

_log = log.get("models")


class Lexicon:
    """What a catalog has for text encoders."""

    def __init__(self, catalog: Catalog) -> None:
        self._catalog = catalog

    def vocabulary(self, name: str) -> Path | None:
        """Return where a file of a tokeniser is among the text encoders, None if it is not there."""
        return self._catalog.beside("text_encoders", name)

    def vectors(self, name: str, width: int, key: str = "clip_l") -> Tensor | None:
        """Return an embedding's vectors (N, width); None, with a warning, if there is none or it is of another width.

        name: with or without its suffix. key: the text encoder they are for. Errors: ModelFileError for a file that
        cannot be read.
        """
        path = self._path(name)
        if path is None:
            _log.warning("embedding '%s' does not exist and is left out of the text", name)
            return None
        file = Checkpoint(path)
        order = [*(known for known in (key, "emb_params") if known in file.shapes), *file.shapes]
        fitting = [tensor for tensor in order if file.shapes[tensor] and file.shapes[tensor][-1] == width]
        if not fitting:
            found = ", ".join(f"'{tensor}' {shape}" for tensor, shape in file.shapes.items())
            _log.warning("embedding '%s' holds %s, no vectors %d wide, and is left out", name, found, width)
            return None
        return file.tensor(fitting[0]).reshape(-1, width)

    def conditioning(self, name: str) -> tuple[dict[str, Tensor], dict[str, str]]:
        """Return a saved conditioning's tensors and its metadata. Errors: ModelFileError."""
        path = self._catalog.path("embeddings", name)
        file = Checkpoint(path)
        return {key: file.raw(key) for key in file.shapes}, dict(file.metadata)

    def _path(self, name: str) -> Path | None:
        for suffix in ("", *SUFFIXES):
            try:
                return self._catalog.path("embeddings", name + suffix)
            except ModelFileError:
                continue
        return None
