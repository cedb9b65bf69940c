"""Checks by their headers whether model files fit their loaders: by names and shapes of tensors.

A header is read once for a file's size and time. Knows no torch.
"""

from __future__ import annotations

from threading import Lock

from cachetools import LRUCache

from serve_app.errors import ModelFileError
from serve_app.store.models import gguf_header
from serve_app.store.models.catalog import PIXEL_SPACE, TINY_VAES, Catalog, is_tiny_video_vae
from serve_app.store.models.header import shapes
from serve_app.store.models.kinds import refusal

FILES_KEPT = 4096
"""The number of cached results."""


class ModelCheck:
    """Checks the files of a catalog. Thread-safe."""

    def __init__(self, catalog: Catalog) -> None:
        self._catalog = catalog
        self._found: LRUCache[tuple[str, str, str, str], str | None] = LRUCache(FILES_KEPT)
        self._lock = Lock()

    def refusal(self, part: str, folder: str, name: str) -> str | None:
        """Return why a file cannot be a part of a model, None if it can or is absent."""
        if folder == "diffusers" or (folder == "vae" and name in (*TINY_VAES, PIXEL_SPACE)):
            return None
        if folder == "vae" and is_tiny_video_vae(name):
            folder = "vae_approx"
        try:
            stat = self._catalog.stat(folder, name)
        except ModelFileError:
            return None
        key = (part, folder, name, stat.etag)
        with self._lock:
            if key in self._found:
                return self._found[key]
        found = self._read(part, folder, name, stat.size)
        with self._lock:
            self._found[key] = found
        return found

    def _read(self, part: str, folder: str, name: str, size: int) -> str | None:
        try:
            with self._catalog.open(folder, name) as file:
                gguf = name.lower().endswith(gguf_header.SUFFIX)
                found = gguf_header.shapes(file) if gguf else shapes(file, size)
        except ModelFileError as error:
            return str(error)
        except OSError as error:
            return f"cannot be read: {error.strerror or type(error).__name__}"
        return refusal(part, found)
