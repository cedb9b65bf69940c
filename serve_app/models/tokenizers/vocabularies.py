"""Locates vocabularies: in installed packages, or in the user's files among the text encoders."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import TypeAlias

from serve_app.errors import ModelFileError

UserFile: TypeAlias = Callable[[str], "Path | None"]
"""From a file's name to its path in models/text_encoders, None if it is missing."""


def no_file(name: str) -> Path | None:
    """Return None: there are no user's files."""
    return None


def packaged(package: str, *inside: str) -> Path | None:
    """Return the path of a file in an installed package, None without the package.

    The package is located, not imported: its imports may be large, or not installed.
    """
    spec = find_spec(package)
    if spec is None or not spec.submodule_search_locations:
        return None
    path = Path(spec.submodule_search_locations[0]).joinpath(*inside)
    return path if path.is_file() else None


def first_file(user_file: UserFile, names: Sequence[str], package: str, *inside: str) -> Path | None:
    """Return the first of the user's files with these names, else the package's; None if there is neither."""
    return next((found for name in names if (found := user_file(name)) is not None), None) or packaged(package, *inside)


def absent(tokeniser: str, install: str, names: Sequence[str]) -> ModelFileError:
    """Return the error that says how to supply a vocabulary."""
    files = " or ".join(f"'{name}'" for name in names)
    return ModelFileError(
        f"the vocabulary of {tokeniser} is missing: install it by `{install}`, or put {files} into models/text_encoders"
    )
