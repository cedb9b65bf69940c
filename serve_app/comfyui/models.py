"""Model files of a bucket for a ComfyUI process: links to this host's copies, which are fetched on demand.

ComfyUI lists a broken link like a file, so its classes offer all files of the bucket. Files that a graph names are
fetched before it is sent.
"""

from __future__ import annotations

import os
from collections.abc import Collection, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Protocol

from serve_app import log
from serve_app.store.models.catalog import FOLDERS

WHOLE = ("embeddings", "vae_approx")
"""Directories of small files that graphs name within texts or by parts of names: all are fetched."""
BY_FOLDER = "diffusers"
"""The directory in which one name means all files below it."""
_log = log.get("comfyui")


class ModelMirror(Protocol):
    """The methods of `store.mirror.Mirror` that are used here; importing it needs an S3 client."""

    def copies(self) -> Mapping[str, Path]: ...

    def path(self, name: str) -> Path: ...


class LinkedModels:
    """The links of one process. folder: where they are made, a directory for each of the bucket's. Every method blocks.

    Errors of all: StoreError, OSError.
    """

    def __init__(self, mirror: ModelMirror, folder: Path) -> None:
        self._mirror = mirror
        self.folder = folder
        self._links: dict[str, Path] = {}
        for directories in FOLDERS.values():
            for directory in directories:
                (folder / directory).mkdir(parents=True, exist_ok=True)

    def refresh(self) -> None:
        """Update the links: one for each file of the bucket, and no other."""
        copies = {name: copy for name, copy in self._mirror.copies().items() if _is_model(name)}
        for name in self._links.keys() - copies.keys():
            (self.folder / name).unlink(missing_ok=True)
            del self._links[name]
        for name, copy in copies.items():
            if self._links.get(name) == copy:
                continue
            link = self.folder / name
            try:
                link.parent.mkdir(parents=True, exist_ok=True)
                link.unlink(missing_ok=True)
                link.symlink_to(copy)
            except (FileExistsError, NotADirectoryError, IsADirectoryError):
                _log.warning("model file %s is not offered: a folder and a file of the bucket have one name", name)
            self._links[name] = copy

    def fetch(self, constants: Collection[str]) -> None:
        """Fetch the files that constants of a graph name. A missing file is reported by its node."""
        self.refresh()
        for name in models_in_graph(self._links, constants):
            try:
                self._mirror.path(name)
            except FileNotFoundError:
                continue


def models_in_graph(names: Iterable[str], constants: Collection[str]) -> Iterator[str]:
    """Yield the files of a bucket that a graph with these constants may read."""
    for name in names:
        directory, _, rest = name.partition("/")
        parents = rest.split("/")[:-1] if directory == BY_FOLDER else []
        folders = {"/".join(parents[:n]) for n in range(1, len(parents) + 1)}
        if rest in constants or directory in WHOLE or not folders.isdisjoint(constants):
            yield name


def _is_model(name: str) -> bool:
    """Whether a file is in a directory, not hidden, and does not lead out of it."""
    parts = name.split("/")
    return len(parts) > 1 and all(part and not part.startswith(".") and os.sep not in part for part in parts)
