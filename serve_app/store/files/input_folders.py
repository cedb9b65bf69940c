"""Folders of uploaded files, for nodes that read all files of a folder.

Folders are not stored: a folder exists if a file lies below it.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from pathlib import PurePosixPath

from serve_app.store.files.store import Store
from serve_app.store.models.catalog import Catalog

INPUT_FOLDERS = "input folders"
"""The source name of a choice among these folders, besides the catalog's folders and "input"."""


def choices(store: Store, catalog: Catalog, folder: str) -> list[str]:
    """Return the choices from a folder of the catalog, from "input" for uploaded files, or from INPUT_FOLDERS."""
    if folder == INPUT_FOLDERS:
        return input_folders(store)
    return sorted(store.names("input")) if folder == "input" else catalog.choices(folder)


def input_folders(store: Store) -> list[str]:
    """Return every folder below the input area, "a/b", sorted."""
    holding = {PurePosixPath(ref.subfolder) for ref, _ in store.files("input") if ref.subfolder}
    return sorted({str(path) for folder in holding for path in (folder, *folder.parents) if path.name})


def files_below(store: Store, folder: str) -> list[str]:
    """Return the paths of all files below a folder of the input area, counted from it, sorted."""
    return sorted(path for path, _ in _below(store, folder))


def folder_tag(store: Store, folder: str) -> str:
    """Return a tag that changes when a file below a folder is added, removed or changed."""
    said = sorted(f"{path} {changed_s}" for path, changed_s in _below(store, folder))
    return hashlib.sha256("\n".join(said).encode(errors="replace")).hexdigest()


def _below(store: Store, folder: str) -> Iterator[tuple[str, float]]:
    for ref, changed_s in store.files("input"):
        path = f"{ref.subfolder}/{ref.filename}"
        if path.startswith(f"{folder}/"):
            yield path.removeprefix(f"{folder}/"), changed_s
