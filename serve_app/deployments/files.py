"""What tells one content of a named file from another, for every process that signs nodes' work."""

from __future__ import annotations

from collections.abc import Callable

from serve_app.config import AppConfig
from serve_app.store.catalog import Catalog
from serve_app.store.store import FileRef
from serve_app.store.volume import Volume


def fingerprints(config: AppConfig) -> Callable[[str, str], str]:
    """Return (folder, name) -> a tag that changes with the file: of an upload, or of a model file."""
    catalog, store = Catalog(config.models_dir), Volume(config.directories)

    def fingerprint(folder: str, name: str) -> str:
        return store.stat(FileRef.parse(name)).etag if folder == "input" else catalog.fingerprint(folder, name)

    return fingerprint
