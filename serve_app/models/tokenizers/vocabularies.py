"""Where vocabularies are found: in packages that hold them, or in files that the user puts beside the text encoders."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import TypeAlias

from serve_app.errors import ModelFileError

UserFile: TypeAlias = Callable[[str], "Path | None"]
"""From a file's name to where it is in models/text_encoders, None if it is not there."""


def no_file(name: str) -> Path | None:
    """Return nothing: there are no files of the user's."""
    return None


def packaged(package: str, *inside: str) -> Path | None:
    """Return a file that an installed package brings, None without it.

    The package is located, not imported: what it would import may be large, or not installed.
    """
    spec = find_spec(package)
    if spec is None or not spec.submodule_search_locations:
        return None
    path = Path(spec.submodule_search_locations[0]).joinpath(*inside)
    return path if path.is_file() else None


def first_file(user_file: UserFile, names: Sequence[str], package: str, *inside: str) -> Path | None:
    """Return the first of the user's files of these names, else the package's; None if there is neither."""
    return next((found for name in names if (found := user_file(name)) is not None), None) or packaged(package, *inside)


def absent(tokeniser: str, install: str, names: Sequence[str]) -> ModelFileError:
    """Return the error that says how a vocabulary comes to be there."""
    files = " or ".join(f"'{name}'" for name in names)
    return ModelFileError(
        f"the vocabulary of {tokeniser} is missing: install it by `{install}`, or put {files} into models/text_encoders"
    )
